"""From what a lost stage is rebuilt: donors, coefficients, and the ladder of methods.

CheckFree (arXiv 2506.15461, Algorithm 1) rebuilds stage i from its neighbours::

    W(i) = ( w(i-1) W(i-1) + w(i+1) W(i+1) ) / ( w(i-1) + w(i+1) )

where w is the squared L2 norm of a neighbour's last gradient. We measure it before clipping and raise
it to ``norm_exponent / 2``, so exponent 2 is the paper's text, 1 its reference code's plain norm and 0 a
plain average. This file holds the formula's coefficients, once; node/compute/weights.py `blend` applies them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from understudy.protocol.ids import DRIVER_STAGE
from understudy.protocol.membership.placement import STEPS_APART_MAX
from understudy.protocol.recovery.case import NO_STAGE, Plan, RecoveryCase, Source
from understudy.protocol.routing import partners


@dataclass(frozen=True, slots=True)
class Weighting:
    """Coefficients that sum to one; ``fallback`` says why they are uniform although the norms should decide."""

    coefficients: tuple[float, ...]
    fallback: str | None = None


NORMS_APART_MAX = 1000.0
"""A donor says its own norm: one that says so much more than another would be all of the blend."""


def weigh(squared_norms: Sequence[float | None], exponent: int) -> Weighting:
    """Blend coefficients from the donors' squared gradient norms.

    Each is norm**exponent over the sum of all. If a norm is missing or not finite, or all are zero, or one is
    `NORMS_APART_MAX` times another or more, the average is uniform and the reason is given.
    """
    count = len(squared_norms)
    uniform = (1.0 / count,) * count
    if exponent == 0:
        return Weighting(uniform)
    if any(norm is None or not math.isfinite(norm) or norm < 0 for norm in squared_norms):
        return Weighting(uniform, "a donor's gradient norm is missing or not finite")
    known = [norm for norm in squared_norms if norm is not None]
    if any(known) and min(known) <= max(known) / NORMS_APART_MAX**2:
        return Weighting(uniform, f"one gradient norm is {NORMS_APART_MAX:.0f} times another or more")
    weights = [norm ** (exponent / 2) for norm in known]
    total = sum(weights)
    if total == 0:
        return Weighting(uniform, "all gradient norms are zero")
    if not math.isfinite(total):
        return Weighting(uniform, "the gradient norms are too large to add")
    return Weighting(tuple(weight / total for weight in weights))


Rung = Callable[[RecoveryCase], Plan | None]


def _before_training(case: RecoveryCase) -> Plan | None:
    """Nothing was trained yet: what the run begins with is exact."""
    if case.step > 0:
        return None
    return _from_the_start(case, "no step is committed yet, so", ("are exact", "is exact"))


def _from_the_start(case: RecoveryCase, why: str, verdicts: tuple[str, str] = ("", "")) -> Plan:
    """What the run began with: the weights that its manifest names, or the seed's. ``verdicts`` are on the two."""
    if case.initial is not None:
        return Plan("initial", f"{why} the run's initial weights {verdicts[0]}".strip(), case.step, (case.initial,))
    if case.is_initial_lost:
        return Plan(
            "seed", f"{why} the seed's initialisation, as the founder does not deliver the initial weights", case.step
        )
    return Plan("seed", f"{why} the seed's initialisation {verdicts[1]}".strip(), case.step)


def _edge_copies(case: RecoveryCase) -> Plan | None:
    """S0 from the copies that are kept of it, both parts as of the same commit if there is one."""
    if case.stage != DRIVER_STAGE:
        return None
    embeddings, heads = case.sources("embedding"), case.sources("head")
    commits = {_commit(source) for source in embeddings} & {_commit(source) for source in heads}
    if commits:
        commit = max(commits)
        # Of several holders the nearest to where the part is used, so the two parts come side by side; ours at best.
        ranked = (embeddings, sorted(heads, key=lambda source: (source.stage != NO_STAGE, -source.stage)))
        chosen = [next(s for s in parts if _commit(s) == commit) for parts in ranked]
        reason = f"embedding and head as of step {commit[1]}"
        return Plan("standby", reason, case.step, (*chosen, *_moments(case, commit)))
    latest = [max(parts, key=_commit) for parts in (embeddings, heads) if parts]
    if not latest:
        return None
    said = " and ".join(f"the {s.donation.part} as of step {s.donation.step}" for s in latest)
    if len(latest) > 1:
        return Plan("standby", said, case.step, tuple(latest))
    rest = "the seed" if case.initial is None else "the run's initial weights"
    # What is loaded later wins, so the copy goes behind the weights that it replaces a part of.
    sources = (*filter(None, (case.initial,)), *latest)
    return Plan("standby", f"{said}, the rest from {rest} because its copy was lost too", case.step, sources)


