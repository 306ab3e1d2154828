"""From what a lost stage is rebuilt: donors, coefficients, and the ladder of methods.

CheckFree (arXiv 2506.15461, Algorithm 1) rebuilds stage i from its neighbours::

    W(i) = ( w(i-1) W(i-1) + w(i+1) W(i+1) ) / ( w(i-1) + w(i+1) )

where w is the squared L2 norm of a neighbour's last gradient. We measure it before clipping and raise
it to ``norm_exponent / 2``, so exponent 2 is the paper's text, 1 its reference code's plain norm and 0 a
plain average. This file holds the formula's coefficients, once; node/weights.py `blend` applies them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol.ids import DRIVER_STAGE, PeerId
from protocol.manifest import RecoverySettings
from protocol.messages import Donation


@dataclass(frozen=True, slots=True)
class Witness:
    """A nearest survivor that recognised a claim, with the weights that it offers, if any."""

    stage: int
    peer: PeerId
    step: int
    donation: Donation | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stage is rebuilt from, and why."""

    method: str
    reason: str
    step: int
    """The last committed step that the rebuilt stage stands at."""
    donors: tuple[Witness, ...] = ()
    coefficients: tuple[float, ...] = ()
    learning_rate_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Weighting:
    """Coefficients that sum to one; ``fallback`` says why they are uniform although the norms should decide."""

    coefficients: tuple[float, ...]
    fallback: str | None = None


def weigh(squared_norms: Sequence[float | None], exponent: int) -> Weighting:
    """Blend coefficients from the donors' squared gradient norms.

    Each is norm**exponent over the sum of all. If a norm is missing or not finite, or all are zero,
    the average is uniform and the reason is given.
    """
    count = len(squared_norms)
    uniform = (1.0 / count,) * count
    if exponent == 0:
        return Weighting(uniform)
    if any(norm is None or not math.isfinite(norm) or norm < 0 for norm in squared_norms):
        return Weighting(uniform, "a donor's gradient norm is missing or not finite")
    weights = [norm ** (exponent / 2) for norm in squared_norms if norm is not None]
    total = sum(weights)
    if total == 0:
        return Weighting(uniform, "all gradient norms are zero")
    if not math.isfinite(total):
        return Weighting(uniform, "the gradient norms are too large to add")
    return Weighting(tuple(weight / total for weight in weights))


@dataclass(frozen=True, slots=True)
class Case:
    """A lost stage and what its nearest survivors offer."""

    stage: int
    witnesses: tuple[Witness, ...]
    settings: RecoverySettings

    @property
    def step(self) -> int:
        return max((witness.step for witness in self.witnesses), default=0)

    def block_donors(self) -> list[Witness]:
        """The nearest block stage with weights below the lost one and the nearest above it."""
        if self.stage == DRIVER_STAGE:
            return []
        offering = [w for w in self.witnesses if w.donation is not None and w.stage != DRIVER_STAGE]
        below = [w for w in offering if w.stage < self.stage]
        above = [w for w in offering if w.stage > self.stage]
        return [*(sorted(below, key=_stage)[-1:]), *(sorted(above, key=_stage)[:1])]


def _stage(witness: Witness) -> int:
    return witness.stage


Rung = Callable[[Case], Plan | None]


def _before_training(case: Case) -> Plan | None:
    """Nothing was trained yet: the seed's initialisation is exact."""
    if case.step > 0:
        return None
    return Plan("seed", "no step is committed yet, so the seed's initialisation is exact", 0)


def _checkfree(case: Case) -> Plan | None:
    """Both sides have weights: the gradient-weighted average."""
    donors = case.block_donors()
    if len(donors) < 2:
        return None
    norms = [donor.donation.squared_gradient_norm for donor in donors if donor.donation]
    weighting = weigh(norms, case.settings.norm_exponent)
    sides = " and ".join(f"S{donor.stage}" for donor in donors)
    reason = f"weights of {sides} by gradient norm to the power {case.settings.norm_exponent}"
    if weighting.fallback:
        reason = f"uniform average of {sides}: {weighting.fallback}"
    return Plan(
        "checkfree", reason, case.step, tuple(donors), weighting.coefficients, case.settings.learning_rate_scale
    )


def _copy(case: Case) -> Plan | None:
    """Only one side has weights: a copy of it."""
    donors = case.block_donors()
    if not donors:
        return None
    reason = f"S{donors[0].stage} is the only neighbour with weights"
    return Plan("copy", reason, case.step, tuple(donors[:1]), (1.0,), case.settings.learning_rate_scale)


def _seed(case: Case) -> Plan | None:
    """The last rung: begin the stage anew."""
    return Plan("seed", "no survivor holds weights for this stage", case.step)


LADDER: tuple[Rung, ...] = (_before_training, _checkfree, _copy, _seed)
"""Sources of a lost stage, best first. Later rungs are added here and nowhere else."""


def plan_recovery(case: Case, first_rung: int = 0) -> tuple[Plan, int]:
    """The best plan from ``first_rung`` on, and its rung: where a failed attempt goes on below it."""
    for number, rung in enumerate(LADDER[first_rung:], start=first_rung):
        plan = rung(case)
        if plan is not None:
            return plan, number
    return Plan("seed", "all better sources failed", case.step), len(LADDER)
