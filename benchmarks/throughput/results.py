"""One JSON file per model: seconds of every step of every contender, round by round."""

from __future__ import annotations

import statistics
from pathlib import Path

import msgspec

from benchmarks.keeping import keep, read_kept
from benchmarks.origin import Origin
from understudy.protocol.manifest import RunManifest

SWARM = "understudy"
"""The name under which we compete."""


WARM_UP = 2
"""Steps of each run that do not count."""


class Contest(msgspec.Struct, frozen=True):
    """One model, trained by everybody in turn."""

    manifest: RunManifest
    seconds: dict[str, list[list[float]]]
    """Of each step behind the warm-up, by contender and round."""
    origin: Origin

    def median_s(self, name: str) -> float:
        """The median step of a contender over all rounds."""
        return statistics.median(value for seconds in self.seconds[name] for value in seconds)

    def ratios(self, name: str) -> list[float]:
        """How many times as fast as the contender we were, in each round."""
        pairs = zip(self.seconds[name], self.seconds[SWARM], strict=True)
        return [statistics.median(theirs) / statistics.median(ours) for theirs, ours in pairs]


def write(contest: Contest, folder: Path) -> Path:
    """Keep a contest as ``throughput-NAME.json``."""
    return keep(contest, folder / f"throughput-{contest.manifest.name}.json")


def read_all(folder: Path) -> list[Contest]:
    """All contests of a folder."""
    return read_kept(folder, "throughput-*.json", Contest)
