"""A claim's weights: plan where they come from, fetch them, have the stage built from them."""

from __future__ import annotations

from understudy.protocol.actions import Fetch, Run
from understudy.protocol.events import Fetched, FetchFailed
from understudy.protocol.ids import DRIVER_STAGE
from understudy.protocol.jobs import BlendJob, InitialiseJob, Job, Payload
from understudy.protocol.node_state import NodeState
from understudy.protocol.recovery.case import NO_STAGE, Plan, RecoveryCase, Source, initial_source
from understudy.protocol.recovery.claim import OpenClaim
from understudy.protocol.recovery.ladder import plan_recovery
from understudy.protocol.recovery.phases import ClaimPhase, ClaimStep
from understudy.protocol.standby.shelf import Shelf

INITIAL_RETRY_S = 2.0
"""From one failed fetch of the run's initial weights to the next: the founder may be starting again."""
FETCH_TRIES = 3
"""How often a living donor may fail to deliver. Its weights are better than any further rung of the ladder."""


class Gathering:
    """What a claim in `ClaimPhase.FETCHING` does, up to the job that builds the stage."""

    def __init__(self, state: NodeState, shelf: Shelf) -> None:
        self._state, self._shelf = state, shelf

    def plan(self, claim: OpenClaim, first_rung: int, step: ClaimStep) -> None:
        """Choose the best source from this rung of the ladder on, and fetch what it lacks.

        ``step``: what brought us here.
        """
        claim.plan, claim.rung = plan_recovery(self._case(claim), first_rung)
        claim.payloads |= {(self._state.me, c.offer.digest): c.payload for c in self._shelf.copies(claim.stage)}
        claim.retry_at = None
        claim.enter(step, self._state.now)
        for source in claim.plan.sources:
            offer = source.donation
            if (source.peer, offer.digest) not in claim.payloads:
                self._state.act(Fetch(claim.name, source.peer, offer.part, offer.digest, offer.payload_bytes))
        self.build_if_gathered(claim)

    def _case(self, claim: OpenClaim) -> RecoveryCase:
        witnesses = tuple(claim.witnesses[stage] for stage in sorted(claim.witnesses))
        manifest = self._state.manifest
        initial = initial_source(manifest, claim.stage)
        is_lost = initial is not None and initial.peer in claim.gone
        known = None if is_lost else initial
        own = tuple(Source(NO_STAGE, self._state.me, donation) for donation in self._shelf.donations(claim.stage))
        return RecoveryCase(claim.stage, manifest.model.block_stages, witnesses, manifest.recovery, known, is_lost, own)

    def has_copy_of(self, stage: int) -> bool:
        """Whether we need nobody's weights, as far as we know how far the others are."""
        known = max((seat.step for seat in self._state.membership.seats()), default=0)
        age_max = self._state.manifest.recovery.standby_age_max
        steps = [copy.offer.step for copy in self._shelf.copies(stage) if copy.offer.part == "stage"]
        return bool(steps) and known - max(steps) <= age_max

    def would_use_copy(self, claim: OpenClaim) -> bool:
        """Whether the copy that we counted on is young enough, now that the witnesses said how far they are."""
        return plan_recovery(self._case(claim), claim.rung)[0].method == "standby"

    def give_copy_up(self, claim: OpenClaim) -> None:
        """Our copy is of no use: whoever recognised us is to prepare its weights after all."""
        claim.has_own_copy, claim.rung = False, 0
        claim.witnesses.clear()
        self._shelf.forget(claim.stage)

    def on_fetched(self, claim: OpenClaim, event: Fetched) -> None:
        """A donation is here. One that arrives while we ask anew may still be of use."""
        claim.payloads[event.donor, event.digest] = event.payload
        if claim.phase is ClaimPhase.FETCHING:
            self.build_if_gathered(claim)

    def must_plan_anew(self, claim: OpenClaim, event: FetchFailed) -> bool:
        """A donor did not deliver: ask it anew, as it may hold newer weights by now.

        One that fails again and again counts as gone. The founder is waited for instead: False.
        """
        if claim.needs_founder:
            reason = f"{event.reason}; waiting for the founder's seed, which serves the run's initial weights"
            self._state.emit("fetch.failed", donor=event.donor, reason=reason)
            claim.retry_at = self._state.now + INITIAL_RETRY_S
            return False
        self._state.emit("fetch.failed", donor=event.donor, reason=event.reason)
        claim.failures[event.donor] += 1
        if claim.failures[event.donor] >= FETCH_TRIES:
            claim.gone.add(event.donor)
        claim.witnesses = {stage: known for stage, known in claim.witnesses.items() if known.peer != event.donor}
        return True

    def has_lost_donor(self, claim: OpenClaim, stage: int) -> bool:
        """A donor of the stage died before it delivered: do not wait for its fetch to fail."""
        assert claim.plan is not None
        for source in claim.plan.sources:
            is_awaited = source.stage == stage and claim.is_awaited(source.peer, source.donation.digest)
            if is_awaited and self._state.membership.serving_peer(stage) != source.peer:
                self._state.emit("fetch.failed", donor=source.peer, reason="the donor is lost")
                return True
        return False

    def build_if_gathered(self, claim: OpenClaim) -> None:
        """Have the stage built once everything is here, for S0 the text as well."""
        assert claim.plan is not None
        if all(key in claim.payloads for key in claim.wanted) and self._has_text(claim, claim.plan):
            claim.enter(ClaimStep.GATHERED, self._state.now)
            claim.retry_at = None
            payloads = tuple(claim.payloads[key] for key in claim.wanted)
            self._state.act(Run(_building(claim, claim.plan, payloads)))

    def _has_text(self, claim: OpenClaim, plan: Plan) -> bool:
        """Only the witnesses know which step is due; what we read of the stages before may be older."""
        return claim.stage != DRIVER_STAGE or self._state.is_text_ready(plan.step)


def _building(claim: OpenClaim, plan: Plan, payloads: tuple[Payload, ...]) -> Job:
    scale = plan.learning_rate_scale
    if plan.coefficients:
        return BlendJob(claim.stage, claim.incarnation, payloads, plan.coefficients, scale)
    parts = tuple(source.donation.part for source in plan.sources)
    return InitialiseJob(claim.stage, claim.incarnation, scale, tuple(zip(parts, payloads, strict=True)))
