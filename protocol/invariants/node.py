"""What must hold inside a core after every event. One that does not is a bug of ours: `LocalProtocolError`.

Those of a node (`STANDING`, `TENURE`, `LEAVING`, `GONE`) and of its `CLAIM` are always asked: a node that breaks them
would hold what is not its own, so it ends instead, loudly, and is replaced. By timeit they cost a spare 0.5 us per
event, an owner 1.3 us, a claimant 2 to 3 us, where `Core.handle` takes some 20 us. The others (8 to 11 us more) look at
every action, seat and microbatch, and are for tests and the simulator (`Core(..., check_every=1)`): what is broken in a
part mostly stays so, so it need not be looked for every time.

Every invariant has a test that breaks it (tests/unit/protocol/test_invariants.py). Some read what their part keeps to
itself: nothing but these tables does, and no part needs to know of them. A little above 300 lines, because the tables
and who asks them belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVarTuple

from understudy.protocol.actions import Action, Run, Send, Stop
from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.ids import DRIVER_STAGE, PeerId, Tenure
from understudy.protocol.invariants.stage import BLOCK_STAGE, COORDINATOR, EDGE, SHELF, SOURCE, STAGE
from understudy.protocol.jobs import ApplyJob
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.edge_host import EdgeHost
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.recovery.claim import OpenClaim
from understudy.protocol.recovery.lifecycle import Lifecycle
from understudy.protocol.recovery.owned_stage import OwnedStage
from understudy.protocol.recovery.phases import ClaimPhase
from understudy.protocol.recovery.roles import ROLE_TRANSITIONS, Role
from understudy.protocol.wire.messages import Grant

Parts = TypeVarTuple("Parts")


@dataclass(slots=True)
class Before:
    """What the events before left, as far as this one must not change it freely."""

    role: Role
    committed: int = 0
    """By our tenure."""
    incarnations: list[int] = field(default_factory=list)
    """The highest known of each stage."""
    updated: int = 0
    """The last step whose update went to the compute thread, or that the weights came from."""
    granted: dict[tuple[int, int], PeerId] = field(default_factory=dict)
    """Whom we recognised as a witness, by stage and incarnation."""


@dataclass(slots=True)
class Inside:
    """A node as its invariants see it."""

    state: NodeState
    lifecycle: Lifecycle
    role: Role
    before: Before

    @property
    def standing(self) -> tuple[object, ...]:
        """All that its role and what belongs to it depend on."""
        state, lifecycle = self.state, self.lifecycle
        return (
            state.tenure,
            state.tenure_state,
            state.is_recognised,
            state.is_in_reserve,
            state.is_stopped,
            lifecycle.host,
            lifecycle.claimant.claim,
        )


# --- the node ---

_CLAIMING = (Role.CLAIMANT, Role.VOUCHED, Role.RECOGNISED)
_PUBLIC = (Role.RECOGNISED, Role.OWNER)


def _has_a_host_for_its_stage(node: Inside) -> bool:
    host, tenure = node.lifecycle.host, node.state.tenure
    if node.role is not Role.OWNER or tenure is None:
        return host is None
    return host is not None and isinstance(host, EdgeHost) == (tenure.stage == DRIVER_STAGE)


STANDING: Mapping[str, Callable[[Inside], bool]] = {
    "a role leads where the table says": lambda node: (
        node.role is node.before.role or (node.before.role, node.role) in ROLE_TRANSITIONS
    ),
    "an owner keeps its tenure and its host": lambda node: not node.role is node.before.role is Role.OWNER,
    "a host exactly for the stage that is served": _has_a_host_for_its_stage,
    "a claim exactly without an owner's tenure": lambda node: (
        (node.lifecycle.claimant.claim is not None) == (node.role in _CLAIMING)
    ),
    "only a tenure is public, and an owner's is": lambda node: node.state.is_recognised == (node.role in _PUBLIC),
}
"""Of a node whose standing changed."""


def _holds_its_seat(node: Inside) -> bool:
    state, tenure = node.state, node.state.tenure
    seat = state.membership.seat(tenure.stage) if tenure is not None else None
    if tenure is None or seat is None:
        return False
    is_ours = seat.peer == tenure.peer == state.me and seat.incarnation == tenure.incarnation
    return is_ours and seat.is_present and seat.state == state.tenure_state


TENURE: Mapping[str, Callable[[Inside], bool]] = {
    "its own tenure is in its view": _holds_its_seat,
    "no commit is undone": lambda node: node.state.committed >= node.before.committed,
}
"""Of a node that holds a stage."""


def _ends_with_a_goodbye(node: Inside) -> bool:
    *others, last = node.state.actions
    return isinstance(last, Stop) and not any(isinstance(action, Stop) for action in others)


LEAVING: Mapping[str, Callable[[Inside], bool]] = {
    "a role leads where the table says": STANDING["a role leads where the table says"],
    "to stop is the last that it does": lambda node: bool(node.state.actions) and _ends_with_a_goodbye(node),
}
"""Of a node that has just stopped."""

GONE: Mapping[str, Callable[[Inside], bool]] = {
    "who said goodbye does nothing": lambda node: not node.state.actions,
}


# --- a claim ---


def _is_held_tenure(claim: OpenClaim, state: NodeState) -> bool:
    tenure = state.tenure
    return tenure is None or (tenure == Tenure(*claim.name, state.me) and state.tenure_state == "recovering")


_GATHERING = (ClaimPhase.FETCHING, ClaimPhase.BUILDING)

CLAIM: Mapping[str, Callable[[OpenClaim, NodeState], bool]] = {
    "owners are asked exactly while asking": (
        lambda claim, _: (claim.asked_at is not None) == (claim.phase is ClaimPhase.ASKING)
    ),
    "a plan exactly while fetching and building": lambda claim, _: (
        (claim.plan is not None) == (claim.phase in _GATHERING)
    ),
    "weights are asked for again only while fetching": lambda claim, _: (
        claim.retry_at is None or claim.phase is ClaimPhase.FETCHING
    ),
    "the stage is built from what is here": lambda claim, _: (
        claim.phase is not ClaimPhase.BUILDING or all(key in claim.payloads for key in claim.wanted)
    ),
    "who recognised the claim was told of it": lambda claim, _: (
        {vote.voter for vote in claim.votes.values()} <= claim.told
    ),
    "who gave weights recognised the claim": lambda claim, _: claim.witnesses.keys() <= claim.votes.keys(),
    "enough recognise a claim that gathers weights": lambda claim, _: (
        claim.is_settled or claim.phase not in _GATHERING or len(claim.votes) >= claim.needed
    ),
    "the tenure that is held is the claim's": _is_held_tenure,
    "only a claim that was asked for is not public": lambda claim, state: (
        state.is_recognised or claim.phase is ClaimPhase.ASKING
    ),
}


# --- everything else ---


def _knows_no_less(node: Inside) -> bool:
    known = node.state.membership.accepted_incarnation
    return all(known(stage) >= before for stage, before in enumerate(node.before.incarnations))


def _is_nowhere_else(node: Inside) -> bool:
    own = node.state.tenure.stage if node.state.tenure is not None else None
    return all(seat.stage == own for seat in node.state.membership.seats_of(node.state.me) if seat.is_present)


VIEW: Mapping[str, Callable[[Inside], bool]] = {
    "accepted incarnations never fall": _knows_no_less,
    "it sees itself nowhere else": _is_nowhere_else,
}


@dataclass(slots=True)
class Deeds:
    """What an event led to, as far as there are rules for it."""

    addressees: list[PeerId]
    granted: list[tuple[tuple[int, int], PeerId]]
    updates: list[int]


def _deeds(actions: list[Action]) -> Deeds:
    """In one go: most events lead to two or three actions, and this is asked after every one."""
    deeds = Deeds([], [], [])
    for action in actions:
        if isinstance(action, Send):
            deeds.addressees.append(action.peer)
            if isinstance(grant := action.message, Grant):
                deeds.granted.append(((grant.stage, grant.incarnation), action.peer))
        elif isinstance(action, Run) and isinstance(action.job, ApplyJob):
            deeds.updates.append(action.job.step)
    return deeds


def _updates_follow(deeds: Deeds, node: Inside) -> bool:
    first = node.before.updated + 1
    return deeds.updates == list(range(first, first + len(deeds.updates)))


def _recognises_one(deeds: Deeds, node: Inside) -> bool:
    known = node.before.granted
    return all(known.setdefault(claim, peer) == peer for claim, peer in deeds.granted)


DEEDS: Mapping[str, Callable[[Deeds, Inside], bool]] = {
    "it says nothing to itself": lambda deeds, node: node.state.me not in deeds.addressees,
    "updates come in the order of their steps": _updates_follow,
    "a witness recognises one claimant of a stage and incarnation": _recognises_one,
}


def demand(rules: Mapping[str, Callable[[*Parts], bool]], *parts: *Parts) -> None:
    """Raise `LocalProtocolError`, naming the first of the rules that does not hold."""
    for name, holds in rules.items():
        if not holds(*parts):
            raise LocalProtocolError(f"an invariant of the core is broken: {name}")


class Invariants:
    """Asks them after every event, and remembers what the next one must not undo."""

    def __init__(self, state: NodeState, lifecycle: Lifecycle, check_every: int) -> None:
        """``check_every``: after so many events even those that are costly are asked; 0: never."""
        role = lifecycle.role
        self._node = Inside(state, lifecycle, role, Before(role))
        self._standing = self._node.standing
        self._check_every, self._events = check_every, 0

    def check(self) -> None:
        """Raises `LocalProtocolError` if the event that was just handled broke one."""
        node, state = self._node, self._node.state
        if (standing := node.standing) != self._standing:
            self._standing = standing
            self._check_standing()
        elif node.role is Role.GONE:
            demand(GONE, node)
        if node.role is Role.GONE:
            return
        if state.tenure is not None:
            demand(TENURE, node)
            node.before.committed = state.committed
        if node.role in _CLAIMING and (claim := node.lifecycle.claimant.claim) is not None:
            demand(CLAIM, claim, state)
        if self._check_every:
            self._check_thoroughly()

    def _check_standing(self) -> None:
        node, before = self._node, self._node.before
        node.role = node.lifecycle.role
        demand(LEAVING if node.role is Role.GONE else STANDING, node)
        before.role, before.committed = node.role, node.state.committed
        before.updated = node.state.committed

    def _check_thoroughly(self) -> None:
        self._events += 1
        if self._node.state.actions:
            self._check_deeds()
        if self._events % self._check_every == 0:
            self._check_parts()

    def _check_deeds(self) -> None:
        deeds = _deeds(self._node.state.actions)
        demand(DEEDS, deeds, self._node)
        if deeds.updates:
            self._node.before.updated = deeds.updates[-1]

    def _check_parts(self) -> None:
        node, state = self._node, self._node.state
        demand(VIEW, node)
        demand(SHELF, node.lifecycle.shelf, state)
        owned = node.lifecycle._owned
        if owned is not None:
            self._check_stage(owned)
        known = state.membership.accepted_incarnation
        node.before.incarnations = [known(stage) for stage in range(state.manifest.stage_count)]

    def _check_stage(self, owned: OwnedStage) -> None:
        demand(STAGE, owned, self._node.state)
        demand(SOURCE, owned._copies)
        if isinstance(owned.host, BlockStage):
            demand(BLOCK_STAGE, owned.host._ledger)
            return
        demand(EDGE, owned.host.ledger)
        if owned.coordinator is not None:
            demand(COORDINATOR, owned.coordinator._ledger, owned.host.ledger)
