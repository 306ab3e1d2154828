"""The stage that a node holds: how it comes by it, what runs on it, and how it ends.

A node without a stage is a spare and has a `Claimant`; an owner has an `OwnedStage`. Somewhat above 300 lines, because
this is where the parts of a node's life meet: a third of it hands questions on to whichever of the two is there.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from understudy.protocol.actions import ReleaseStage, Stop, Store
from understudy.protocol.events import Fetched, FetchFailed, JobDone, TextRead
from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.jobs import ApplyJob
from understudy.protocol.membership.consequences import Consequences
from understudy.protocol.membership.failure_detector import FailureDetector
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.coordinator import Coordinator
from understudy.protocol.pipeline.edge_host import EdgeHost
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.recovery import reasons
from understudy.protocol.recovery.case import Plan
from understudy.protocol.recovery.claim import OpenClaim
from understudy.protocol.recovery.claimant import Claimant
from understudy.protocol.recovery.owned_stage import OwnedStage
from understudy.protocol.recovery.roles import Role, role_of
from understudy.protocol.recovery.run_end import close_last_step, is_beaten_to, is_dispensable, store_last_word
from understudy.protocol.recovery.spare import SparePolicy
from understudy.protocol.standby.shelf import Shelf
from understudy.protocol.wire.messages import (
    Announce,
    Claim,
    CopyKept,
    CopyOffer,
    FetchRequest,
    LeaseRelease,
    LeaseRequest,
    LeaseStatus,
    Refusal,
)
from understudy.protocol.wire.records import AnyRecord, ManifestRecord, ProgressRecord, SpareRecord, StageRecord


class Lifecycle(Consequences):
    """The life of a node: its role, and how it comes from one to the next (`ROLE_TRANSITIONS`)."""

    def __init__(self, state: NodeState, detector: FailureDetector, signed_manifest: ManifestRecord | None) -> None:
        self._state, self._detector = state, detector
        self._capacity, self._signed_manifest = 1.0, signed_manifest
        self._is_known_spare = False
        self.shelf = Shelf(state, self._on_copies_changed)
        self.claimant = self._new_claimant(None)
        self._owned: OwnedStage | None = None

    @property
    def host(self) -> BlockStage | EdgeHost | None:
        """What trains our stage, if we have one."""
        return None if self._owned is None else self._owned.host

    @property
    def coordinator(self) -> Coordinator | None:
        """What opens and closes the run's steps, if that is ours to do."""
        return None if self._owned is None else self._owned.coordinator

    @property
    def role(self) -> Role:
        """What we are now."""
        return role_of(self._state, has_claim=self.claimant.claim is not None)

    def start(self, wanted_stage: int | None, capacity: float) -> None:
        """We are on the network."""
        self._capacity = capacity
        self.claimant = self._new_claimant(wanted_stage)
        self._become_spare()

    def _new_claimant(self, wanted_stage: int | None) -> Claimant:
        policy = SparePolicy(self._state, self._capacity, wanted_stage, self.shelf)
        return Claimant(self._state, policy, self.shelf)

    def _become_spare(self) -> None:
        self._is_known_spare = False
        self._store(self.claimant.policy.my_record())
        self._detector.read()

    def look_for_work(self) -> None:
        """We have read more than before, and have no stage."""
        self.take_place()
        self.claimant.consider()
        self.say_spare()

    def take_place(self) -> None:
        """Wait in front or in reserve, by what we know of the stages and of the others who wait."""
        state = self._state
        was_in_reserve = state.is_in_reserve
        is_idle = state.tenure is None and self.claimant.claim is None
        state.is_in_reserve = is_idle and self.claimant.policy.is_dispensable
        if was_in_reserve and is_idle and not state.is_in_reserve:
            self.claimant.policy.look_again()
            self._store(self.claimant.policy.my_record())
            self._detector.read()

    def say_spare(self) -> None:
        """Once we have looked around and found nothing to do."""
        is_idle = self.claimant.claim is None and not self._state.text.is_asked and not self._state.orphans
        if not self._is_known_spare and self.claimant.policy.has_looked_around and is_idle:
            self._is_known_spare = True
            self._state.emit("peer.spare")

    def on_tick(self) -> None:
        """What time brings to a claim or a stage, and whether it is time to go."""
        if self._owned is None:
            self.claimant.on_tick()
        else:
            self._owned.on_tick()
        self.yield_if_apart()
        self.finish_if_done()

    def on_job_done(self, event: JobDone) -> None:
        if self._owned is None:
            self._state.orphans -= self._state.orphans > 0
            built = self.claimant.on_job_done(event)
            if built is not None:
                self._begin_serving(built)
            return
        self._owned.on_job_done(event)
        self._state.is_view_changed |= isinstance(event.job, ApplyJob)
        if self._state.failure is not None:
            self.leave("failed")

    # --- what membership finds out ---

    def owner_changed(self, stage: int) -> None:
        if self.host is not None:
            self.host.owner_changed(stage)

    def owner_revived(self, stage: int) -> None:
        if self.host is not None:
            self.host.owner_revived(stage)

    def seat_changed(self, stage: int) -> None:
        self.claimant.seat_changed(stage)

    def note_spares(self, records: list[SpareRecord]) -> None:
        self.claimant.policy.note_spares(records)

    def note_read(self, key: str) -> None:
        self.claimant.note_read(key)

    # --- what others ask of an owner ---

    def may_fetch(self, peer: PeerId, request: FetchRequest) -> bool:
        """Whether the peer may have the weights that we hold."""
        return self._owned is not None and self._owned.may_fetch(peer, request)

    def on_claim(self, peer: PeerId, claim: Claim) -> None:
        """A claimant asks for our recognition."""
        if self._owned is None:
            known = self._state.membership.known_incarnation(claim.stage)
            self._state.send(peer, Refusal(claim.stage, claim.incarnation, known, "not serving"))
            return
        self._owned.witness.on_claim(peer, claim)
        self._state.is_view_changed = True

    def on_copy_message(self, peer: PeerId, message: CopyOffer | CopyKept) -> None:
        """The owner of another stage has a copy for us, or a holder has one of ours."""
        if isinstance(message, CopyOffer):
            self.shelf.on_offer(peer, message)
        elif self._owned is not None:
            self._owned.on_kept(peer, message)

    def _on_copies_changed(self) -> None:
        """What we could give, or bring back, is more than before."""
        if self._owned is not None:
            self._owned.review()
        else:
            self.claimant.policy.say_copies()

    def on_lease_message(self, peer: PeerId, message: LeaseRequest | LeaseRelease) -> None:
        """An exporter wants our weights held still, or needs them no more."""
        if self._owned is not None:
            self._owned.on_lease_message(peer, message)
        elif isinstance(message, LeaseRequest):
            tenure = (message.stage, message.incarnation)
            self._state.send(peer, LeaseStatus(*tenure, message.step, "not mine", self._state.committed))

    def on_fetch_ended(self, event: Fetched | FetchFailed) -> None:
        """Of a copy that we are to hold, or of our claim."""
        if self.shelf.on_fetch_ended(event) or self._owned is not None:
            return
        if isinstance(event, Fetched):
            self.claimant.on_fetched(event)
        else:
            self.claimant.on_fetch_failed(event)

    # --- beginning and end ---

    def on_text_read(self, event: TextRead) -> None:
        """Who may drive depends on it; a driver that cannot read its text gives S0 up before others wait for it."""
        self._state.text.note(event.step, self._state.now, is_read=event.failure is None)
        self._state.is_view_changed = True
        if event.failure is None:
            self.claimant.on_text_read()
            return
        self._state.emit("text.failed", step=event.step, reason=event.failure)
        claim = self.claimant.claim
        if self.coordinator is not None:
            self.hand_back(reasons.TEXT_UNREADABLE)
        elif claim is not None and claim.stage == DRIVER_STAGE:
            self.claimant.abandon(reasons.TEXT_UNREADABLE)
        else:
            self.refresh()

    def _begin_serving(self, claim: OpenClaim) -> None:
        state, plan = self._state, claim.plan
        assert plan is not None
        state.tenure_state, state.committed, state.squared_gradient_norm = "serving", plan.step, None
        state.membership.observe(state.my_seat(), is_direct=True)
        self.shelf.forget(state.stage)
        self._owned = OwnedStage(state, self.shelf)
        if claim.incarnation > 1 or plan.step > 0:
            self._emit_origin("stage.recovered", claim, plan)
        elif state.manifest.initial.digests:
            self._emit_origin("stage.initialised", claim, plan)
        state.emit("peer.serving", why=claim.why)
        self._detector.announce()
        self._detector.store_tenure()
        self._store(SpareRecord(state.me, self._capacity, "left"))
        self._detector.read()
        self._state.is_view_changed = True

    def _emit_origin(self, name: str, claim: OpenClaim, plan: Plan) -> None:
        """Say what the stage was built from, and why."""
        self._state.emit(
            name,
            method=plan.method,
            donors=plan.donors,
            coefficients=list(plan.coefficients),
            bytes=plan.payload_bytes,
            digests=[source.donation.digest for source in plan.sources],
            seconds=self._state.now - claim.began,
            fetch_seconds=claim.phase_began - claim.recognised_at,
            blend_seconds=self._state.now - claim.phase_began,
            reason=plan.reason,
        )

    def lose(self, reason: str) -> None:
        """Our tenure is over: forget the stage and be a spare."""
        if self.claimant.claim is not None:
            self.claimant.abandon(reason)
            return
        self._state.emit("peer.retired", reason=reason)
        stage = self._state.stage
        if self._state.membership.serving_peer(stage) == self._state.me:
            self._state.membership.give_up(stage)
        self._state.give_tenure_up()
        self._state.orphans = 0 if self._owned is None or reason == reasons.TEXT_UNREADABLE else self._owned.running
        self._owned = None
        self._state.act(ReleaseStage())
        self._state.membership.forget_deaths()
        self.claimant = self._new_claimant(None)
        self._become_spare()

    def hand_back(self, reason: str, state: Literal["left", "withdrawn"] = "left") -> None:
        """Give our stage up in public, so that others need not wait for our silence, and be a spare."""
        self._state.tenure_state = state
        self._state.membership.observe(self._state.my_seat(), is_direct=True)
        self._detector.announce()
        self._detector.store_tenure()
        self.lose(reason)

    def recall(self, record: StageRecord) -> None:
        """A record of ours from before this process began: we remember nothing of that tenure, so it is over.

        Others must know at once; and we: the stage was owned, and fresh weights are none of its.
        """
        state = self._state
        state.membership.spend_incarnation(record.stage, record.incarnation)
        if record.state in ("left", "withdrawn"):
            return
        if record.step == 0:
            self.claimant.recall(record.stage)
        if state.tenure is None or state.tenure.stage != record.stage:  # else it would take our new record's place
            self._store(msgspec.structs.replace(record, state="withdrawn"))
        self._detector.tell(Announce(record.stage, record.incarnation, "withdrawn", record.step))

    def yield_if_apart(self) -> None:
        """Give our stage up if the others live in another history, after a split: rebuilt from them, it is theirs."""
        reason = None if self._owned is None else self._owned.split.reason_to_yield()
        if reason is not None:
            self.hand_back(reason, "withdrawn")

    def refresh(self) -> None:
        """Store again what must not expire, say again what was not acknowledged."""
        if self._owned is not None:
            self._owned.witness.refresh()
        if self._is_manifest_publisher and self._signed_manifest is not None:
            self._store(msgspec.structs.replace(self._signed_manifest, peer=self._state.me))
        if self._state.tenure is None and not self._state.is_in_reserve:
            self._store(self.claimant.policy.my_record())

    @property
    def _is_manifest_publisher(self) -> bool:
        """Newcomers need the manifest. The driver publishes it, and while there is none every owner does."""
        return self.host is not None and (
            self.coordinator is not None or not self._state.membership.is_serving(DRIVER_STAGE)
        )

    def _store(self, record: AnyRecord) -> None:
        self._state.act(Store(record, self._state.manifest.timing.record_lifetime_s))

    def finish_if_done(self) -> None:
        owned = self._owned
        if owned is not None and not owned.is_wanted and is_dispensable(self._state, owned.coordinator):
            self.leave("done")

    def end_run(self, *, is_doubtful: bool = False) -> None:
        """The last step is committed and the driver is gone. We apply it if only its commit is missing, and leave."""
        host = None if self._state.is_stopped else self.host
        if not (isinstance(host, BlockStage) and close_last_step(self._state, host, is_doubtful=is_doubtful)):
            self.leave("done")

    def leave(self, reason: Literal["done", "asked", "failed"]) -> None:
        """Say goodbye: a record outlives us, so ours must say that we left."""
        if self._state.is_stopped:
            return
        self._state.is_stopped = True
        if self.claimant.claim is not None:
            self.claimant.abandon("stopping")
        if self._state.tenure is not None:
            self._state.tenure_state = "left"
            self._detector.announce()
            self._detector.store_tenure()
        else:
            self._store(SpareRecord(self._state.me, self._capacity, "left"))
        if self._state.tenure is not None and self._state.is_run_done and self.coordinator is None:
            store_last_word(self._state)
        self._state.emit("peer.left", reason=reason)
        self._state.act(Stop(reason, self._state.failure or ""))

    def take_over_end(self, end: ProgressRecord) -> None:
        """A driver before us decided the last step, and perhaps nobody is left who heard of it but the DHT."""
        if self.coordinator is not None and end.incarnation < self._state.incarnation:
            self.coordinator.take_over(end.step)

    def is_beaten_to(self, end: ProgressRecord) -> bool:
        """Another driver decided the last step, and no word that may still be on its way will bring us there."""
        return self.host is not None and is_beaten_to(self._state, self.host, end)

    @property
    def is_alone(self) -> bool:
        """We drive, but no stage is there to be driven."""
        block_stages = range(1, self._state.manifest.stage_count)
        return self.coordinator is not None and not any(map(self._state.membership.is_present, block_stages))

    def review(self) -> None:
        """What follows from a change of the view."""
        if not self._state.is_view_changed or self._state.is_stopped:
            return
        self._state.is_view_changed = False
        if self._owned is not None:
            self._owned.review()
        if self.coordinator is not None:
            self.coordinator.advance()
        if self._state.tenure is None:
            self.take_place()
            self.claimant.consider()
