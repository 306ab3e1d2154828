"""Which stages fail when: a pure function of rate and seed, the same for every strategy."""

from __future__ import annotations

import hashlib

RATES = {0: 0.0, 5: 0.0009, 10: 0.002, 16: 0.004}
"""Percent of stages lost per hour -> probability that a block stage is lost in an iteration (the paper's own code)."""


def lost_stages(percent: int, seed: int, iteration: int, stages: tuple[int, ...], factor: float) -> tuple[int, ...]:
    """Those of ``stages`` that vanish just before an iteration, counted from 1.

    ``factor`` times as often as the rate says.
    One draw for each (seed, iteration, stage), whichever stages are asked about; a stage lost at one rate is lost
    at every higher one. Nothing is lost before the second iteration: until then there is nothing to lose.
    """
    if iteration < 2:
        return ()
    return tuple(stage for stage in stages if _draw(seed, iteration, stage) < factor * RATES[percent])


def chance_of_loss(percent: int, stages: int, factor: float) -> float:
    """The probability that at least one of so many stages is lost in an iteration."""
    return 1.0 - (1.0 - factor * RATES[percent]) ** stages


def _draw(seed: int, iteration: int, stage: int) -> float:
    """Uniform in [0, 1)."""
    digest = hashlib.sha256(f"failure/{seed}/{iteration}/{stage}".encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64
