"""One swarm of a checkout, and what its events say of speed and recovery."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

KILLED_STAGE = 2
KILL_STEP = 15
"""A fault of `understudy local`: S2 dies once this step is committed."""
COLD_STEPS = 3
"""The first steps of a run, and the first after a recovery, are no measure of speed."""
SWARM_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Swarm:
    """What one swarm took: the median of its steps, and how long it stood still. Seconds."""

    step_s: float
    standstill_s: float


def run_swarm_of(checkout: Path, steps: int) -> Swarm:
    """Let the demo of a checkout with an environment of its own train, one peer killed.

    Raises `RuntimeError` if it fails, with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="understudy-versions-") as folder:
        command = [str(checkout / ".venv/bin/understudy"), "local", "tiny", "--steps", str(steps), "--spares", "1"]
        command += ["--kill", f"{KILLED_STAGE}@{KILL_STEP}", "--dir", str(Path(folder) / "run")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SWARM_TIMEOUT_S)
        if done.returncode != 0:
            raise RuntimeError(f"the swarm of {checkout} failed with status {done.returncode}: {done.stderr[-2000:]}")
        lines = (Path(folder) / "run" / "events.jsonl").read_bytes().splitlines()
    return swarm_from([msgspec.json.decode(line) for line in lines])


def swarm_from(events: Sequence[dict[str, Any]]) -> Swarm:
    """What the merged events of a swarm say. Raises `RuntimeError` if nobody was killed or no step came after."""
    struck = [event["time"] for event in events if event["event"] == "fault.killed"]
    commits = [event for event in events if event["event"] == "step.committed"]
    after = [event["time"] for event in commits if struck and event["time"] > struck[0]]
    if not after:
        raise RuntimeError("no step was committed after a kill")
    interrupted = range(KILL_STEP, KILL_STEP + COLD_STEPS + 2)
    warm = [event["seconds"] for event in commits if event["step"] > COLD_STEPS and event["step"] not in interrupted]
    return Swarm(median(warm), min(after) - struck[0])


def ratio_line(name: str, before: Sequence[float], after: Sequence[float]) -> str:
    """Medians of both, and the median of the ratios of each round; above 1: it became slower."""
    ratios = [new / old for old, new in zip(before, after, strict=True)]
    spread = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    return f"{name}: {median(before):.4f} s before, {median(after):.4f} s after, ratio {median(ratios):.3f} ({spread})"