def _commit(copy: Source) -> tuple[int, int]:
    """What a copy is as of: a rebuilt stage may hold other weights at a step than its predecessor held."""
    return (copy.donation.incarnation, copy.donation.step)


def _standby(case: RecoveryCase) -> Plan | None:
    """A block stage from the newest copy of itself that is not too old; from our own, if another's is not much newer.

    Our own the owner gave us; another's is only its holder's word, so it is never further than anybody stands. Our own
    may be, by a step: the owner died right after an update that the others are about to do.
    """
    copies = [] if case.stage == DRIVER_STAGE else case.sources("stage")
    fresh = [
        copy for copy in copies if _age_min(copy) <= case.step - copy.donation.step <= case.settings.standby_age_max
    ]
    if not fresh:
        return None
    newest = max(copy.donation.step for copy in fresh)
    own = [c for c in fresh if c.stage == NO_STAGE and newest - c.donation.step <= case.settings.standby_every]
    chosen = max(own or fresh, key=lambda copy: (copy.donation.step, copy.donation.incarnation))
    step = max(case.step, chosen.donation.step)
    age = step - chosen.donation.step
    reason = f"its own copy as of step {chosen.donation.step}, {age} step{'' if age == 1 else 's'} old"
    return Plan("standby", reason, step, (chosen, *_moments(case, _commit(chosen))))


def _age_min(copy: Source) -> int:
    return -STEPS_APART_MAX if copy.stage == NO_STAGE else 0


def _moments(case: RecoveryCase, commit: tuple[int, int]) -> tuple[Source, ...]:
    """The newest state of the stage's optimizer that is not newer than the weights and of the same tenure, if any."""
    incarnation, step = commit
    fitting = [
        copy
        for copy in case.sources("moments")
        if copy.donation.incarnation == incarnation and 0 <= step - copy.donation.step <= case.settings.standby_age_max
    ]
    newest = max((copy.donation.step for copy in fitting), default=None)
    return tuple([copy for copy in fitting if copy.donation.step == newest][:1])


def _mirror(case: RecoveryCase) -> Plan | None:
    """CheckFree+: the swapped partner has learned to stand in, so an edge stage is a copy of it.

    The other stage of a swapped pair is a copy as well if the run says so (``swapped_pairs``); where it
    has two partners (the middle one of three) it is averaged.
    """
    if case.stage == DRIVER_STAGE:
        return None
    learned = partners(case.settings.method, case.block_stages, case.stage)
    is_edge = case.stage in (1, case.block_stages)
    if len(learned) != 1 or not (is_edge or case.settings.swapped_pairs == "mirror"):
        return None
    (partner,) = learned
    sources = [source for source in case.donors() if source.stage == partner]
    if not sources:
        return None
    reason = f"S{partner} changes places with it on odd microbatches and has learned to stand in"
    return Plan("mirror", reason, case.step, tuple(sources[-1:]), (1.0,), case.settings.learning_rate_scale)


def _checkfree(case: RecoveryCase) -> Plan | None:
    """Both sides have weights: the gradient-weighted average."""
    sources = case.block_sources()
    if len(sources) < 2:
        return None
    exponent = case.settings.norm_exponent
    weighting = weigh([source.donation.squared_gradient_norm for source in sources], exponent)
    sides = " and ".join(f"S{source.stage}" for source in sources)
    reason = f"weights of {sides} by gradient norm to the power {exponent}"
    if weighting.fallback:
        reason = f"uniform average of {sides}: {weighting.fallback}"
    scale = case.settings.learning_rate_scale
    return Plan("checkfree", reason, case.step, tuple(sources), weighting.coefficients, scale)


def _copy(case: RecoveryCase) -> Plan | None:
    """Only one side has weights: a copy of it."""
    sources = case.block_sources()
    if not sources:
        return None
    reason = f"S{sources[0].stage} is the only neighbour with weights"
    return Plan("copy", reason, case.step, tuple(sources[:1]), (1.0,), case.settings.learning_rate_scale)


def _seed(case: RecoveryCase) -> Plan | None:
    """The last rung: begin the stage anew."""
    if case.stage == DRIVER_STAGE:
        return _from_the_start(case, "no copy of S0 is left, neither of its embedding nor of its head:")
    return _from_the_start(case, "no survivor holds weights for this stage:")


LADDER: tuple[Rung, ...] = (_before_training, _standby, _edge_copies, _mirror, _checkfree, _copy, _seed)
"""Sources of a lost stage, best first. Later rungs are added here and nowhere else."""


def plan_recovery(case: RecoveryCase, first_rung: int = 0) -> tuple[Plan, int]:
    """The best plan from ``first_rung`` on, and its rung: where a failed attempt goes on below it."""
    for number, rung in enumerate(LADDER[first_rung:], start=first_rung):
        plan = rung(case)
        if plan is not None:
            return plan, number
    return Plan("seed", "all better sources failed", case.step), len(LADDER)
