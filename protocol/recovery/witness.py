"""The witness's side of a recovery: declare, offer weights, recognise one claimant.

The owner of a stage is a witness of every dead stage between itself and its nearest survivors, and offers its weights
for it. It votes on every claim: it recognises at most one peer for each (stage, incarnation), for good, and only if it
takes the owner for lost. A claimant needs a majority of all stages (quorum.py), so of two at most one is recognised:
this is what keeps two peers from serving one stage under one incarnation. Whom it recognised it listens to, until that
one serves.
"""

from __future__ import annotations

from dataclasses import dataclass

from understudy.protocol.actions import ReleaseSnapshot, Store
from understudy.protocol.ids import DRIVER_STAGE, INCARNATION_LEAP_MAX, PeerId, Tenure
from understudy.protocol.jobs import SnapshotJob
from understudy.protocol.membership.placement import dead_stretch, nearest_survivors
from understudy.protocol.membership.seats import Seat, Status
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.standby.holders import keeping_stages
from understudy.protocol.standby.shelf import Shelf
from understudy.protocol.wire.fields import RefusalReason
from understudy.protocol.wire.messages import Claim, Donation, FetchRequest, Grant, Refusal
from understudy.protocol.wire.records import OfferRecord
from understudy.protocol.wire.votes import Vote


@dataclass(frozen=True, slots=True)
class WitnessSnapshot:
    """A snapshot of our weights that we hold still for claimants."""

    step: int
    payload_bytes: int
    digest: str


