"""Runs the swarms, and takes the time of what happens in them from their events."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.origin import Origin
from benchmarks.recovery.raw import RawPeers
from benchmarks.recovery.results import Recovered, RecoveryResult
from benchmarks.recovery.scenarios import Scenario
from bootstrap.board import Board
from bootstrap.faults import Fault
from bootstrap.found import load_manifest
from bootstrap.local import LocalPlan, LocalSwarm
from protocol.manifest import RunManifest

DONORS = 2

Report = Callable[[Recovered], None]


async def measure(scenario: Scenario, runs: int, report: Report) -> RecoveryResult:
    """So many whole swarms, one after the other; what raw streams carry is measured before and after each."""
    manifest = load_manifest(scenario.source, scenario.kill_step + scenario.steps_after)
    with tempfile.TemporaryDirectory(prefix="understudy-recovery-") as folder:
        if not scenario.has_yardstick:
            found = [await _swarm(scenario, manifest, Path(folder), number, report) for number in range(runs)]
        else:
            found = await _beside_raw_streams(scenario, manifest, Path(folder), runs, report)
    return RecoveryResult(scenario.name, manifest, scenario.stage, tuple(found), Origin.here("cpu"))


async def _beside_raw_streams(
    scenario: Scenario, manifest: RunManifest, folder: Path, runs: int, report: Report
) -> list[Recovered]:
    found = []
    async with RawPeers.open(DONORS, manifest.model.stage_bytes(scenario.stage), folder) as peers:
        before = await _raw(peers)
        for number in range(runs):
            recovered = await _swarm(scenario, manifest, folder, number, lambda _: None)
            after = await _raw(peers)
            found.append(recovered.beside((before[0], after[0]), (before[1], after[1])))
            report(found[-1])
            before = after
    return found


async def _raw(peers: RawPeers) -> tuple[float, float]:
    """Seconds of a transfer from one sender, and of two side by side."""
    return await peers.seconds(1), await peers.seconds(DONORS)


async def _swarm(scenario: Scenario, manifest: RunManifest, folder: Path, number: int, report: Report) -> Recovered:
    """One swarm. Raises `RuntimeError` if the stage was not recovered."""
    faults = (Fault(scenario.stage, scenario.kill_step),)
    plan = LocalPlan(scenario.source, manifest, spares=1, faults=faults, folder=folder / f"run-{number}")
    board = await LocalSwarm(plan, lambda _: None).run()
    recovered = recovered_from(board, scenario.kill_step)
    report(recovered)
    return recovered


def recovered_from(board: Board, kill_step: int) -> Recovered:
    """What a finished swarm's events say about its one loss. Raises `RuntimeError` if it was not made good."""
    (loss,) = board.losses
    if loss.parts is None or loss.standstill_s is None or loss.recovered is None:
        raise RuntimeError(f"S{loss.stage} was not recovered: {board.news}")
    steps = [float(board.commits[step]["seconds"]) for step in range(2, kill_step + 1)]
    return Recovered(
        parts={name: round(seconds, 4) for name, seconds in loss.parts.items()},
        total_s=round(loss.standstill_s, 4),
        step_s=round(statistics.median(steps), 4),
        method=loss.recovered["method"],
        donors=len(loss.recovered["donors"]),
        payload_bytes=loss.recovered["bytes"],
    )
