"""From iterations to hours, as the paper models it; every assumption is a constant of this file.

The hours are those of the paper's 500M model (its Table 2), because hours of a model that trains in ten minutes say
nothing: how many iterations each strategy needs comes from our runs, what an iteration costs from the paper, what a
recovery costs from our live swarm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ITERATION_S = 91.32
"""The paper's, without failures and without swapping."""
SAVE_S = 3.0
"""Of one checkpoint: every 100 iterations it costs the paper 0.03 s per iteration."""
REDUNDANT_ITERATION_S = 151.04
"""Every stage also computes its successor's forward pass (Bamboo, as the paper measured it)."""

BANDWIDTH_BYTES_PER_S = 500e6 / 8
"""The paper's 500 Mbit/s between nodes."""
STAGE_BYTES = 4 * 4 * (4 * 1024**2 + 3 * 1024 * 2752)
"""float32 weights of a stage of the 500M preset: four layers of hidden size 1024."""
STANDSTILL_S = 0.22
"""Detect, claim, blend: the sum of their medians in ten recoveries of a live swarm (docs/experiments.md)."""
RECOMPUTED_ITERATIONS = 0.5
"""Of the iteration that was under way when a stage was lost, as much is computed again on average: the rejoin.

All stages' work on it, which is pessimistic for the swarm: it loses the microbatches in flight, not the iteration."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What it took to get somewhere."""

    iterations: float
    seconds: float

    @property
    def hours(self) -> float:
        return self.seconds / 3600


def recovery_s(donors: int) -> float:
    """Seconds that a swarm stands still for one lost stage; its new owner's line carries all donors' weights."""
    return STANDSTILL_S + donors * STAGE_BYTES / BANDWIDTH_BYTES_PER_S + RECOMPUTED_ITERATIONS * ITERATION_S


def restore_s() -> float:
    """Seconds until a stage has its checkpoint again, weights and Adam's two moments, from storage."""
    return recovery_s(donors=3)


def going_on(iterations: float, donors: Sequence[int]) -> Cost:
    """A strategy that never rolls back: ``donors`` holds the number of donors of each recovery on the way."""
    return Cost(iterations, iterations * ITERATION_S + sum(recovery_s(count) for count in donors))


def redundant(iterations: float) -> Cost:
    """Redundant computation: the losses of a run without failures, at the price of slower iterations."""
    return Cost(iterations, iterations * REDUNDANT_ITERATION_S)


def checkpointed(steps: float, every: int, chance: float) -> Cost:
    """What is to be expected if all stages roll back to the last multiple of ``every`` steps whenever any is lost.

    ``chance`` is that of losing a stage in an iteration. A microbatch is a pure function of its step, so a step that
    is computed again gives the same weights to the bit (tests/unit/benchmarks/test_convergence.py): the losses are
    those of a run without failures, only later.
    """
    whole, rest = divmod(steps, every)
    last = math.ceil(rest)
    iterations = whole * _iterations(every, chance) + _iterations(last, chance) - (last - rest)
    seconds = iterations * (ITERATION_S + SAVE_S / every) + chance * iterations * restore_s()
    return Cost(iterations, seconds)


def _iterations(steps: int, chance: float) -> float:
    """Expected iterations from a checkpoint to ``steps`` behind it.

    A loss just before the first costs nothing, and the iteration that meets one computes the first step anew: the
    rest is waiting for ``steps - 1`` iterations in a row without a loss.
    """
    if not steps or not chance:
        return steps
    return 1 + ((1 - chance) ** (1 - steps) - 1) / chance
