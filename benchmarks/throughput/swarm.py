"""Understudy itself: a local swarm of real processes, nobody killed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from benchmarks.swarms import run_swarm
from benchmarks.throughput.results import WARM_UP
from understudy.bootstrap.founding import load_manifest
from understudy.bootstrap.local.run import Place

SEARCH_STEPS = 19
"""Until S0 has found the number of microbatches in flight: one step to begin with, and three for each of six sizes."""


def step_seconds(source: str, steps: int, places: tuple[Place, ...] = ()) -> list[float]:
    """Seconds from each commit to the next, by the driver's own events, once the window is found."""
    uncounted = WARM_UP if load_manifest(source).step.window else SEARCH_STEPS
    manifest = load_manifest(source, uncounted + steps)
    _, events = run_swarm(source, manifest, places=places)
    return settled_seconds(events, is_searching=not manifest.step.window)


def settled_seconds(events: list[dict[str, Any]], *, is_searching: bool) -> list[float]:
    """Of the steps behind ``window.settled``, or behind the warm-up if the window is given.

    Raises `RuntimeError` if the search did not end.
    """
    found = [event["step"] for event in events if event["event"] == "window.settled"]
    if is_searching and not found:
        raise RuntimeError("S0 did not find its window in time: was a step disturbed?")
    first = found[0] if is_searching else WARM_UP
    times = [event["time"] for event in events if event["event"] == "step.committed" and event["step"] >= first]
    return [later - earlier for earlier, later in pairwise(times)]
