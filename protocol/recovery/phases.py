"""The phases of a claim, as a table: which step leads from which phase to which. What is not in it cannot happen.

::

    (none) --> ASKING ----> FETCHING --> BUILDING --> (none): the stage is built, its claimant serves
       |        ^              |  ^         |
       |        +--------------+  +---------+
       +-----> SETTLING -------^                      and from every phase back to (none), when the claim is abandoned
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType

from understudy.protocol.errors import LocalProtocolError


class ClaimPhase(Enum):
    """What a claim is at."""

    ASKING = auto()
    """The witnesses, one after the other, ascending."""
    SETTLING = auto()
    """A swarm that begins: nobody serves, nobody to ask. The claim lies open in the DHT."""
    FETCHING = auto()
    """The donations of the plan, side by side."""
    BUILDING = auto()
    """The compute thread blends or initialises."""


class ClaimStep(Enum):
    """What happens to a claim."""

    ASK = auto()
    LIE_OPEN = auto()
    RECOGNISED = auto()
    SETTLED = auto()
    GATHERED = auto()
    DONOR_FAILED = auto()
    FOUNDER_ASKED = auto()
    UNUSABLE = auto()
    COPY_UNUSABLE = auto()
    BUILT = auto()
    ABANDONED = auto()


_P, _S = ClaimPhase, ClaimStep

CLAIM_TRANSITIONS: Mapping[tuple[ClaimPhase | None, ClaimStep], ClaimPhase | None] = MappingProxyType(
    {
        (None, _S.ASK): _P.ASKING,  # a hole is ours to take, and living witnesses can vouch for us
        (None, _S.LIE_OPEN): _P.SETTLING,  # an untrained stage that nobody can vouch for
        (_P.ASKING, _S.RECOGNISED): _P.FETCHING,  # every witness recognised us
        (_P.ASKING, _S.ABANDONED): None,  # refused, superseded, or no witness answers
        (_P.SETTLING, _S.SETTLED): _P.FETCHING,  # it lay open for long enough, and nobody was before us
        (_P.SETTLING, _S.ABANDONED): None,  # superseded
        (_P.FETCHING, _S.GATHERED): _P.BUILDING,  # every donation of the plan is here
        (_P.FETCHING, _S.DONOR_FAILED): _P.ASKING,  # it may hold newer weights, or the survivors must do without it
        (_P.FETCHING, _S.FOUNDER_ASKED): _P.FETCHING,  # there was no witness, and nobody else has initial weights
        (_P.FETCHING, _S.ABANDONED): None,  # superseded
        (_P.BUILDING, _S.UNUSABLE): _P.FETCHING,  # the next rung of the ladder
        (_P.BUILDING, _S.COPY_UNUSABLE): _P.ASKING,  # our own copy is no good: nobody prepared weights for us yet
        (_P.BUILDING, _S.BUILT): None,  # the lifecycle takes over: we serve
        (_P.BUILDING, _S.ABANDONED): None,  # superseded; what was built is released
    }
)


def next_phase(phase: ClaimPhase | None, step: ClaimStep) -> ClaimPhase | None:
    """Where the step leads to; None is no claim. Raises `LocalProtocolError` for a step that has no place there."""
    try:
        return CLAIM_TRANSITIONS[phase, step]
    except KeyError:
        where = "no claim" if phase is None else f"a claim in {phase.name}"
        raise LocalProtocolError(f"{step.name} has no place in {where}") from None
