"""What was measured on the wire, as a JSON file and as a table."""

from __future__ import annotations

import statistics
from importlib.metadata import version
from pathlib import Path

import msgspec

from benchmarks.origin import Origin
from benchmarks.page import render

RAW, OURS = "hivemind", "links"
TARGET = 0.9
"""Of the raw stream's speed, for tensors of 1 MiB and more."""


class Transfer(msgspec.Struct, frozen=True):
    """One repetition: ``count`` tensors, from the first byte to the receiver's word that it has them all."""

    way: str
    tensor_bytes: int
    count: int
    seconds: float
    cpu_seconds: dict[str, float]
    """Of the sending process, the receiving one and both daemons."""

    @property
    def megabytes_per_s(self) -> float:
        """A megabyte is 10^6 bytes."""
        return self.tensor_bytes * self.count / self.seconds / 1e6


class WireResult(msgspec.Struct, frozen=True):
    """All repetitions, in the order in which they were made."""

    transfers: tuple[Transfer, ...]
    origin: Origin

    @property
    def sizes(self) -> list[int]:
        return sorted({transfer.tensor_bytes for transfer in self.transfers})

    def of(self, way: str, size: int) -> list[Transfer]:
        """The repetitions of one way and size, in order."""
        return [found for found in self.transfers if (found.way, found.tensor_bytes) == (way, size)]


def here() -> Origin:
    """This machine, with the versions that matter on the wire."""
    origin = Origin.here("cpu", "both peers on it")
    return msgspec.structs.replace(
        origin, versions={**origin.versions, **{name: version(name) for name in ("hivemind", "uvloop")}}
    )


def speed(result: WireResult, way: str, size: int) -> float:
    """Median MB/s."""
    return statistics.median(transfer.megabytes_per_s for transfer in result.of(way, size))


def ratio(result: WireResult, way: str, size: int) -> float:
    """How much of the raw stream's speed a way has: the median over repetitions, each against its own neighbour."""
    pairs = zip(result.of(way, size), result.of(RAW, size), strict=True)
    return statistics.median(ours.megabytes_per_s / raw.megabytes_per_s for ours, raw in pairs)


def wire_table(result: WireResult) -> str:
    """Speeds and ratios by size."""
    header = [
        "tensor",
        "hivemind, MB/s",
        "our stream, MB/s",
        "our links, MB/s",
        "links / hivemind",
        "lowest to highest",
    ]
    return render(header, [_row(result, size) for size in result.sizes])


def _row(result: WireResult, size: int) -> list[str]:
    speeds = [f"{speed(result, way, size):.0f}" for way in (RAW, "stream", OURS)]
    ours = [transfer.megabytes_per_s for transfer in result.of(OURS, size)]
    return [_size(size), *speeds, f"{ratio(result, OURS, size):.2f}", f"{min(ours):.0f} to {max(ours):.0f}"]


def cpu_table(result: WireResult) -> str:
    """Processor time per gigabyte, by process: where the time goes."""
    rows = []
    for size in result.sizes:
        for way in (RAW, OURS):
            found = result.of(way, size)
            gigabytes = sum(transfer.tensor_bytes * transfer.count for transfer in found) / 1e9
            spent = [sum(t.cpu_seconds[part] for t in found) / gigabytes for part in ("sender", "receiver", "daemons")]
            rows.append([_size(size), way, *(f"{seconds:.2f}" for seconds in spent)])
    return render(["tensor", "way", "sender, s/GB", "receiver, s/GB", "two p2pd, s/GB"], rows)


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def missed(result: WireResult) -> list[int]:
    """The sizes at which the target is missed."""
    return [size for size in result.sizes if size >= 1 << 20 and ratio(result, OURS, size) < TARGET]


def read(path: Path) -> WireResult:
    """Raises `msgspec.ValidationError` for a file that holds something else."""
    return msgspec.json.decode(path.read_bytes(), type=WireResult)
