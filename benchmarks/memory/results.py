"""What was measured: one JSON file per run.toml or preset."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.keeping import keep, read_kept
from benchmarks.origin import Origin
from understudy.protocol.manifest import RunManifest

WARM_UP_STEPS = 60
"""Of a process: until then the allocators of Python, torch and the daemon fill their pools."""
WATCHED_STEPS_MIN = 50
"""Over fewer steps a slope says nothing."""


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """Resident bytes once a step was committed."""

    step: int
    node: int
    daemon: int


class Process(msgspec.Struct):
    """One node that held a stage."""

    peer: str
    stage: int
    """The last that it held."""
    began_at_step: int
    node_peak: int
    """Bytes (VmHWM) of the Python process."""
    daemon_peak: int
    """Bytes (VmHWM) of its libp2p daemon."""
    samples: list[Sample]

    @property
    def peak(self) -> int:
        """Both together: each at its own peak."""
        return self.node_peak + self.daemon_peak

    @property
    def steady(self) -> list[Sample]:
        """Those after the warm-up."""
        return [sample for sample in self.samples if sample.step >= self.began_at_step + WARM_UP_STEPS]

    def growth(self, *, of_daemon: bool = False) -> float | None:
        """Bytes per 100 steps after the warm-up: the slope of a straight line through them. None: too few."""
        points = [(sample.step, sample.daemon if of_daemon else sample.node) for sample in self.steady]
        is_long = bool(points) and points[-1][0] - points[0][0] >= WATCHED_STEPS_MIN
        return slope(points) * 100 if is_long else None


class MemoryResult(msgspec.Struct, frozen=True):
    """One run."""

    manifest: RunManifest
    steps: int
    kills: tuple[tuple[int, int], ...]
    """(stage, after which step)."""
    recoveries: int
    processes: tuple[Process, ...]
    origin: Origin

    def write(self, folder: Path) -> Path:
        """Keep it: whole or not at all."""
        return keep(self, folder / f"memory-{self.manifest.name}.json")


def read_results(folder: Path) -> list[MemoryResult]:
    """All results of a folder."""
    return read_kept(folder, "memory-*.json", MemoryResult)


def slope(points: list[tuple[int, int]]) -> float:
    """Of the straight line with the least squares. Raises `ValueError` unless two places differ."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if not spread:
        raise ValueError("a slope needs two points in different places")
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
