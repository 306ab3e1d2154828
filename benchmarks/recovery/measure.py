"""Runs the swarms, and takes the time of what happens in them from their events."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from benchmarks.origin import Origin
from benchmarks.recovery.raw import RawPeers
from benchmarks.recovery.results import Recovered, RecoveryResult
from benchmarks.recovery.scenarios import Scenario
from understudy.bootstrap.founding import load_manifest
from understudy.bootstrap.local.faults import Fault
from understudy.bootstrap.local.monitor import Board
from understudy.bootstrap.local.run import LocalPlan, LocalSwarm
from understudy.protocol.manifest import RunManifest

DONORS = 2


async def measure(scenario: Scenario, runs: int) -> AsyncIterator[RecoveryResult]:
    """So many whole swarms, one after the other; after each, the result so far.

    What raw streams carry is measured before and after each swarm.
    """
    manifest = load_manifest(scenario.source, scenario.kill_step + scenario.steps_after)
    result = RecoveryResult(scenario.name, manifest, scenario.stage, (), Origin.here())
    with tempfile.TemporaryDirectory(prefix="understudy-recovery-") as folder:
        plans = [_plan(scenario, manifest, Path(folder) / f"run-{number}") for number in range(runs)]
        found = (
            _beside_raw_streams(scenario, plans, Path(folder)) if scenario.has_yardstick else _alone(scenario, plans)
        )
        async for recovered in found:
            result = msgspec.structs.replace(result, runs=(*result.runs, recovered))
            yield result


def _plan(scenario: Scenario, manifest: RunManifest, folder: Path) -> LocalPlan:
    return LocalPlan(scenario.source, manifest, 1, (Fault(scenario.stage, scenario.kill_step),), folder)


async def _alone(scenario: Scenario, plans: list[LocalPlan]) -> AsyncIterator[Recovered]:
    for plan in plans:
        yield await _swarm(scenario, plan)


async def _beside_raw_streams(scenario: Scenario, plans: list[LocalPlan], folder: Path) -> AsyncIterator[Recovered]:
    payload_bytes = plans[0].manifest.model.stage_bytes(scenario.stage)
    async with RawPeers.open(DONORS, payload_bytes, folder) as peers:
        before = await _raw(peers)
        for plan in plans:
            recovered = await _swarm(scenario, plan)
            after = await _raw(peers)
            yield recovered.beside((before[0], after[0]), (before[1], after[1]))
            before = after


async def _raw(peers: RawPeers) -> tuple[float, float]:
    """Seconds of a transfer from one sender, and of two side by side."""
    return round(await peers.seconds(1), 4), round(await peers.seconds(DONORS), 4)


async def _swarm(scenario: Scenario, plan: LocalPlan) -> Recovered:
    """One swarm. Raises `RuntimeError` if the stage was not recovered."""
    return recovered_from(await LocalSwarm(plan, lambda _: None).run(), scenario.kill_step)


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
