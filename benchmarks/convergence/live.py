"""The same claim on a live swarm: real processes killed by a seeded schedule, against nobody killed."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from pathlib import Path

import msgspec

from benchmarks.convergence.failures import lost_stages
from benchmarks.convergence.results import Origin
from benchmarks.convergence.tables import render
from bootstrap.board import Loss
from bootstrap.faults import Fault
from bootstrap.found import load_manifest
from bootstrap.local import LocalPlan, LocalSwarm


class LiveRecovery(msgspec.Struct, frozen=True):
    """One peer that was killed, and what became of its stage."""

    step: int
    """The last that was committed before the kill."""
    stage: int
    method: str
    standstill_s: float


class LiveResult(msgspec.Struct, frozen=True):
    """One run of a live swarm."""

    percent: int
    seed: int
    steps: tuple[tuple[float, float], ...]
    """(seconds since the first commit, training loss in nats per token) of each step, from step 1 on."""
    recoveries: tuple[LiveRecovery, ...]
    origin: Origin


def schedule(percent: int, seed: int, steps: int, last_stage: int) -> tuple[Fault, ...]:
    """The failures of failures.py as kills: a stage lost before a step dies once the step before is committed."""
    stages = tuple(range(1, last_stage + 1))
    return tuple(
        Fault(stage, step - 1)
        for step in range(2, steps + 1)
        for stage in lost_stages(percent, seed, step, stages, 1.0)
    )


def run_live(preset: str, percent: int, seed: int, steps: int) -> LiveResult:
    """Train ``steps`` steps with a spare for every kill. Raises `RuntimeError` if a step is missing."""
    manifest = load_manifest(preset, steps)
    faults = schedule(percent, seed, steps, manifest.last_stage)
    with tempfile.TemporaryDirectory(prefix="understudy-live-") as folder:
        plan = LocalPlan(preset, manifest, max(1, len(faults)), faults, Path(folder))
        board = asyncio.run(LocalSwarm(plan, lambda _: None).run())
        events = [msgspec.json.decode(line) for line in (Path(folder) / "events.jsonl").read_bytes().splitlines()]
    commits = [event for event in events if event["event"] == "step.committed"]
    if [event["step"] for event in commits] != list(range(1, steps + 1)):
        raise RuntimeError(f"{len(commits)} of {steps} steps were committed")
    began = commits[0]["time"]
    return LiveResult(
        percent,
        seed,
        tuple((round(event["time"] - began, 3), round(event["loss"], 5)) for event in commits),
        tuple(_recovery(loss) for loss in board.losses),
        Origin.here("cpu"),
    )


def _recovery(loss: Loss) -> LiveRecovery:
    if loss.recovered is None or loss.standstill_s is None:
        raise RuntimeError(f"S{loss.stage}, killed after step {loss.step}, was not recovered")
    return LiveRecovery(loss.step, loss.stage, loss.recovered["method"], round(loss.standstill_s, 3))


def write_live(result: LiveResult, folder: Path) -> None:
    """Keep a result beside the others."""
    folder.mkdir(parents=True, exist_ok=True)
    file_of(folder, result.percent, result.seed).write_bytes(msgspec.json.encode(result) + b"\n")


def read_live(folder: Path) -> list[LiveResult]:
    """The calm run and the churned one, if both are there."""
    found = [msgspec.json.decode(path.read_bytes(), type=LiveResult) for path in sorted(folder.glob("live-*.json"))]
    return sorted(found, key=lambda result: result.percent)


def file_of(folder: Path, percent: int, seed: int) -> Path:
    return folder / f"live-at-{percent}-schedule-{seed}.json"


def live_table(results: list[LiveResult]) -> str:
    """Losses and times of the live runs."""
    header = ["live swarm", "steps", "killed", "loss, steps 6-10", "loss, last 20", "seconds", "median standstill, s"]
    return render(header, [_row(result) for result in results]) if results else "not run"


def _row(result: LiveResult) -> list[str]:
    losses = [loss for _, loss in result.steps]
    stood = [recovery.standstill_s for recovery in result.recoveries]
    return [
        f"{result.percent} % per hour" if result.percent else "nobody killed",
        str(len(losses)),
        ", ".join(f"S{recovery.stage} after {recovery.step} ({recovery.method})" for recovery in result.recoveries)
        or "-",
        f"{statistics.fmean(losses[5:10]):.3f}",
        f"{statistics.fmean(losses[-20:]):.3f}",
        f"{result.steps[-1][0]:.0f}",
        f"{statistics.median(stood):.2f}" if stood else "-",
    ]
