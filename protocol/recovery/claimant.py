"""The spare's side of a recovery: take a hole (spare.py), be recognised, gather weights, become its owner.

::

    watching --a hole is ours to take--> ASKING   the witnesses, one after the other, ascending
                                     \\-> SETTLING a swarm that begins: nobody serves, nobody to ask
    ASKING   --all recognise us------> FETCHING   the donations of the plan, side by side
    SETTLING --nobody was before us--> FETCHING   the run's initial weights, if it has any; else BUILDING
    FETCHING --all arrived-----------> BUILDING   blend or initialise
    BUILDING --built-----------------> (serving: the core takes over)

    any      --refused, superseded---> watching
    FETCHING --a donor fails---------> ASKING     it anew, or a new plan with the survivors
    BUILDING --unusable weights------> FETCHING   the next rung of the ladder
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto

from understudy.protocol.actions import CancelFetches, Fetch, Read, ReleaseStage, Run, Store
from understudy.protocol.events import Fetched, FetchFailed, JobDone
from understudy.protocol.ids import DRIVER_STAGE, PeerId, Tenure
from understudy.protocol.jobs import BlendJob, InitialiseJob, Job, Payload
from understudy.protocol.membership.placement import nearest_survivors
from understudy.protocol.node_state import NodeState
from understudy.protocol.recovery.driver_backup import holding_stages
from understudy.protocol.recovery.ladder import GrantedDonations, Plan, RecoveryCase, initial_source, plan_recovery
from understudy.protocol.recovery.spare import SparePolicy
from understudy.protocol.wire.messages import Claim, Grant, Refusal, Withdraw
from understudy.protocol.wire.records import StageRecord, stage_key

INITIAL_RETRY_S = 2.0
"""From one failed fetch of the run's initial weights to the next: the founder may be starting again."""
SETTLE_S = 1.0
"""How long a claim without witnesses lies open in the DHT before it counts."""
CLAIM_REPEAT_S = 1.0
"""A claim that a witness has not answered is sent again after this long."""
ANSWER_LIMIT_S = 60.0
"""A witness that lives but does not grant within this time ends the claim; copying its weights takes seconds."""
CATCH_UP_S = 5.0
"""How long a claim waits for a witness that is a step behind the others, asking again with every tick."""
FETCH_TRIES = 3
"""How often a living donor may fail to deliver. Its weights are better than any further rung of the ladder."""


class ClaimPhase(Enum):
    ASKING = auto()
    SETTLING = auto()
    FETCHING = auto()
    BUILDING = auto()


@dataclass(slots=True)
class OpenClaim:
    """A claim that we are making."""

    stage: int
    incarnation: int
    why: str
    began: float
    phase: ClaimPhase
    phase_began: float
    retry_at: float | None = None
    """The run's initial weights did not come: ask their founder again then."""
    is_settled: bool = False
    """It lay open in the DHT for long enough: there was no witness to ask, and there is none."""
    asked: int | None = None
    asked_at: float = 0.0
    repeated_at: float = 0.0
    told: set[PeerId] = field(default_factory=set)
    """Whom we sent the claim: they must know if it ends, whether their grant reached us or not."""
    gone: set[PeerId] = field(default_factory=set)
    """Witnesses that do not answer, or do not deliver."""
    failures: Counter[PeerId] = field(default_factory=Counter)
    """Failed fetches by donor."""
    witnesses: dict[int, GrantedDonations] = field(default_factory=dict)
    plan: Plan | None = None
    rung: int = 0
    recognised_at: float = 0.0
    payloads: dict[tuple[PeerId, str], Payload] = field(default_factory=dict)
    """Donations that arrived, by donor and digest."""

    @property
    def name(self) -> tuple[int, int]:
        return (self.stage, self.incarnation)


