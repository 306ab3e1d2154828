"""The spare's side of a recovery: take a hole (spare.py), be recognised, gather weights, become its owner.

The phases of a claim and what leads from one to the next: phases.py. What is done in them: asking.py, gathering.py.
"""

from __future__ import annotations

from understudy.protocol.actions import CancelFetches, Read, ReleaseStage, Store
from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.events import Fetched, FetchFailed, JobDone
from understudy.protocol.ids import DRIVER_STAGE, PeerId, Tenure
from understudy.protocol.jobs import BlendJob, InitialiseJob
from understudy.protocol.membership.seats import Seat
from understudy.protocol.node_state import NodeState
from understudy.protocol.recovery.asking import Asking, Outcome
from understudy.protocol.recovery.claim import OpenClaim
from understudy.protocol.recovery.gathering import Gathering
from understudy.protocol.recovery.phases import ClaimPhase, ClaimStep, next_phase
from understudy.protocol.recovery.shortage import Shortage
from understudy.protocol.recovery.spare import SparePolicy
from understudy.protocol.standby.shelf import Shelf
from understudy.protocol.wire.messages import Grant, Refusal, Withdraw
from understudy.protocol.wire.records import stage_key

SETTLE_S = 1.0
"""How long a claim without witnesses lies open in the DHT before it counts."""


