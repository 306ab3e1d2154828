"""The same claim on a live swarm: real processes killed by a seeded schedule, against nobody killed."""

from __future__ import annotations

import statistics
from pathlib import Path

import msgspec

from benchmarks.convergence.failures import lost_stages
from benchmarks.convergence.strategies import Strategy
from benchmarks.convergence.subject import Subject
from benchmarks.convergence.trainer import Trainer
from benchmarks.keeping import keep
from benchmarks.origin import Origin
from benchmarks.page import render
from benchmarks.swarms import run_swarm
from understudy.bootstrap.local.faults import Fault
from understudy.bootstrap.local.monitor import Loss
from understudy.protocol.manifest import RunManifest

FILES = ("live-calm.json", "live-churned.json")


class LiveRecovery(msgspec.Struct, frozen=True):
    """One peer that was killed, and what became of its stage."""

    step: int
    """The last that was committed before the loss."""
    stage: int
    method: str
    standstill_s: float


class LiveResult(msgspec.Struct, frozen=True):
    """One run of a live swarm."""

    manifest: Subject
    percent: int
    schedule: int
    """Seed of the failures."""
    losses: tuple[float, ...]
    """Training loss in nats per token of each step, from step 1 on."""
    seconds: tuple[float, ...]
    """From the first commit to that of each step."""
    recoveries: tuple[LiveRecovery, ...]
    origin: Origin
    replayed: tuple[float, ...] = ()
    """The losses of the study's trainer with the same manifest, losing the same stages after the same steps."""


def kills(percent: int, schedule: int, steps: int, last_stage: int) -> tuple[Fault, ...]:
    """The failures of failures.py as kills: a stage lost before a step dies once the step before is committed."""
    stages = tuple(range(1, last_stage + 1))
    lost = (
        (step, stage) for step in range(2, steps + 1) for stage in lost_stages(percent, schedule, step, stages, 1.0)
    )
    return tuple(Fault(stage, step - 1) for step, stage in lost)


def run_live(manifest: RunManifest, percent: int, schedule: int, spares: int) -> LiveResult:
    """Train all steps of a manifest on this machine. Raises `RuntimeError` if a step or a recovery is missing."""
    steps = manifest.step.total_steps
    faults = kills(percent, schedule, steps, manifest.last_stage)
    board, events = run_swarm(manifest.name, manifest, spares, faults)
    commits = [event for event in events if event["event"] == "step.committed"]
    if [event["step"] for event in commits] != list(range(1, steps + 1)):
        raise RuntimeError(f"{len(commits)} of {steps} steps were committed")
    return LiveResult(
        Subject.of(manifest),
        percent,
        schedule,
        tuple(round(event["loss"], 5) for event in commits),
        tuple(round(event["time"] - commits[0]["time"], 3) for event in commits),
        tuple(_recovery(loss) for loss in board.losses),
        Origin.here("cpu", "1 thread per run"),
    )


def _recovery(loss: Loss) -> LiveRecovery:
    if loss.recovered is None or loss.standstill_s is None:
        raise RuntimeError(f"S{loss.stage}, killed after step {loss.step}, was not recovered")
    recovered = loss.recovered
    return LiveRecovery(recovered["step"], loss.stage, recovered["method"], round(loss.standstill_s, 3))


def replayed(result: LiveResult, manifest: RunManifest) -> LiveResult:
    """The same with what the study's trainer makes of the run's manifest."""
    settings = manifest.recovery
    ours = Strategy("live", "live", "all", method=settings.method, swapped_pairs=settings.swapped_pairs)
    trainer = Trainer(manifest, ours, manifest.seed)
    losses = []
    for step in range(1, len(result.losses) + 1):
        lost = [recovery.stage for recovery in result.recoveries if recovery.step == step - 1]
        if lost:
            trainer.lose(lost, step - 1)
        losses.append(round(trainer.train_step(step), 5))
    return msgspec.structs.replace(result, replayed=tuple(losses))


def write_live(calm: LiveResult, churned: LiveResult, folder: Path) -> None:
    """Keep both runs beside the other results."""
    for name, result in zip(FILES, (calm, churned), strict=True):
        keep(result, folder / name)


def read_live(folder: Path) -> list[LiveResult]:
    """The calm run and the churned one, or nothing."""
    paths = [folder / name for name in FILES]
    if not all(path.exists() for path in paths):
        return []
    return [msgspec.json.decode(path.read_bytes(), type=LiveResult) for path in paths]


def live_table(results: list[LiveResult]) -> str:
    """Losses and times of the live runs."""
    header = ["live swarm", "steps", "killed", "loss, steps 6-10", "loss, last 20", "seconds", "median standstill, s"]
    return render(header, [_row(result) for result in results]) if results else "not run"


def _row(result: LiveResult) -> list[str]:
    stood = [recovery.standstill_s for recovery in result.recoveries]
    return [
        f"{result.percent} % per hour" if result.percent else "nobody killed",
        str(len(result.losses)),
        ", ".join(f"S{loss.stage} after {loss.step} ({loss.method})" for loss in result.recoveries) or "-",
        f"{statistics.fmean(result.losses[5:10]):.3f}",
        f"{statistics.fmean(result.losses[-20:]):.3f}",
        f"{result.seconds[-1]:.0f}",
        f"{statistics.median(stood):.2f}" if stood else "-",
    ]


def replay_note(results: list[LiveResult]) -> str:
    """How far the trainer's losses are from the live swarm's."""
    return " ".join(_compare(result) for result in results if result.replayed) or "not run"


def _compare(result: LiveResult) -> str:
    apart = [abs(one - other) for one, other in zip(result.replayed, result.losses, strict=True)]
    who = "With peers killed" if result.percent else "With nobody killed"
    return (
        f"{who}, the trainer's loss and the live swarm's are {statistics.median(apart):.4f} apart at the median of "
        f"{len(apart)} steps, {max(apart):.4f} at most; over the last 20 their means are "
        f"{statistics.fmean(result.replayed[-20:]):.3f} and {statistics.fmean(result.losses[-20:]):.3f}."
    )
