"""Runs one local swarm and watches its processes."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

from benchmarks.memory.results import MemoryResult, Process
from benchmarks.memory.watch import Watcher
from benchmarks.origin import Origin
from understudy.bootstrap.founding import load_manifest
from understudy.bootstrap.local.faults import Fault
from understudy.bootstrap.local.monitor import Board
from understudy.bootstrap.local.run import LocalPlan, LocalSwarm

SAMPLES = 200
"""Of each process over the whole run, at most."""
SPARES = 2
"""That wait: when one becomes an owner, the next one is started."""


def planned_kills(kills: int, steps: int, last_stage: int) -> tuple[Fault, ...]:
    """So many, evenly over the run, of the stages between S1 and Sn in turn: the others live through all of them."""
    middle = tuple(range(2, last_stage)) or (last_stage,)
    distance = steps / (kills + 1)
    return tuple(Fault(middle[k % len(middle)], round((k + 1) * distance)) for k in range(kills))


async def measure(source: str, steps: int, kills: int) -> MemoryResult:
    """Train so many steps, lose and recover so many stages. Raises `RuntimeError` if one was not recovered."""
    manifest = load_manifest(source, steps)
    faults = planned_kills(kills, steps, manifest.last_stage)
    with tempfile.TemporaryDirectory(prefix="understudy-memory-") as folder:
        plan = LocalPlan(source, manifest, min(SPARES, kills), faults, Path(folder))
        board, processes = await _watched(LocalSwarm(plan, lambda _: None), max(1, steps // SAMPLES))
    recoveries = sum(loss.recovered is not None for loss in board.losses)
    if recoveries != kills or board.missing_steps:
        raise RuntimeError(
            f"{recoveries} of {kills} stages were recovered, {len(board.missing_steps)} steps are missing"
        )
    struck = tuple((loss.stage, loss.step) for loss in board.losses)
    return MemoryResult(manifest, steps, struck, recoveries, tuple(processes), Origin.here("cpu"))


async def _watched(swarm: LocalSwarm, sample_every: int) -> tuple[Board, list[Process]]:
    watcher = Watcher(swarm, sample_every)
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watcher.run())
        board = await swarm.run()
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    return board, sorted(watcher.processes.values(), key=lambda process: (process.stage, process.began_at_step))
