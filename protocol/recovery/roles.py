"""The roles of a node, as a table: what it is, derived from what it holds, and what it may become within one event."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType

from understudy.protocol.node_state import NodeState


class Role(Enum):
    """What a node is to the others."""

    SPARE = auto()
    """Waits in front: it publishes itself and looks for work all the time."""
    RESERVE = auto()
    """Waits behind enough others: it publishes nothing, and reads little and seldom."""
    CLAIMANT = auto()
    """Asks for a stage; nobody recognised it yet."""
    VOUCHED = auto()
    """Holds the stage for the witnesses that recognised it, while others are still to be asked."""
    RECOGNISED = auto()
    """Holds the stage for all to see, and gathers its weights."""
    OWNER = auto()
    """Serves the stage."""
    GONE = auto()
    """Said goodbye."""


_R = Role

ROLE_TRANSITIONS: Mapping[tuple[Role, Role], str] = MappingProxyType(
    {
        (_R.SPARE, _R.RESERVE): "enough spares that come before us wait for work already",
        (_R.SPARE, _R.CLAIMANT): "a hole is ours to take",
        (_R.SPARE, _R.RECOGNISED): "nobody can vouch for an untrained stage: the claim lies open for all at once",
        (_R.RESERVE, _R.SPARE): "there is a hole, or those before us found work; we look around before anything else",
        (_R.CLAIMANT, _R.VOUCHED): "the first witness recognised us",
        (_R.CLAIMANT, _R.RECOGNISED): "the only witness recognised us; or refused, and another stage needs none",
        (_R.CLAIMANT, _R.SPARE): "refused, superseded, or no witness answers",
        (_R.CLAIMANT, _R.RESERVE): "as above, and enough others wait",
        (_R.VOUCHED, _R.RECOGNISED): "every witness recognised us",
        (_R.VOUCHED, _R.CLAIMANT): "as from there to spare, and another hole is ours to take",
        (_R.VOUCHED, _R.SPARE): "refused, superseded, or no witness answers",
        (_R.VOUCHED, _R.RESERVE): "as above, and enough others wait",
        (_R.RECOGNISED, _R.OWNER): "the stage is built",
        (_R.RECOGNISED, _R.CLAIMANT): "as from there to spare, and another hole is ours to take",
        (_R.RECOGNISED, _R.SPARE): "superseded, or every witness is gone",
        (_R.RECOGNISED, _R.RESERVE): "as above, and enough others wait",
        (_R.OWNER, _R.SPARE): "retired: another holds the stage, or we gave it up; we look around before anything else",
        (_R.SPARE, _R.GONE): "asked to, or the run is over",
        (_R.RESERVE, _R.GONE): "asked to, or the run is over",
        (_R.CLAIMANT, _R.GONE): "asked to, or the run is over",
        (_R.VOUCHED, _R.GONE): "asked to, or the run is over",
        (_R.RECOGNISED, _R.GONE): "asked to, or the run is over",
        (_R.OWNER, _R.GONE): "asked to, the run is over, or the stage's numbers are broken",
    }
)
"""Why a node that was the first is the second after an event. An event may bring several steps at once."""


def role_of(state: NodeState, *, has_claim: bool) -> Role:
    """What a node is. Nothing keeps it: it follows from what the node holds."""
    if state.is_stopped:
        return Role.GONE
    if state.tenure is None:
        if has_claim:
            return Role.CLAIMANT
        return Role.RESERVE if state.is_in_reserve else Role.SPARE
    if state.tenure_state == "serving":
        return Role.OWNER
    return Role.RECOGNISED if state.is_recognised else Role.VOUCHED
