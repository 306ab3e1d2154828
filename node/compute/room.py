"""Which stages this machine has room for: judged before anything of one is allocated.

What is counted is less than what a stage really needs: one that is refused here could not have been trained here.
"""

from __future__ import annotations

import re
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from understudy.protocol.ids import DRIVER_STAGE
from understudy.protocol.manifest import RunManifest

PROCESS_BYTES = 300_000_000
"""Python with torch, without a stage."""
TRAINED_COPIES = 4
"""Of a stage's weights where it is computed: themselves, their gradient, two moments of AdamW."""
HELD_COPIES = 2
"""Of a stage's weights in the machine's own memory, if an accelerator computes: what is fetched, what is offered."""


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that there is at most, in bytes."""

    host_bytes: int
    device_bytes: int | None = None
    """Of the accelerator that computes; None: the processor does."""

    def objection(self, manifest: RunManifest, stage: int) -> str | None:
        """Why this machine cannot host a stage, or None if it perhaps can."""
        on_device, on_host = _training_bytes(manifest, stage), PROCESS_BYTES + _image_bytes(manifest, stage)
        if self.device_bytes is None:
            on_host += on_device
        else:
            on_host += HELD_COPIES * manifest.model.stage_bytes(stage)
            if on_device > self.device_bytes:
                return _told(stage, on_device, self.device_bytes, "the accelerator has")
        return _told(stage, on_host, self.host_bytes, "this machine has") if on_host > self.host_bytes else None

    def objection_to_export(self, manifest: RunManifest) -> str | None:
        """Why this machine cannot take stages home, one after the other, or None if it perhaps can."""
        largest = max(range(2), key=manifest.model.stage_bytes)
        needed = PROCESS_BYTES + manifest.model.stage_bytes(largest)
        return _told(largest, needed, self.host_bytes, "this machine has") if needed > self.host_bytes else None


def _told(stage: int, needed: int, there: int, whose: str) -> str:
    name = "S0" if stage == DRIVER_STAGE else "a block stage"
    return f"{name} of this run needs {needed / 1e9:,.1f} GB of memory or more, and {whose} {there / 1e9:,.1f} GB"


def _training_bytes(manifest: RunManifest, stage: int) -> int:
    """Weights with all that belongs to them, one microbatch, and the copy of S0 that a neighbour of it keeps.

    Copies of block stages come as there is room, and are not counted.
    """
    model, rows = manifest.model, manifest.step.microbatch_size * manifest.model.context_length
    needed = TRAINED_COPIES * model.stage_bytes(stage)
    if stage == DRIVER_STAGE:
        return needed + 4 * rows * (model.hidden_size + model.vocabulary_size)
    kept = model.stage_bytes(DRIVER_STAGE) if manifest.recovery.edge_copy_every else 0
    return needed + 4 * rows * (model.hidden_size + model.intermediate_size) + kept


def _image_bytes(manifest: RunManifest, stage: int) -> int:
    """What the owner keeps of what its holders have."""
    recovery = manifest.recovery
    every = recovery.edge_copy_every if stage == DRIVER_STAGE else recovery.standby_every
    return manifest.model.stage_bytes(stage) if every else 0


def measure_room(device: str) -> Room:
    """Of this process: the machine's memory, or what its control group or a limit leave it."""
    kind = torch.device(device)
    of_device = torch.cuda.get_device_properties(kind).total_memory if kind.type == "cuda" else None
    return Room(min(_physical_bytes(), _group_bytes(), _limit_bytes()), of_device)


UNLIMITED = 1 << 62


def _physical_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    found = re.search(r"MemTotal:\s+(\d+) kB", _content(meminfo))
    return int(found[1]) * 1024 if found else UNLIMITED


def _limit_bytes() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def _group_bytes(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """The least of the limits of our control group and all above it, of either version."""
    limits = [UNLIMITED]
    for line in _content(groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        inner = Path(path.lstrip("/"))
        for group in (inner, *inner.parents):
            limit = _content(base / group / name).strip()
            limits += [int(limit)] if limit.isdecimal() else []
    return min(limits)


def _content(path: Path) -> str:
    """Of a file of the kernel; nothing if it is not there."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