class Witness:
    """What a serving node does for the lost stages next to it."""

    def __init__(self, state: NodeState, queue: WorkQueue, shelf: Shelf) -> None:
        self._state, self._shelf = state, shelf
        self._queue = queue
        self._held: WitnessSnapshot | None = None
        self._is_snapshot_due = False
        self._offered: dict[int, tuple[int, int]] = {}
        """Per lost stage: (lost incarnation, step of the weights) of the offer that stands."""
        self._unanswered: dict[int, tuple[PeerId, int]] = {}
        """Per lost stage: the recognised claimant whose grant waits for the snapshot."""
        self._votes: dict[int, tuple[Tenure, Vote]] = {}
        """Per stage: the last claim that we recognised, and our signature under it."""
        self._named: dict[int, tuple[PeerId, int]] = {}
        """Per lost stage: the recognised claimant that wants our weights, though another is nearer."""

    def lost_stages(self) -> list[int]:
        """The stages that we witness as lost: served once, without a serving owner now."""
        membership = self._state.membership
        stretch = dead_stretch(self._state.stage, membership.stage_count, membership.is_serving)
        self._named = {
            stage: claim for stage, claim in self._named.items() if self._is_recognised(claim[0], stage, claim[1])
        }
        stretch += [stage for stage in self._named if stage not in stretch]
        return [stage for stage in stretch if self._state.membership.lost_incarnation(stage) > 0]

    def review(self) -> None:
        """Offer what is lost, and stop offering what is not."""
        if self._state.is_run_done:
            return
        lost = self.lost_stages()
        for stage in [stage for stage in self._offered if stage not in lost]:
            self._take_back(stage)
        for stage in [stage for stage in self._unanswered if stage not in lost]:
            del self._unanswered[stage]
        if self._held is not None and not lost and not self._is_snapshot_due:
            self._state.act(ReleaseSnapshot(self._held.digest))
            self._held = None
        if any(self._can_copy_for(stage) for stage in lost):
            self._hold_weights()
        for stage in lost:
            self._offer(stage)

    def _take_back(self, stage: int) -> None:
        """The offer outlives its reason: if the owner itself is back, say so, or spares go on taking it for lost."""
        incarnation, _ = self._offered.pop(stage)
        seat = self._state.membership.seat(stage)
        if seat is not None and seat.is_serving and seat.incarnation <= incarnation:
            record = OfferRecord(self._state.me, stage, seat.incarnation, self._state.stage, 0, None, 0, "", True)
            self._state.act(Store(record, self._state.manifest.timing.record_lifetime_s))

    def refresh(self) -> None:
        """Store the standing offers again before they expire."""
        for stage, (lost_incarnation, _) in self._offered.items():
            self._store_offer(stage, lost_incarnation)

    def _can_copy_for(self, stage: int) -> bool:
        """Stages are equal in shape, S0 excepted; weights that were never trained are no donation."""
        return DRIVER_STAGE not in (stage, self._state.stage) and self._state.committed > 0

    def _hold_weights(self) -> None:
        is_held = self._held is not None and self._held.step == self._state.committed
        if not is_held and not self._is_snapshot_due:
            self._is_snapshot_due = True
            self._queue.push(SnapshotJob(self._state.committed))

    def on_snapshot(self, payload_bytes: int, digest: str) -> None:
        """The compute thread holds a copy of the weights as they stand after the last commit."""
        self._is_snapshot_due = False
        if self._held is not None and self._held.digest != digest:
            self._state.act(ReleaseSnapshot(self._held.digest))
        self._held = WitnessSnapshot(self._state.committed, payload_bytes, digest)
        for stage, (claimant, incarnation) in list(self._unanswered.items()):
            del self._unanswered[stage]
            if self._is_recognised(claimant, stage, incarnation):
                self._grant(claimant, stage, incarnation)
        self.review()

    def _offer(self, stage: int) -> None:
        lost_incarnation = self._state.membership.lost_incarnation(stage)
        if not self._is_ready_for(stage):
            return
        published = self._published_for(stage)
        step = self._state.committed if published is None else published.step
        if self._offered.get(stage) == (lost_incarnation, step):
            return
        self._offered[stage] = (lost_incarnation, step)
        self._store_offer(stage, lost_incarnation)
        if published is not None:
            self._state.emit(
                "weights.published",
                for_stage=stage,
                bytes=published.payload_bytes,
                squared_gradient_norm=published.squared_gradient_norm,
            )

    def _published_for(self, stage: int) -> Donation | None:
        """What our offer names: our own weights, of S0 the newest copy."""
        is_driver = stage == DRIVER_STAGE
        given = [d for d in self._donations_for(stage) if d.is_copy == is_driver and d.part != "moments"]
        return max(given, key=lambda donation: donation.step, default=None)

    def _is_ready_for(self, stage: int) -> bool:
        """Whether we hold still what we can give for the stage."""
        if not self._can_copy_for(stage):
            return True
        return self._held is not None and self._held.step == self._state.committed

    def _store_offer(self, stage: int, lost_incarnation: int) -> None:
        donation = self._published_for(stage)
        record = OfferRecord(
            peer=self._state.me,
            for_stage=stage,
            lost_incarnation=lost_incarnation,
            stage=self._state.stage,
            step=self._state.committed,
            squared_gradient_norm=donation.squared_gradient_norm if donation else None,
            payload_bytes=donation.payload_bytes if donation else 0,
            digest=donation.digest if donation else "",
        )
        self._state.act(Store(record, self._state.manifest.timing.record_lifetime_s))

    def _donations_for(self, stage: int, *, is_donor: bool = True) -> tuple[Donation, ...]:
        """What we have for whoever takes the stage: our copies of it and, as a donor, our own weights behind them."""
        copies, held = self._shelf.donations(stage), self._held
        if held is None or not is_donor or not self._can_copy_for(stage):
            return copies
        norm = self._state.squared_gradient_norm
        return (*copies, Donation("stage", self._state.stage, held.step, norm, held.payload_bytes, held.digest))

    # --- claims ---

    def on_claim(self, peer: PeerId, claim: Claim) -> None:
        """Recognise the claimant, or say why not. It asks again while it hears nothing."""
        is_seen = self._is_recognised(peer, claim.stage, claim.incarnation)
        tenure = Tenure(claim.stage, claim.incarnation, peer)
        is_recognised = is_seen and self._has_voted_for(tenure)
        reason = None if is_recognised else self._objection(peer, claim)
        if reason is not None:
            self._state.send(peer, Refusal(claim.stage, claim.incarnation, self._spent(claim.stage), reason))
            return
        if not self._has_voted_for(tenure):
            self._votes[claim.stage] = (tenure, self._state.vote_for(tenure))
        self._state.membership.titles.note_proven(tenure)
        if not is_seen:
            claimed = Seat(claim.stage, peer, claim.incarnation, "recovering", 0, Status.ALIVE, self._state.now)
            self._state.membership.observe(claimed, is_direct=True)
        if self._state.stage in claim.witnesses and not self._is_witness_of(claim.stage):
            self._named[claim.stage] = (peer, claim.incarnation)
        self._grant(peer, claim.stage, claim.incarnation)

    def _has_voted_for(self, tenure: Tenure) -> bool:
        return tenure.stage in self._votes and self._votes[tenure.stage][0] == tenure

    def _voted(self, stage: int) -> int:
        """The last incarnation of the stage that we voted for."""
        return self._votes[stage][0].incarnation if stage in self._votes else 0

    def _is_recognised(self, peer: PeerId, stage: int, incarnation: int) -> bool:
        """It is a claim, for all that we see: who serves already has nothing to claim."""
        seat = self._state.membership.seat(stage)
        return seat is not None and seat.is_tenure(peer, incarnation) and seat.state == "recovering" and seat.is_present

    def _objection(self, peer: PeerId, claim: Claim) -> RefusalReason | None:
        seat, spent = self._state.membership.seat(claim.stage), self._spent(claim.stage)
        if self._state.is_run_done:
            return "run is done"
        if claim.stage == self._state.stage or (seat is not None and seat.is_serving):
            return "owner alive"
        if self._is_recognised(peer, claim.stage, claim.incarnation):  # we heard of it: others recognised it
            return "superseded" if self._voted(claim.stage) >= claim.incarnation else None
        if not spent < claim.incarnation <= spent + INCARNATION_LEAP_MAX:
            return "superseded"
        if seat is not None and seat.is_present and seat.peer != peer:  # its own earlier claim it gives up by this one
            return "owner alive"
        return None if self._is_well_asked(claim) else "asks too few"

    def _spent(self, stage: int) -> int:
        """The last incarnation that cannot be claimed any more: in a swarm that committed a step each stage had one."""
        return max(self._state.membership.known_incarnation(stage), 1 if self._state.committed > 0 else 0)

    def _is_well_asked(self, claim: Claim) -> bool:
        """Whether it asks us for our weights, if they are the nearest that there are."""
        membership = self._state.membership
        survivors = nearest_survivors(claim.stage, membership.stage_count, membership.is_serving)
        is_left_out = self._state.stage in survivors and not set(survivors) <= {*claim.witnesses, *claim.passed}
        return not is_left_out

    def _is_witness_of(self, stage: int) -> bool:
        membership = self._state.membership
        if stage == DRIVER_STAGE and self._state.stage in keeping_stages(self._state.manifest):
            return not membership.is_serving(stage)
        return stage in dead_stretch(self._state.stage, membership.stage_count, membership.is_serving)

    def _grant(self, peer: PeerId, stage: int, incarnation: int) -> None:
        _, vote = self._votes[stage]
        step, is_donor = self._state.committed, self._is_witness_of(stage) or stage in self._named
        if is_donor and not self._is_ready_for(stage):
            self._unanswered[stage] = (peer, incarnation)
            self._hold_weights()
            copies = self._shelf.donations(stage)
            self._state.send(peer, Grant(stage, incarnation, step, copies, is_preparing=True, vote=vote))
            return
        donations = self._donations_for(stage, is_donor=is_donor)
        self._state.send(peer, Grant(stage, incarnation, step, donations, vote=vote))

    def may_fetch(self, peer: PeerId, request: FetchRequest) -> bool:
        """Whether the peer is the claimant that we recognise, asking for the weights that we hold."""
        seat = self._state.membership.seat(request.stage)
        if seat is None or request.digest not in {d.digest for d in self._donations_for(request.stage)}:
            return False
        return (seat.peer, seat.incarnation, seat.state) == (peer, request.incarnation, "recovering")
