"""What a node can say about itself, for whoever sits in front of it. Read-only: nothing depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from understudy.protocol.ids import PeerId
from understudy.protocol.membership.failure_detector import FailureDetector
from understudy.protocol.membership.seats import Status
from understudy.protocol.node_state import NodeState
from understudy.protocol.observe.ways import Ways
from understudy.protocol.recovery import roles
from understudy.protocol.recovery.claim import OpenClaim
from understudy.protocol.recovery.claimant import Claimant
from understudy.protocol.recovery.phases import ClaimPhase
from understudy.protocol.wire.contact import Reachability

Role = Literal["spare", "claimant", "owner", "gone"]
Hearing = Literal["answers", "silent", "dead", "left", "recovering", "nobody"]

_HEARINGS: dict[Status, Hearing] = {
    Status.ALIVE: "answers",
    Status.SUSPECT: "silent",
    Status.DEAD: "dead",
    Status.LEFT: "left",
}


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The owner of a stage that we listen to, as we see it."""

    stage: int
    hearing: Hearing
    peer: PeerId | None = None
    incarnation: int = 0
    silence_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SelfView:
    """One node as it sees itself."""

    peer: PeerId
    run_id: str
    role: Role
    stage: int | None
    """The stage that we hold or claim."""
    incarnation: int
    doing: str
    """What a claimant is at; why a spare claims nothing although a stage is lost. Else empty."""
    step: int
    """The last step that we committed; a spare: that the swarm committed."""
    total_steps: int
    loss: float | None
    """S0's last word."""
    neighbours: tuple[Neighbour, ...]
    missing: tuple[int, ...]
    """Stages that nobody serves, of those whose owners we must know."""
    reachability: Reachability = "unknown"
    """How others get to this machine."""
    unreached: tuple[tuple[int, str], ...] = ()
    """Stages whose owners no link gets to, each with what was tried."""
    why_no_loss: str = ""
    """Why S0's last word names no loss; empty if it does."""


def self_view(state: NodeState, detector: FailureDetector, claimant: Claimant, ways: Ways) -> SelfView:
    """Put it together; costs no more than a heartbeat."""
    claim = claimant.claim
    return SelfView(
        peer=state.me,
        run_id=state.manifest.run_id(),
        role=_role(state, claim),
        stage=claim.stage if claim else state.tenure.stage if state.tenure else None,
        incarnation=claim.incarnation if claim else state.tenure.incarnation if state.tenure else 0,
        doing=_doing(claim) if claim else claimant.shortage,
        step=state.committed,
        total_steps=state.manifest.step.total_steps,
        loss=state.progress.loss if state.progress else None,
        why_no_loss=state.progress.why_no_loss if state.progress else "",
        neighbours=tuple(_neighbour(state, stage) for stage in sorted(detector.monitored())),
        missing=tuple(sorted(state.membership.missing(detector.watched()))),
        reachability=state.reachability,
        unreached=ways.unreached(),
    )


_ROLES: dict[roles.Role, Role] = {
    roles.Role.SPARE: "spare",
    roles.Role.RESERVE: "spare",
    roles.Role.CLAIMANT: "claimant",
    roles.Role.VOUCHED: "claimant",
    roles.Role.RECOGNISED: "claimant",
    roles.Role.OWNER: "owner",
    roles.Role.GONE: "gone",
}
"""What a person is told."""


def _role(state: NodeState, claim: OpenClaim | None) -> Role:
    return _ROLES[roles.role_of(state, has_claim=claim is not None)]


def _doing(claim: OpenClaim) -> str:
    match claim.phase:
        case ClaimPhase.ASKING:
            return f"asking the owners to vouch: {len(claim.votes)} of {claim.needed} do"
        case ClaimPhase.SETTLING:
            return "waiting for objections"
        case ClaimPhase.FETCHING:
            donors = [f"S{stage}" for stage in claim.plan.donors] if claim.plan else []
            return "fetching weights of " + (" and ".join(donors) or "the founder")
        case ClaimPhase.BUILDING:
            return "building the stage"


def _neighbour(state: NodeState, stage: int) -> Neighbour:
    seat = state.membership.seat(stage)
    if seat is None:
        return Neighbour(stage, "nobody")
    hearing = _HEARINGS[seat.status]
    if hearing == "answers" and seat.state == "recovering":
        hearing = "recovering"
    return Neighbour(stage, hearing, seat.peer, seat.incarnation, max(0.0, state.now - seat.heard))