class Claimant:
    """What a node without a stage does to get one."""

    def __init__(self, state: NodeState, policy: SparePolicy, shelf: Shelf) -> None:
        self._state, self.policy = state, policy
        self._asking, self._gathering = Asking(state), Gathering(state, shelf)
        self.shortage = ""
        """Why we claim nothing, if we would."""
        self._waits_for: int | None = None
        """The stage that we said we would take if somebody could vouch for us."""
        self._began_before: set[int] = set()
        """Stages that we ourselves held before we started again, untrained."""
        self._short = Shortage(state)
        self.claim: OpenClaim | None = None

    def consider(self) -> None:
        """Claim a hole if one is ours to take."""
        is_present = self._state.membership.is_present
        if self._waits_for is not None and is_present(self._waits_for):
            self._waits_for, self.shortage = None, ""
        self._short.forget(is_present)
        choice = self.policy.choose() if self.claim is None else None
        if choice is not None and (choice[0] != DRIVER_STAGE or self._state.is_text_ready()):
            self._begin(*choice)

    def recall(self, stage: int) -> None:
        """We held the stage before its first step: if all others are gone too, there is nothing to recover it from."""
        self._began_before.add(stage)

    # --- begin and end ---

    def _begin(self, stage: int, why: str) -> None:
        incarnation = self._state.membership.known_incarnation(stage) + 1
        is_new = (incarnation == 1 or stage in self._began_before) and not self._is_swarm_trained()
        owners = self._asking.owners(stage)
        needed = 1 if is_new else self._short.needed(stage, len(owners))
        if owners and len(owners) >= needed:
            claim = self._open(ClaimStep.ASK, stage, incarnation, why)
            claim.needed, claim.is_new = needed, is_new
            claim.has_own_copy = self._gathering.has_copy_of(stage)
            self._go_on(claim, self._asking.ask(claim))
        elif is_new:
            claim = self._open(ClaimStep.LIE_OPEN, stage, incarnation, why)
            self._take_tenure(claim)
            self._publish_tenure()
        elif self._waits_for != stage:
            self._waits_for, self.shortage = stage, self._short.said(len(owners))
            self._state.emit("swarm.waiting", stages=[stage], reason=self.shortage)

    def _is_swarm_trained(self) -> bool:
        progress = self._state.progress
        has_committed = progress is not None and progress.step > 0
        return has_committed or any(seat.step > 0 for seat in self._state.membership.seats())

    def _open(self, step: ClaimStep, stage: int, incarnation: int, why: str) -> OpenClaim:
        phase, now = next_phase(self.claim.phase if self.claim else None, step), self._state.now
        if phase is None:
            raise LocalProtocolError(f"{step.name} begins no claim")
        self.claim = OpenClaim(stage, incarnation, why, now, phase, now)
        self._waits_for, self.shortage = None, ""
        return self.claim

    def _close(self, claim: OpenClaim, step: ClaimStep) -> None:
        if next_phase(claim.phase, step) is not None:
            raise LocalProtocolError(f"{step.name} ends no claim")
        self.claim = None

    def abandon(self, reason: str) -> None:
        """Give up the claim and be a spare again."""
        claim = self.claim
        if claim is None:
            return
        self._close(claim, ClaimStep.ABANDONED)
        self.policy.note_refusal(claim.stage, claim.incarnation)
        if claim.told:  # somebody may have recognised it
            self._state.membership.note_claimed(claim.stage, claim.incarnation)
        self._state.act(CancelFetches(claim.name))
        if claim.phase is ClaimPhase.BUILDING:
            self._state.act(ReleaseStage())
        for witness in sorted(claim.told):
            self._state.send(witness, Withdraw(claim.stage, claim.incarnation))
        if self._state.tenure is not None:
            if self._state.is_recognised:
                self._state.tenure_state = "withdrawn"
                self._store_tenure()
            self._state.emit("claim.withdrawn", reason=reason)
            self._state.give_tenure_up()
            self._state.membership.withdraw(claim.stage, self._state.me, claim.incarnation)
            self._state.act(Store(self.policy.my_record(), self._state.manifest.timing.record_lifetime_s))

    # --- our tenure ---

    def _take_tenure(self, claim: OpenClaim) -> None:
        """Hold the stage as recovering, so that our witnesses can watch us.

        If a record brought its owner back meanwhile, then whoever recognised us knows better: its next word will tell.
        """
        if self._state.membership.is_serving(claim.stage):
            self._state.membership.mark_dead(claim.stage, claim.incarnation - 1, self._state.now)
        self._state.tenure = claim.tenure(self._state.me)
        self._state.tenure_state = "recovering"
        self._state.membership.titles.note_proven(self._state.tenure)
        self._state.membership.observe(self._state.my_seat(), is_direct=True)

    def _publish_tenure(self) -> None:
        """Only now: a record read by all must not depose an owner whom one mistaken witness gave up."""
        self._state.is_recognised = True
        self._store_tenure()

    def _store_tenure(self) -> None:
        self._state.act(Store(self._state.my_record(), self._state.manifest.timing.record_lifetime_s))

    # --- asking and settling ---

    def _go_on(self, claim: OpenClaim, outcome: Outcome) -> None:
        match outcome:
            case Outcome.RECOGNISED:
                self._recognised(claim)
            case Outcome.DESERTED:
                self.abandon("every witness is gone")
            case Outcome.REFUSED:
                self.abandon(next(iter(claim.refused.values()), "too few recognise it"))
            case Outcome.UNANSWERED:
                self._short.unanswered.add(claim.stage)
                self.abandon(f"{len(claim.votes)} of {claim.needed} owners recognise it")

    def _recognised(self, claim: OpenClaim) -> None:
        self._short.unanswered.discard(claim.stage)
        if not self._state.is_recognised:
            claim.recognised_at = self._state.now
            self._state.proof = claim.proof(self._asking.survivors(claim.stage, claim.gone))
            self._publish_tenure()
            survivors = self._asking.survivors(claim.stage, claim.gone)
            votes, passed = sorted(claim.votes), self._asking.passed_over(claim)
            self._state.emit("stage.claimed", why=claim.why, witnesses=survivors, votes=votes, passed_over=passed)
        if claim.has_own_copy and not self._gathering.would_use_copy(claim):
            self._gathering.give_copy_up(claim)
            self._go_on(claim, self._asking.ask(claim))
        else:
            self._gathering.plan(claim, claim.rung, ClaimStep.RECOGNISED)

    def on_grant(self, peer: PeerId, grant: Grant) -> None:
        claim = self.claim
        if claim is None or claim.name != (grant.stage, grant.incarnation):
            self._decline(peer, grant)
            return
        if claim.phase is not ClaimPhase.ASKING or not self._asking.note_grant(claim, peer, grant):
            return
        if self._state.tenure is None:
            self._take_tenure(claim)
        self._go_on(claim, self._asking.proceed(claim))

    def _decline(self, peer: PeerId, grant: Grant) -> None:
        """We gave the claim up before its last copy arrived there: the witness must not wait for us."""
        if self._state.tenure != Tenure(grant.stage, grant.incarnation, self._state.me):
            self._state.send(peer, Withdraw(grant.stage, grant.incarnation))

    def on_refusal(self, peer: PeerId, refusal: Refusal) -> None:
        claim = self.claim
        if claim is None or claim.name != (refusal.stage, refusal.incarnation):
            return
        if peer not in claim.told:
            return
        self._asking.note_refusal(claim, peer, refusal)
        if claim.phase is ClaimPhase.ASKING:
            self._go_on(claim, self._asking.proceed(claim))
        elif not self._asking.is_enough(claim):
            self.abandon(refusal.reason)

    def note_read(self, key: str) -> None:
        """What is stored under the key is known: a claim that lay open for long enough now counts."""
        self.policy.note_read(key)
        claim = self.claim
        if claim is None or claim.phase is not ClaimPhase.SETTLING or key != stage_key(claim.stage):
            return
        if self._state.now - claim.phase_began >= SETTLE_S:
            claim.is_settled, claim.recognised_at = True, self._state.now
            self._gathering.plan(claim, 0, ClaimStep.SETTLED)

    # --- fetching and building ---

    def on_fetched(self, event: Fetched) -> None:
        claim = self.claim
        if claim is not None and claim.name == event.claim and self._state.is_recognised:
            self._gathering.on_fetched(claim, event)

    def on_fetch_failed(self, event: FetchFailed) -> None:
        claim = self.claim
        if claim is None or claim.name != event.claim or claim.phase is not ClaimPhase.FETCHING:
            return
        if claim.is_awaited(event.donor, event.digest) and self._gathering.must_plan_anew(claim, event):
            self._plan_anew(claim)

    def _plan_anew(self, claim: OpenClaim) -> None:
        """Ask the witnesses what they have now; without witnesses there is only the founder."""
        self._state.act(CancelFetches(claim.name))
        if claim.is_settled:
            self._gathering.plan(claim, claim.rung, ClaimStep.FOUNDER_ASKED)
            return
        self._ask_anew(claim, ClaimStep.DONOR_FAILED)

    def _ask_anew(self, claim: OpenClaim, step: ClaimStep) -> None:
        claim.plan = claim.retry_at = None
        claim.enter(step, self._state.now)
        self._go_on(claim, self._asking.ask(claim))

    def on_text_read(self) -> None:
        """What a claim on S0 may have waited for."""
        if self.claim is not None and self.claim.phase is ClaimPhase.FETCHING:
            self._gathering.build_if_gathered(self.claim)

    def on_job_done(self, done: JobDone) -> OpenClaim | None:
        """The finished claim once the stage is built. A result that is a text says why it could not be."""
        claim, job = self.claim, done.job
        if claim is None or not isinstance(job, BlendJob | InitialiseJob):
            return None
        if claim.name != (job.stage, job.incarnation) or claim.phase is not ClaimPhase.BUILDING:
            return None
        if done.result is None:
            self._close(claim, ClaimStep.BUILT)
            return claim
        self._state.emit("blend.failed", reason=done.result)
        if claim.has_own_copy:
            self._gathering.give_copy_up(claim)
            self._ask_anew(claim, ClaimStep.COPY_UNUSABLE)
        else:
            self._gathering.plan(claim, claim.rung + 1, ClaimStep.UNUSABLE)
        return None

    # --- time and change ---

    def on_tick(self) -> None:
        claim = self.claim
        if claim is None:
            self.consider()
        elif claim.phase is ClaimPhase.SETTLING:
            if self._state.now - claim.phase_began >= SETTLE_S:
                self._state.act(Read((stage_key(claim.stage),)))
        elif claim.phase is ClaimPhase.ASKING:
            self._go_on(claim, self._asking.press(claim))
        elif claim.retry_at is not None and claim.retry_at <= self._state.now:
            self._plan_anew(claim)

    def _on_other_owner(self, seat: Seat, claim: OpenClaim) -> None:
        """Our stage is another's in our view: under a later incarnation, or the owner of before is back in its seat."""
        if seat.incarnation >= claim.incarnation:
            self.abandon("superseded")
        elif self._state.tenure is not None:
            self.abandon("owner alive")

    def seat_changed(self, stage: int) -> None:
        """Somebody's tenure of this stage began or ended."""
        if (claim := self.claim) is None:
            return
        seat = self._state.membership.seat(stage)
        if stage == claim.stage and seat is not None and seat.peer != self._state.me:
            self._on_other_owner(seat, claim)
        elif claim.phase is ClaimPhase.ASKING:
            self._go_on(claim, self._asking.ask(claim))
        elif claim.phase is ClaimPhase.FETCHING and self._gathering.has_lost_donor(claim, stage):
            self._plan_anew(claim)