class Claimant:
    """What a node without a stage does to get one."""

    def __init__(self, state: NodeState, policy: SparePolicy) -> None:
        self._state = state
        self.policy = policy
        self._waits_for: int | None = None
        """The stage that we said we would take if somebody could vouch for us."""
        self._began_before: set[int] = set()
        """Stages that we ourselves held before we started again, untrained."""
        self.claim: OpenClaim | None = None

    def consider(self) -> None:
        """Claim a hole if one is ours to take."""
        choice = self.policy.choose() if self.claim is None else None
        if choice is not None and (choice[0] != DRIVER_STAGE or self._state.is_text_ready()):
            self._begin(*choice)

    def note_read(self, key: str) -> None:
        """What is stored under the key is known: a claim that lay open for long enough now counts."""
        self.policy.note_read(key)
        claim = self.claim
        if claim is None or claim.phase is not ClaimPhase.SETTLING or key != stage_key(claim.stage):
            return
        if self._state.now - claim.phase_began >= SETTLE_S:
            claim.is_settled, claim.recognised_at = True, self._state.now
            self._plan(0)

    # --- asking ---

    def _begin(self, stage: int, why: str) -> None:
        incarnation = self._state.membership.known_incarnation(stage) + 1
        claim = OpenClaim(stage, incarnation, why, self._state.now, ClaimPhase.ASKING, self._state.now)
        if self._remaining_witnesses(claim):
            self.claim, self._waits_for = claim, None
            self._ask_next()
        elif (incarnation == 1 or stage in self._began_before) and not self._is_swarm_trained():
            self.claim, self._waits_for = claim, None
            self._settle()
        elif self._waits_for != stage:
            self._waits_for = stage
            self._state.emit("swarm.waiting", stages=[stage], reason="no living peer could vouch for a recovery")

    def recall(self, stage: int) -> None:
        """We held the stage before its first step: if all others are gone too, there is nothing to recover it from."""
        self._began_before.add(stage)

    def _is_swarm_trained(self) -> bool:
        progress = self._state.progress
        has_committed = progress is not None and progress.step > 0
        return has_committed or any(seat.step > 0 for seat in self._state.membership.seats())

    def _remaining_witnesses(self, claim: OpenClaim) -> list[int]:
        """The nearest survivors that have not yet recognised us, ascending; forgets whoever is none any more."""
        survivors = self._survivors(claim)
        owner = self._state.membership.serving_peer
        claim.witnesses = {
            stage: witness
            for stage, witness in claim.witnesses.items()
            if stage in survivors and witness.peer == owner(stage)
        }
        return [stage for stage in survivors if stage not in claim.witnesses]

    def _survivors(self, claim: OpenClaim) -> list[int]:
        def may_vouch(stage: int) -> bool:
            peer = self._state.membership.serving_peer(stage)
            return peer is not None and peer not in claim.gone

        survivors = nearest_survivors(claim.stage, self._state.manifest.stage_count, may_vouch)
        if claim.stage == DRIVER_STAGE:  # a neighbour that was lost too may be there again, with no copy to give
            survivors = sorted({*survivors, *filter(may_vouch, holding_stages(self._state.manifest))})
        return survivors

    def _settle(self) -> None:
        assert self.claim is not None
        self._enter(ClaimPhase.SETTLING)
        self._take_tenure()
        self._publish_tenure()

    def _enter(self, phase: ClaimPhase) -> None:
        assert self.claim is not None
        self.claim.phase, self.claim.phase_began = phase, self._state.now

    def _ask_next(self) -> None:
        """Ask the next witness; when all recognise us, go on to the plan."""
        claim = self.claim
        assert claim is not None
        remaining, laggards = self._remaining_witnesses(claim), self._laggards(claim)
        if remaining:
            claim.asked, claim.asked_at = remaining[0], self._state.now
            self._send_claim()
        elif laggards:
            claim.asked = laggards[0]
        elif claim.witnesses:
            claim.asked = None
            self._recognised()
        else:
            self.abandon("every witness is gone")

    def _laggards(self, claim: OpenClaim) -> list[int]:
        """Witnesses that stand at an earlier step than another: they are about to follow, and are asked again then."""
        if self._state.now - claim.began > CATCH_UP_S:
            return []
        last = max((witness.step for witness in claim.witnesses.values()), default=0)
        return [stage for stage, witness in sorted(claim.witnesses.items()) if witness.step < last]

    def _send_claim(self) -> None:
        claim = self.claim
        assert claim is not None
        assert claim.asked is not None
        claim.repeated_at = self._state.now
        owner = self._state.membership.serving_peer(claim.asked)
        if owner is not None:
            claim.told.add(owner)
            self._state.send(owner, Claim(claim.stage, claim.incarnation, tuple(self._survivors(claim))))

    def on_grant(self, peer: PeerId, grant: Grant) -> None:
        claim = self.claim
        if claim is None or claim.name != (grant.stage, grant.incarnation):
            self._decline(peer, grant)
            return
        if claim.phase is not ClaimPhase.ASKING:
            return
        asked = claim.asked
        if asked is None or self._state.membership.serving_peer(asked) != peer:
            return
        claim.witnesses[asked] = GrantedDonations(asked, peer, grant.step, grant.donations)
        if self._state.tenure is None:
            self._take_tenure()
        self._ask_next()

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
        claim.told.discard(peer)  # it holds nothing of ours: to withdraw the claim there would spend its incarnation
        self._state.membership.raise_incarnation(refusal.stage, refusal.known_incarnation)
        self.abandon(refusal.reason)

    def _take_tenure(self) -> None:
        """Hold the stage as recovering, so that our witnesses can watch us."""
        claim = self.claim
        assert claim is not None
        self._state.tenure = Tenure(claim.stage, claim.incarnation, self._state.me)
        self._state.tenure_state = "recovering"
        self._state.membership.observe(self._state.my_seat(), is_direct=True)

    def _publish_tenure(self) -> None:
        """Only now: a record read by all must not depose an owner whom one mistaken witness gave up."""
        self._state.is_recognised = True
        self._store_tenure()

    def _store_tenure(self) -> None:
        state = self._state
        record = StageRecord(state.me, state.stage, state.incarnation, state.tenure_state, state.committed)
        state.act(Store(record, state.manifest.timing.record_lifetime_s))

    # --- gathering ---

    def _recognised(self) -> None:
        claim = self.claim
        assert claim is not None
        if claim.plan is None:
            claim.recognised_at = self._state.now
            self._publish_tenure()
            self._state.emit("stage.claimed", why=claim.why, witnesses=sorted(claim.witnesses))
        self._plan(claim.rung)

    def _plan(self, first_rung: int) -> None:
        claim = self.claim
        assert claim is not None
        witnesses = tuple(claim.witnesses[stage] for stage in sorted(claim.witnesses))
        manifest = self._state.manifest
        initial = initial_source(manifest, claim.stage)
        is_lost = initial is not None and initial.peer in claim.gone
        known = None if is_lost else initial
        case = RecoveryCase(claim.stage, manifest.model.block_stages, witnesses, manifest.recovery, known, is_lost)
        claim.plan, claim.rung = plan_recovery(case, first_rung)
        claim.retry_at = None
        self._enter(ClaimPhase.FETCHING)
        for source in claim.plan.sources:
            offer = source.donation
            if (source.peer, offer.digest) not in claim.payloads:
                self._state.act(Fetch(claim.name, source.peer, offer.part, offer.digest, offer.payload_bytes))
        self._build_if_gathered()

    def on_fetched(self, event: Fetched) -> None:
        claim = self.claim
        if claim is None or claim.name != event.claim or claim.plan is None:
            return
        claim.payloads[event.donor, event.digest] = event.payload
        if claim.phase is ClaimPhase.FETCHING:
            self._build_if_gathered()

    def on_fetch_failed(self, event: FetchFailed) -> None:
        """Ask the donor anew: it may hold newer weights by now. One that fails again and again counts as gone."""
        claim = self.claim
        if claim is None or claim.name != event.claim or claim.phase is not ClaimPhase.FETCHING:
            return
        if not self._is_awaited(event):
            return
        if self._needs_founder(claim):
            reason = f"{event.reason}; waiting for the founder's seed, which serves the run's initial weights"
            self._state.emit("fetch.failed", donor=event.donor, reason=reason)
            claim.retry_at = self._state.now + INITIAL_RETRY_S
            return
        self._state.emit("fetch.failed", donor=event.donor, reason=event.reason)
        claim.failures[event.donor] += 1
        if claim.failures[event.donor] >= FETCH_TRIES:
            claim.gone.add(event.donor)
        claim.witnesses = {stage: known for stage, known in claim.witnesses.items() if known.peer != event.donor}
        self._replan()

    def _needs_founder(self, claim: OpenClaim) -> bool:
        """A run that begins with weights must not begin with others: nothing was trained that a wait could cost."""
        assert claim.plan is not None
        return claim.plan.method == "initial" and claim.plan.step == 0

    def _is_awaited(self, event: FetchFailed) -> bool:
        assert self.claim is not None
        assert self.claim.plan is not None
        wanted = {(source.peer, source.donation.digest) for source in self.claim.plan.sources}
        return (event.donor, event.digest) in wanted - set(self.claim.payloads)

    def _replan(self) -> None:
        assert self.claim is not None
        self._state.act(CancelFetches(self.claim.name))
        if self.claim.is_settled:
            self._plan(self.claim.rung)
            return
        self._enter(ClaimPhase.ASKING)
        self._ask_next()

    def _build_if_gathered(self) -> None:
        claim = self.claim
        assert claim is not None
        assert claim.plan is not None
        keys = [(source.peer, source.donation.digest) for source in claim.plan.sources]
        if all(key in claim.payloads for key in keys) and self._has_text(claim.plan):
            self._build_from(claim.plan, tuple(claim.payloads[key] for key in keys))

    def _has_text(self, plan: Plan) -> bool:
        """Only the witnesses know which step is due; what we read of the stages before may be older."""
        assert self.claim is not None
        return self.claim.stage != DRIVER_STAGE or self._state.is_text_ready(plan.step)

    def on_text_read(self) -> None:
        """What a claim on S0 may have waited for."""
        if self.claim is not None and self.claim.phase is ClaimPhase.FETCHING and self.claim.plan is not None:
            self._build_if_gathered()

    def _build_from(self, plan: Plan, payloads: tuple[Payload, ...] = ()) -> None:
        claim = self.claim
        assert claim is not None
        claim.plan = plan
        self._enter(ClaimPhase.BUILDING)
        scale = plan.learning_rate_scale
        if plan.coefficients:
            job: Job = BlendJob(claim.stage, claim.incarnation, payloads, plan.coefficients, scale)
        else:
            parts = tuple(source.donation.part for source in plan.sources)
            job = InitialiseJob(claim.stage, claim.incarnation, scale, tuple(zip(parts, payloads, strict=True)))
        self._state.act(Run(job))

    def on_job_done(self, done: JobDone) -> OpenClaim | None:
        """The finished claim once the stage is built. A result that is a text says why it could not be."""
        claim, job = self.claim, done.job
        if claim is None or not isinstance(job, BlendJob | InitialiseJob):
            return None
        if claim.name != (job.stage, job.incarnation) or claim.phase is not ClaimPhase.BUILDING:
            return None
        if done.result is None:
            self.claim = None
            return claim
        self._state.emit("blend.failed", reason=done.result)
        self._plan(claim.rung + 1)
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
            self._press(claim)
        elif claim.retry_at is not None and claim.retry_at <= self._state.now:
            self._replan()

    def _press(self, claim: OpenClaim) -> None:
        """Ask again, and give up on a witness that shows no sign of life."""
        assert claim.asked is not None
        seat = self._state.membership.seat(claim.asked)
        remaining, laggards = self._remaining_witnesses(claim), self._laggards(claim)
        if seat is None or claim.asked not in {*remaining, *laggards}:
            self._ask_next()
            return
        if claim.asked in laggards:
            self._send_claim()
            return
        silence_s = self._state.now - max(claim.asked_at, seat.heard)
        if silence_s > self._state.manifest.timing.dead_after_s:
            claim.gone.add(seat.peer)
            self._ask_next()
        elif self._state.now - claim.asked_at > ANSWER_LIMIT_S:
            self.abandon(f"S{claim.asked} does not answer")
        elif self._state.now - claim.repeated_at >= CLAIM_REPEAT_S:
            self._send_claim()

    def seat_changed(self, stage: int) -> None:
        """Somebody's tenure of this stage began or ended."""
        claim = self.claim
        if claim is None:
            return
        seat = self._state.membership.seat(stage)
        is_ours = seat is None or seat.peer == self._state.me or seat.incarnation < claim.incarnation
        if stage == claim.stage and not is_ours:
            self.abandon("superseded")
        elif claim.phase is ClaimPhase.ASKING and stage == claim.asked:
            self._ask_next()
        elif claim.phase is ClaimPhase.FETCHING:
            self._on_donor_lost(claim, stage)

    def _on_donor_lost(self, claim: OpenClaim, stage: int) -> None:
        """A donor that died before it delivered: do not wait for its fetch to fail."""
        assert claim.plan is not None
        for source in claim.plan.sources:
            is_delivered = (source.peer, source.donation.digest) in claim.payloads
            if source.stage == stage and not is_delivered and self._state.membership.serving_peer(stage) != source.peer:
                self._state.emit("fetch.failed", donor=source.peer, reason="the donor is lost")
                self._replan()
                return

    def abandon(self, reason: str) -> None:
        """Give up the claim and be a spare again."""
        claim = self.claim
        if claim is None:
            return
        self.claim = None
        self.policy.note_refusal(claim.stage)
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
            self._state.tenure, self._state.is_recognised = None, False
            self._state.membership.withdraw(claim.stage, self._state.me, claim.incarnation)
            self._state.act(Store(self.policy.my_record(), self._state.manifest.timing.record_lifetime_s))
