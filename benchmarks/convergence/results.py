"""One JSON file per run: what was trained, what was lost, the losses, and where all that came from."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.convergence.subject import Subject
from benchmarks.convergence.trainer import Recovery
from benchmarks.keeping import keep, read_kept
from benchmarks.origin import Origin


class Result(msgspec.Struct, frozen=True):
    """One run of one strategy."""

    strategy: str
    percent: int
    """Of the stages lost per hour, as the paper counts."""
    seed: int
    manifest: Subject
    losses: tuple[float, ...]
    """Mean training loss in nats per token of each step, from step 1 on."""
    validation: tuple[tuple[int, float], ...]
    """(step, held-out loss in nats per token after it)."""
    recoveries: tuple[Recovery, ...]
    seconds: float
    """That the run took, validation included; these machines were shared."""
    origin: Origin
    failure_factor: float = 1.0
    """Times as many failures as the rate says."""

    @property
    def run(self) -> Run:
        return Run(self.strategy, self.percent, self.seed)


class Run(msgspec.Struct, frozen=True, order=True):
    """Which run."""

    strategy: str
    percent: int
    seed: int

    @property
    def file_name(self) -> str:
        return f"{self.strategy}-at-{self.percent}-seed-{self.seed}.json"


def write(result: Result, folder: Path) -> None:
    """Keep a result: whole or not at all."""
    keep(result, folder / result.run.file_name)


def read_all(folder: Path) -> dict[Run, Result]:
    """All results of a folder."""
    return {result.run: result for result in read_kept(folder, "*-seed-*.json", Result)}
