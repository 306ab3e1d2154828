"""A claim's witnesses: who they are, and asking them one after the other until all recognise us."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, auto

from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.membership.placement import nearest_survivors
from understudy.protocol.node_state import NodeState
from understudy.protocol.recovery.claim import OpenClaim
from understudy.protocol.recovery.driver_backup import holding_stages
from understudy.protocol.recovery.ladder import GrantedDonations
from understudy.protocol.wire.messages import Claim, Grant

CLAIM_REPEAT_S = 1.0
"""A claim that a witness has not answered is sent again after this long."""
ANSWER_LIMIT_S = 60.0
"""A witness that lives but does not grant within this time ends the claim; copying its weights takes seconds."""


class Outcome(Enum):
    """How far the asking is."""

    OPEN = auto()
    """A witness was asked, and is to answer."""
    RECOGNISED = auto()
    """All recognise us."""
    DESERTED = auto()
    """Nobody is left to ask, and nobody recognised us."""
    UNANSWERED = auto()
    """The one that was asked lives, and does not answer."""


class Asking:
    """What a claim in `ClaimPhase.ASKING` does."""

    def __init__(self, state: NodeState) -> None:
        self._state = state

    def survivors(self, stage: int, gone: Collection[PeerId] = ()) -> list[int]:
        """Who can vouch for a recovery of the stage, ascending: its nearest survivors; of S0 also who holds copies."""

        def may_vouch(other: int) -> bool:
            peer = self._state.membership.serving_peer(other)
            return peer is not None and peer not in gone

        survivors = nearest_survivors(stage, self._state.manifest.stage_count, may_vouch)
        if stage == DRIVER_STAGE:  # a neighbour that was lost too may be there again, with no copy to give
            survivors = sorted({*survivors, *filter(may_vouch, holding_stages(self._state.manifest))})
        return survivors

    def _remaining(self, claim: OpenClaim) -> list[int]:
        """The survivors that have not yet recognised us; forgets whoever is none any more."""
        survivors = self.survivors(claim.stage, claim.gone)
        owner = self._state.membership.serving_peer
        claim.witnesses = {
            stage: witness
            for stage, witness in claim.witnesses.items()
            if stage in survivors and witness.peer == owner(stage)
        }
        return [stage for stage in survivors if stage not in claim.witnesses]

    def ask_next(self, claim: OpenClaim) -> Outcome:
        """Ask the next witness, if there is one left."""
        remaining, laggards = self._remaining(claim), claim.laggards(self._state.now)
        if remaining:
            claim.asked, claim.asked_at = remaining[0], self._state.now
            self._send_claim(claim, remaining[0])
            return Outcome.OPEN
        if laggards:
            claim.asked = laggards[0]
            return Outcome.OPEN
        if claim.witnesses:
            claim.asked = None
            return Outcome.RECOGNISED
        return Outcome.DESERTED

    def _send_claim(self, claim: OpenClaim, stage: int) -> None:
        claim.repeated_at = self._state.now
        owner = self._state.membership.serving_peer(stage)
        if owner is not None:
            claim.told.add(owner)
            witnesses = tuple(self.survivors(claim.stage, claim.gone))
            self._state.send(owner, Claim(claim.stage, claim.incarnation, witnesses))

    def note_grant(self, claim: OpenClaim, peer: PeerId, grant: Grant) -> bool:
        """Whether it comes from whom we asked, so that the next one is due."""
        asked = claim.asked
        if asked is None or self._state.membership.serving_peer(asked) != peer:
            return False
        claim.witnesses[asked] = GrantedDonations(asked, peer, grant.step, grant.donations)
        return True

    def press(self, claim: OpenClaim) -> Outcome:
        """Ask again, and give up on a witness that shows no sign of life."""
        asked = claim.asked
        assert asked is not None
        seat = self._state.membership.seat(asked)
        remaining, laggards = self._remaining(claim), claim.laggards(self._state.now)
        if seat is None or asked not in {*remaining, *laggards}:
            return self.ask_next(claim)
        if asked in laggards:
            self._send_claim(claim, asked)
            return Outcome.OPEN
        silence_s = self._state.now - max(claim.asked_at, seat.heard)
        if silence_s > self._state.manifest.timing.dead_after_s:
            claim.gone.add(seat.peer)
            return self.ask_next(claim)
        if self._state.now - claim.asked_at > ANSWER_LIMIT_S:
            return Outcome.UNANSWERED
        if self._state.now - claim.repeated_at >= CLAIM_REPEAT_S:
            self._send_claim(claim, asked)
        return Outcome.OPEN
