"""Understudy itself: a local swarm of real processes, nobody killed."""

from __future__ import annotations

import asyncio
import tempfile
from itertools import pairwise
from pathlib import Path

import msgspec

from bootstrap.local import LocalPlan, LocalSwarm
from protocol.manifest import RunManifest


def step_seconds(source: str, manifest: RunManifest) -> list[float]:
    """Seconds from each commit to the next, by the driver's own events. The manifest was read from ``source``."""
    with tempfile.TemporaryDirectory(prefix="understudy-throughput-") as folder:
        plan = LocalPlan(source, manifest, 0, (), Path(folder))
        asyncio.run(LocalSwarm(plan, lambda _: None).run())
        lines = (Path(folder) / "events.jsonl").read_bytes().splitlines()
    events = [msgspec.json.decode(line) for line in lines]
    times = [event["time"] for event in events if event["event"] == "step.committed"]
    return [later - earlier for earlier, later in pairwise(times)]
