"""Where a result comes from: which code, which versions, which machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import msgspec
import torch

from benchmarks.page import render


class Origin(msgspec.Struct, frozen=True):
    """Where a result comes from."""

    commit: str
    versions: dict[str, str]
    machine: str

    @classmethod
    def here(cls, device: str = "cpu", remark: str = "") -> Origin:
        """This checkout, on this machine; ``remark`` says how the machine was used."""
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False
        )
        versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
        machine = _machine(device) + (f", {remark}" if remark else "")
        return cls(described.stdout.strip() or "unknown", versions, machine)


def origin_table(origins: Iterable[Origin]) -> str:
    """Where the runs come from, as Markdown."""
    kinds: dict[tuple[str, str, str], int] = {}
    for origin in origins:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(origin.versions.items()))
        kind = (origin.commit, versions, origin.machine)
        kinds[kind] = kinds.get(kind, 0) + 1
    return render(["runs", "commit", "versions", "machine"], [[str(count), *kind] for kind, count in kinds.items()])


def _machine(device: str) -> str:
    """Processor and cores, or the accelerator."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"
