"""One JSON file per model, rate and round trip: everybody's steps by round, and what the links carried beside them."""

from __future__ import annotations

import statistics
from pathlib import Path

import msgspec

from benchmarks.keeping import keep
from benchmarks.links.bounds import filled_bound_s, plain_bound_s
from benchmarks.origin import Origin
from understudy.protocol.manifest import RunManifest

SWARM = "understudy"
UNSHAPED = "understudy, links not shaped"
TARGET = 0.9
"""Of the bound's speed."""


class Round(msgspec.Struct, frozen=True):
    """Everybody in turn."""

    bytes_per_s: float
    """Plain TCP from one machine to another, beside the contenders."""
    seconds: dict[str, list[float]]
    """Of each step that counts, by contender."""

    def step_s(self, name: str) -> float:
        return statistics.median(self.seconds[name])


class LinkResult(msgspec.Struct, frozen=True):
    """One model on links of one kind."""

    manifest: RunManifest
    rate_mbit: float
    rounds: tuple[Round, ...]
    origin: Origin
    round_trip_ms: float | None = None
    """None: joined by a bridge, whose round trip is 0.1 ms."""
    congestion_control: str = "cubic"

    @property
    def contenders(self) -> list[str]:
        return list(self.rounds[0].seconds)

    @property
    def links(self) -> str:
        """In words."""
        if self.round_trip_ms is None:
            return f"{self.rate_mbit:g}"
        return f"{self.rate_mbit:g}, {self.round_trip_ms:g} ms, {self.congestion_control}"

    @property
    def bytes_per_s(self) -> float:
        return statistics.median(found.bytes_per_s for found in self.rounds)

    def step_s(self, name: str) -> float:
        """The median step over all rounds."""
        return statistics.median(value for found in self.rounds for value in found.seconds[name])

    @property
    def plain_bound_s(self) -> float:
        return plain_bound_s(self.manifest, self.step_s(UNSHAPED), self.bytes_per_s)

    @property
    def filled_bound_s(self) -> float:
        return filled_bound_s(
            self.manifest, self.step_s(UNSHAPED), self.bytes_per_s, (self.round_trip_ms or 0.0) / 2000
        )

    def ratios(self, name: str) -> list[float]:
        """How many times as fast as the contender we were, in each round."""
        return [found.step_s(name) / found.step_s(SWARM) for found in self.rounds]


def write(result: LinkResult, folder: Path) -> Path:
    """Keep a result as ``links-MODEL-RATE.json``, or ``links-MODEL-RATE-ROUND_TRIPms.json``."""
    delay = "" if result.round_trip_ms is None else f"-{result.round_trip_ms:03g}ms"
    return keep(result, folder / f"links-{result.manifest.name}-{result.rate_mbit:g}{delay}.json")


def read_all(folder: Path) -> list[LinkResult]:
    """All results of a folder. Raises `msgspec.ValidationError` for a file that is none."""
    return [msgspec.json.decode(path.read_bytes(), type=LinkResult) for path in sorted(folder.glob("links-*.json"))]
