"""Whole swarms of real processes on this machine, from the first step to the last."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from understudy.bootstrap.local.faults import Fault
from understudy.bootstrap.local.monitor import Board
from understudy.bootstrap.local.run import LocalPlan, LocalSwarm, Place
from understudy.protocol.manifest import RunManifest


def run_swarm(
    source: str,
    manifest: RunManifest,
    spares: int = 0,
    faults: tuple[Fault, ...] = (),
    places: tuple[Place, ...] = (),
) -> tuple[Board, list[dict[str, Any]]]:
    """Train all steps of a manifest; what was seen, and every event in order of time. Leaves no file behind.

    Raises like `LocalSwarm.run`.
    """
    with tempfile.TemporaryDirectory(prefix="understudy-benchmark-") as folder:
        plan = LocalPlan(source, manifest, spares, faults, Path(folder), places=places)
        board = asyncio.run(LocalSwarm(plan, lambda _: None).run())
        lines = (Path(folder) / "events.jsonl").read_bytes().splitlines()
    return board, [msgspec.json.decode(line) for line in lines]
