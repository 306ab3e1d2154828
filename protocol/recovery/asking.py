"""Asking for recognition: every owner at once, until a majority of all stages and the nearest survivors granted it.

A vote is a matter of a moment, so who does not answer within `dead_after_s` is not waited for. The nearest survivors
also give their weights. One that is silent, or refuses what a majority granted, costs that time and its donation: the
next nearest is named instead. Its refusal is worth waiting for, since it may hear the owner; but it is one word, and a
majority does not hear it.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, auto

from understudy.protocol.actions import Read
from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.ids import INCARNATION_LEAP_MAX, PeerId
from understudy.protocol.membership.placement import nearest_survivors
from understudy.protocol.node_state import NodeState
from understudy.protocol.recovery.case import GrantedDonations
from understudy.protocol.recovery.claim import OpenClaim
from understudy.protocol.recovery.quorum import TWO_STAGES, majority_of
from understudy.protocol.standby.holders import may_hold
from understudy.protocol.wire.fields import RefusalReason
from understudy.protocol.wire.messages import Claim, Grant, Refusal
from understudy.protocol.wire.records import stage_key

CLAIM_REPEAT_S = 1.0
"""A claim that an owner has not answered is sent again after this long."""
ANSWER_LIMIT_S = 60.0
"""A witness that lives and recognised us, but has no weights ready by then, is done without; copying takes seconds."""
FINAL: frozenset[RefusalReason] = frozenset({"superseded", "not serving", "run is done"})
"""Who says this does not change its mind. ``owner alive`` may only mean that the news of the death is on its way."""


class Outcome(Enum):
    """How far the asking is."""

    OPEN = auto()
    """Some were asked, and are to answer."""
    RECOGNISED = auto()
    """Enough recognise us, and the nearest survivors gave what they have."""
    DESERTED = auto()
    """Nobody is left to ask, and nobody recognised us."""
    REFUSED = auto()
    """Too many refused."""
    UNANSWERED = auto()
    """Too few answered in time."""


class Asking:
    """What a claim in `ClaimPhase.ASKING` does."""

    def __init__(self, state: NodeState) -> None:
        self._state = state

    def survivors(self, stage: int, gone: Collection[PeerId] = ()) -> list[int]:
        """Who has something to give for the stage, ascending: its nearest survivors, and who may hold copies of it."""
        holders = (other for other in may_hold(stage, self._state.manifest) if self._may_vouch(other, gone))
        return sorted({*self._donors(stage, gone), *holders})

    def _donors(self, stage: int, gone: Collection[PeerId]) -> list[int]:
        """Whose own weights are wanted: of all others copies are enough, which nobody has to prepare."""
        stage_count = self._state.manifest.stage_count
        return nearest_survivors(stage, stage_count, lambda other: self._may_vouch(other, gone))

    def _may_vouch(self, stage: int, gone: Collection[PeerId]) -> bool:
        peer = self._state.membership.serving_peer(stage)
        return peer is not None and peer not in gone

    def owners(self, stage: int) -> dict[int, PeerId]:
        """Who serves the other stages, as far as we know: all of them may vote."""
        membership = self._state.membership
        found = {other: membership.serving_peer(other) for other in range(membership.stage_count) if other != stage}
        return {other: peer for other, peer in found.items() if peer is not None}

    def ask(self, claim: OpenClaim) -> Outcome:
        """Ask all who have not recognised us, or have still to give their weights, whatever they said before."""
        claim.refused.clear()
        self._forget_succeeded(claim)
        if claim.asked_at is None:
            claim.asked_at = self._state.now
            claim.named_at.clear()
        claim.repeated_at = self._state.now
        self._send_claims(claim, self._unheard(claim))
        return self.proceed(claim)

    def _unheard(self, claim: OpenClaim) -> list[int]:
        named = self._waited_for(claim)
        return [stage for stage in self.owners(claim.stage) if stage not in claim.votes or stage in named]

    def _waited_for(self, claim: OpenClaim) -> list[int]:
        """The survivors that did not give yet what they have, or will have newer weights in a moment."""
        survivors = self.survivors(claim.stage, claim.gone)
        return [s for s in survivors if s not in claim.witnesses] + claim.laggards(survivors, self._state.now)

    def _send_claims(self, claim: OpenClaim, stages: Collection[int]) -> None:
        survivors = self.survivors(claim.stage, claim.gone)
        for stage, owner in self.owners(claim.stage).items():
            if stage in stages:
                self._send_claim(claim, owner)
                if stage in survivors:
                    claim.named_at.setdefault(stage, self._state.now)

    def _send_claim(self, claim: OpenClaim, owner: PeerId) -> None:
        claim.told.add(owner)
        witnesses = tuple(self._donors(claim.stage, claim.gone))
        self._state.send(owner, Claim(claim.stage, claim.incarnation, witnesses, tuple(self.passed_over(claim))))

    def passed_over(self, claim: OpenClaim) -> list[int]:
        """Whose owners are there, and done without."""
        return [stage for stage, owner in self.owners(claim.stage).items() if owner in claim.gone]

    # --- answers ---

    def note_grant(self, claim: OpenClaim, peer: PeerId, grant: Grant) -> bool:
        """Whether it comes from whom we asked."""
        stage = self._stage_of(claim, peer)
        if stage is None:
            return False
        vote = grant.vote
        if (
            vote is None
            or (vote.voter, vote.stage) != (peer, stage)
            or not self._state.is_vote_for(claim.tenure(self._state.me), vote)
        ):
            raise RemoteProtocolError("a grant without a vote that its sender signed")
        claim.votes[stage] = vote
        claim.refused.pop(stage, None)
        if claim.is_new and grant.step > 0:
            claim.is_new, claim.needed = False, majority_of(self._state.manifest.stage_count)
        is_ready = claim.has_own_copy or not grant.is_preparing
        if is_ready and stage in self.survivors(claim.stage, claim.gone):
            claim.witnesses[stage] = GrantedDonations(stage, peer, grant.step, grant.donations)
        return True

    def note_refusal(self, claim: OpenClaim, peer: PeerId, refusal: Refusal) -> None:
        """It holds nothing of ours: to withdraw the claim there would spend its incarnation."""
        stage = self._stage_of(claim, peer)
        claim.told.discard(peer)
        self._note_incarnation(claim, refusal)
        claim.votes = {s: vote for s, vote in claim.votes.items() if vote.voter != peer}
        claim.witnesses = {s: witness for s, witness in claim.witnesses.items() if witness.peer != peer}
        if stage is not None:
            claim.refused[stage] = refusal.reason
        if refusal.reason == "asks too few":  # it knows of an owner that we have not read of
            self._state.act(Read(tuple(stage_key(s) for s in range(self._state.manifest.stage_count))))

    def _note_incarnation(self, claim: OpenClaim, refusal: Refusal) -> None:
        """What the witness knows of the stage. Is our claim too far ahead for it, then we come down."""
        membership = self._state.membership
        membership.raise_incarnation(claim.stage, refusal.known_incarnation)
        if refusal.reason == "superseded" and refusal.known_incarnation + INCARNATION_LEAP_MAX < claim.incarnation:
            membership.lower_incarnation(claim.stage, refusal.known_incarnation)

    def _stage_of(self, claim: OpenClaim, peer: PeerId) -> int | None:
        owners = self.owners(claim.stage)
        return next((stage for stage, owner in owners.items() if owner == peer and peer in claim.told), None)

    # --- where we are ---

    def proceed(self, claim: OpenClaim) -> Outcome:
        """What the answers so far come to."""
        self._forget_succeeded(claim)
        owners = self.owners(claim.stage)
        if not owners and not claim.votes:
            return Outcome.DESERTED
        if claim.refused and not self._is_by_majority(claim):
            return Outcome.REFUSED
        if not self.is_enough(claim):
            return Outcome.REFUSED if self._is_hopeless(claim, owners) else Outcome.OPEN
        self._name(claim)
        if self._waited_for(claim):
            return Outcome.OPEN
        claim.asked_at = None
        return Outcome.RECOGNISED

    def _forget_succeeded(self, claim: OpenClaim) -> None:
        """Whoever took a voter's stage since knows nothing of its vote. The vote of one that only died still stands."""
        owners = self.owners(claim.stage)
        claim.votes = {s: vote for s, vote in claim.votes.items() if owners.get(s, vote.voter) == vote.voter}
        claim.witnesses = {s: known for s, known in claim.witnesses.items() if owners.get(s) == known.peer}

    def _is_by_majority(self, claim: OpenClaim) -> bool:
        """Else one refusal is enough: there is no majority that could outweigh it."""
        stage_count = self._state.manifest.stage_count
        return stage_count > TWO_STAGES and claim.needed == majority_of(stage_count)

    @staticmethod
    def is_enough(claim: OpenClaim) -> bool:
        """As many recognise us as must."""
        return len(claim.votes) >= claim.needed

    def _is_hopeless(self, claim: OpenClaim, owners: dict[int, PeerId]) -> bool:
        """Too many will not recognise us; or too many hear the owner, and so do all who are next to the stage.

        Those next to it learn of its death first, and tell the others.
        """
        final = {stage for stage, reason in claim.refused.items() if reason in FINAL}
        if len({*claim.votes, *owners} - final) < claim.needed:
            return True
        alive = {stage for stage, reason in claim.refused.items() if reason == "owner alive"}
        is_heard = all(stage in claim.refused for stage in self.survivors(claim.stage))
        return is_heard and len({*claim.votes, *owners} - final - alive) < claim.needed

    def _name(self, claim: OpenClaim) -> None:
        """Ask whoever became a nearest survivor meanwhile."""
        new = [stage for stage in self._waited_for(claim) if stage not in claim.named_at]
        if new:
            claim.repeated_at = self._state.now
            self._send_claims(claim, new)

    # --- time ---

    def press(self, claim: OpenClaim) -> Outcome:
        """Ask again, and do without whoever takes too long."""
        assert claim.asked_at is not None
        limit_s, now = self._state.manifest.timing.dead_after_s, self._state.now
        if self.is_enough(claim):
            self._pass_over(claim)
        elif now - claim.asked_at > limit_s:
            return Outcome.UNANSWERED
        outcome = self.proceed(claim)
        if outcome is Outcome.OPEN:
            is_due = now - claim.repeated_at >= CLAIM_REPEAT_S
            laggards = claim.laggards(self.survivors(claim.stage, claim.gone), now)
            unheard = self._unheard(claim)
            again = unheard if is_due else [stage for stage in unheard if stage in {*claim.refused, *laggards}]
            claim.repeated_at = now if is_due else claim.repeated_at
            self._send_claims(claim, again)
        return outcome

    def _pass_over(self, claim: OpenClaim) -> None:
        """A majority has granted: of the survivors next to the stage those are waited for that copy their weights."""
        owners, now = self.owners(claim.stage), self._state.now
        assert claim.asked_at is not None
        for stage in [stage for stage in self._waited_for(claim) if stage not in claim.witnesses]:
            is_preparing = stage in claim.votes and stage not in claim.refused
            limit_s = ANSWER_LIMIT_S if is_preparing else self._state.manifest.timing.dead_after_s
            if now - max(claim.asked_at, claim.named_at.get(stage, now)) > limit_s:
                claim.gone.add(owners[stage])
