"""The stage that a node holds: how it comes by it, what runs on it, and how it ends.

A node without a stage is a spare and has a `Claimant`; an owner has a host (`Driver` or `BlockStage`) and a
`GrantedDonations` for the stages that it witnesses.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from understudy.protocol.events import ApplyJob, DigestJob, JobDone, LeaseJob, ReleaseStage, SnapshotJob, Stop, Store
from understudy.protocol.ids import DRIVER_STAGE
from understudy.protocol.membership.failure_detector import FailureDetector
from understudy.protocol.membership.seats import Status
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.driver import FINAL_PROGRESS_LIFETIME_S, Driver
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.recovery.claim import OpenClaim
from understudy.protocol.recovery.claimant import Claimant
from understudy.protocol.recovery.ladder import Plan
from understudy.protocol.recovery.roles import Role, role_of
from understudy.protocol.recovery.spare import SparePolicy
from understudy.protocol.recovery.witness import Witness
from understudy.protocol.wire.messages import Announce
from understudy.protocol.wire.records import AnyRecord, ManifestRecord, ProgressRecord, SpareRecord, StageRecord


class Lifecycle:
    """The life of a node: its role, and how it comes from one to the next (`ROLE_TRANSITIONS`)."""

    def __init__(self, state: NodeState, detector: FailureDetector, signed_manifest: ManifestRecord | None) -> None:
        self._state, self._detector = state, detector
        self._capacity, self._signed_manifest = 1.0, signed_manifest
        self._is_known_spare = False
        self.claimant = Claimant(state, SparePolicy(state, self._capacity, None))
        self.host: BlockStage | Driver | None = None
        self._alone_ahead_since: float | None = None
        self.donor: Witness | None = None

    @property
    def role(self) -> Role:
        """What we are now."""
        return role_of(self._state, has_claim=self.claimant.claim is not None)

    def start(self, wanted_stage: int | None, capacity: float) -> None:
        """We are on the network."""
        self._capacity = capacity
        self.claimant = Claimant(self._state, SparePolicy(self._state, self._capacity, wanted_stage))
        self._become_spare()

    def _become_spare(self) -> None:
        self._is_known_spare = False
        self._store(self.claimant.policy.my_record())
        self._detector.read()

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
        is_idle = self.claimant.claim is None and not self._state.text.is_asked
        if not self._is_known_spare and self.claimant.policy.has_looked_around and is_idle:
            self._is_known_spare = True
            self._state.emit("peer.spare")

    def on_job_done(self, event: JobDone) -> None:
        if isinstance(event.job, SnapshotJob) and self.donor is not None and self.host is not None:
            self.host.io.queue.finished()
            if event.job.parts == ("stage",):
                self.donor.on_snapshot(*event.result[0])
            elif isinstance(self.host, Driver):
                self.host.copier.on_snapshots(event.job.parts, event.result)
            self.host.pump()
        elif isinstance(event.job, LeaseJob | DigestJob) and self.host is not None:
            self.host.io.queue.finished()
            self.host.io.holds.on_job_done(event.job, event.result)
            self.host.pump()
        elif self.host is not None:
            self.host.on_job_done(event)
            self._state.is_view_changed |= isinstance(event.job, ApplyJob)
            if self._state.failure is not None:
                self.leave("failed")
        else:
            built = self.claimant.on_job_done(event)
            if built is not None:
                self._begin_serving(built)

    def _begin_serving(self, claim: OpenClaim) -> None:
        state, plan = self._state, claim.plan
        assert plan is not None
        state.tenure_state, state.committed, state.squared_gradient_norm = "serving", plan.step, None
        state.membership.observe(state.my_seat(), is_direct=True)
        self.host = Driver(state) if claim.stage == DRIVER_STAGE else BlockStage(state)
        self.donor = Witness(state, self.host.io.queue)
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
        self._state.tenure, self._state.is_recognised = None, False
        self.host = self.donor = self._alone_ahead_since = None
        self._state.act(ReleaseStage())
        self._state.membership.forget_deaths()
        self.claimant = Claimant(self._state, SparePolicy(self._state, self._capacity, None))
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
        state.membership.raise_incarnation(record.stage, record.incarnation)
        if record.state in ("left", "withdrawn"):
            return
        if record.step == 0:
            self.claimant.recall(record.stage)
        if state.tenure is None or state.tenure.stage != record.stage:  # else it would take our new record's place
            self._store(msgspec.structs.replace(record, state="withdrawn"))
        self._detector.tell(Announce(record.stage, record.incarnation, "withdrawn", record.step))

    def yield_if_apart(self) -> None:
        """Give our stage up if the others live in another history, after a split: rebuilt from them, it is theirs."""
        if self.host is None:
            return
        stage, step = self._state.stage, self.host.step
        if self._is_outpaced(self.host):
            self.hand_back(f"the others are beyond step {step}, where S{stage} was left behind", "withdrawn")
        elif self._has_been_alone_ahead():
            self.hand_back(f"S{stage} alone is at step {step}, where nobody follows", "withdrawn")

    def _is_outpaced(self, host: BlockStage | Driver) -> bool:
        """Two of the others, as one may be wrong, or all of them; a block stage at least, to be rebuilt from.

        Who is one step ahead of us heard of a commit that is on its way to us, unless that step could not be decided
        with us: it lacks what we did not count, or we are S0, did not decide it and could not take it over.
        """
        ahead, others = self._state.membership.beyond(self._state.stage, host.step + host.can_close)
        return any(stage != DRIVER_STAGE for stage in ahead) and len(ahead) >= min(2, others)

    def _has_been_alone_ahead(self) -> bool:
        """We closed a step that nobody else did, of all who are there, for as long as any record of before lives."""
        state = self._state
        ahead, others = state.membership.beyond(state.stage, state.committed)
        stages = state.manifest.stage_count - 1
        if ahead or others < (stages if isinstance(self.host, Driver) else min(2, stages)):
            self._alone_ahead_since = None
            return False
        self._alone_ahead_since = self._alone_ahead_since or state.now
        return state.now - self._alone_ahead_since > state.manifest.timing.record_lifetime_s

    def refresh(self) -> None:
        """Store again what must not expire, say again what was not acknowledged."""
        if self.donor is not None:
            self.donor.refresh()
        if self._is_manifest_publisher and self._signed_manifest is not None:
            self._store(msgspec.structs.replace(self._signed_manifest, peer=self._state.me))
        if self._state.tenure is None and not self._state.is_in_reserve:
            self._store(self.claimant.policy.my_record())

    @property
    def _is_manifest_publisher(self) -> bool:
        """Newcomers need the manifest. The driver publishes it, and while there is none every owner does."""
        return self.host is not None and (
            isinstance(self.host, Driver) or not self._state.membership.is_serving(DRIVER_STAGE)
        )

    def _store(self, record: AnyRecord) -> None:
        self._state.act(Store(record, self._state.manifest.timing.record_lifetime_s))

    def finish_if_done(self) -> None:
        if self.host is None or not self._state.is_run_done or self.host.io.holds.is_wanted:
            return
        if isinstance(self.host, Driver):
            is_over = self.host.is_done
        else:
            is_over = not self._state.membership.is_present(DRIVER_STAGE) and not self._is_ahead
        if is_over:
            self.leave("done")

    @property
    def _is_ahead(self) -> bool:
        """S0 was just lost, and a neighbour does not know that the last step is decided: our heartbeats will tell it.

        For a while only: a neighbour that counted less than the whole step needs a new S0, which may never come.
        """
        driver = self._state.membership.seats.get(DRIVER_STAGE)
        horizon = self._state.now - self._state.manifest.timing.record_lifetime_s
        seats = (self._state.membership.seats.get(stage) for stage in self._state.neighbours() - {DRIVER_STAGE})
        is_lost = driver is not None and driver.status is Status.DEAD and driver.died_at > horizon
        return is_lost and any(
            seat is not None and seat.is_serving and seat.step < self._state.committed for seat in seats
        )

    def end_run(self, *, is_doubtful: bool = False) -> None:
        """The last step is committed and the driver is gone. We apply it if only its commit is missing, and leave.

        ``is_doubtful``: somebody claimed S0 since; as long as we have company, a commit may still be on its way.
        """
        total = self._state.manifest.step.total_steps
        if isinstance(self.host, BlockStage) and not self._state.is_stopped:
            close = self.host.on_neighbour_step if is_doubtful else self.host.on_end
            close(total)
            if self.host.step > total or (is_doubtful and self._has_company and self.host.step == total):
                return
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
        if self._state.tenure is not None and self._state.is_run_done and not isinstance(self.host, Driver):
            self._store_end()
        self._state.emit("peer.left", reason=reason)
        self._state.act(Stop(reason, self._state.failure or ""))

    def _store_end(self) -> None:
        """The driver may have died with the news: every owner that saw the end leaves word of it."""
        incarnation = max(1, self._state.membership.known_incarnation(DRIVER_STAGE))
        tokens = self._state.committed * self._state.manifest.tokens_per_step
        record = ProgressRecord(self._state.me, incarnation, self._state.committed, None, tokens, 0.0)
        self._state.act(Store(record, FINAL_PROGRESS_LIFETIME_S))

    @property
    def _has_company(self) -> bool:
        others = set(range(self._state.manifest.stage_count)) - {self._state.stage}
        return any(map(self._state.membership.is_present, others))

    def take_over_end(self, end: ProgressRecord) -> None:
        """A driver before us decided the last step, and perhaps nobody is left who heard of it but the DHT."""
        if isinstance(self.host, Driver) and end.incarnation < self._state.incarnation:
            self.host.take_over(end.step)

    def is_beaten_to(self, end: ProgressRecord) -> bool:
        """Another driver decided the last step, and no word that may still be on its way will bring us there."""
        if self.host is None:
            return False
        is_ours_to_decide = isinstance(self.host, Driver) and end.incarnation > self._state.incarnation
        return self.host.step < end.step or (is_ours_to_decide and self.host.step == end.step)

    @property
    def is_alone(self) -> bool:
        """We drive, but no stage is there to be driven."""
        block_stages = range(1, self._state.manifest.stage_count)
        return isinstance(self.host, Driver) and not any(map(self._state.membership.is_present, block_stages))

    def review(self) -> None:
        """What follows from a change of the view."""
        if not self._state.is_view_changed or self._state.is_stopped:
            return
        self._state.is_view_changed = False
        if self.donor is not None and self.host is not None:
            self.donor.review()
            self.host.pump()
        if isinstance(self.host, Driver):
            self.host.advance()
        if self._state.tenure is None:
            self.take_place()
            self.claimant.consider()
