"""A claim that we are making: what it knows, and the questions that it can answer alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.ids import DRIVER_STAGE, PeerId, Tenure
from understudy.protocol.jobs import Payload
from understudy.protocol.recovery.case import GrantedDonations, Plan
from understudy.protocol.recovery.phases import ClaimPhase, ClaimStep, next_phase
from understudy.protocol.wire.fields import RefusalReason
from understudy.protocol.wire.votes import VOTES_SHOWN_MAX, Vote

CATCH_UP_S = 5.0
"""How long a claim waits for a witness that is a step behind the others, asking again with every tick."""


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
    """The run's initial weights did not come: ask their founder again then. Invariant: only while we fetch."""
    is_settled: bool = False
    """It lay open in the DHT for long enough: there was no witness to ask, and there is none."""
    needed: int = 1
    """Owners who must recognise it (quorum.py)."""
    has_own_copy: bool = False
    """We hold a copy of the stage that is young enough: nobody need prepare weights for us."""
    is_new: bool = False
    """Nothing is at stake yet, as far as we know: nobody committed a step."""
    asked_at: float | None = None
    """Since when we ask. Invariant: a time while we are asking, None in every other phase."""
    named_at: dict[int, float] = field(default_factory=dict)
    """Nearest survivors that were asked for their weights and did not answer that yet: since when."""
    repeated_at: float = 0.0
    told: set[PeerId] = field(default_factory=set)
    """Whom we sent the claim: they must know if it ends, whether their grant reached us or not."""
    votes: dict[int, Vote] = field(default_factory=dict)
    """Who recognised us, by stage. Invariant: we told each of them of the claim."""
    refused: dict[int, RefusalReason] = field(default_factory=dict)
    """What the others last said, by stage."""
    gone: set[PeerId] = field(default_factory=set)
    """Nearest survivors that do not answer, refuse what a majority grants, or do not deliver."""
    failures: Counter[PeerId] = field(default_factory=Counter)
    """Failed fetches by donor."""
    witnesses: dict[int, GrantedDonations] = field(default_factory=dict)
    """Who recognised us and gave what it has. Invariant: all of them are among the votes."""
    plan: Plan | None = None
    """Invariant: there is one while we fetch and build, and none before or while we ask anew."""
    rung: int = 0
    recognised_at: float = 0.0
    payloads: dict[tuple[PeerId, str], Payload] = field(default_factory=dict)
    """Donations that arrived, by donor and digest."""

    @property
    def name(self) -> tuple[int, int]:
        return (self.stage, self.incarnation)

    def tenure(self, me: PeerId) -> Tenure:
        """What we want to hold."""
        return Tenure(self.stage, self.incarnation, me)

    def proof(self, survivors: Collection[int]) -> tuple[Vote, ...]:
        """The votes to show others: of those first whom most of them know, S0 and the stages next to ours."""
        order = sorted(self.votes, key=lambda stage: (stage != DRIVER_STAGE, stage not in survivors, stage))
        return tuple(self.votes[stage] for stage in order[:VOTES_SHOWN_MAX])

    def enter(self, step: ClaimStep, now: float) -> None:
        """Go on to the phase that the step leads to. Raises `LocalProtocolError` if it leads to none."""
        phase = next_phase(self.phase, step)
        if phase is None:
            raise LocalProtocolError(f"{step.name} ends a claim: nothing of it goes on")
        self.phase, self.phase_began = phase, now

    def laggards(self, survivors: Collection[int], now: float) -> list[int]:
        """Survivors that stand at an earlier step than another: they are about to follow, and are asked again then."""
        if now - self.began > CATCH_UP_S:
            return []
        steps = {stage: self.witnesses[stage].step for stage in survivors if stage in self.witnesses}
        return [stage for stage, step in sorted(steps.items()) if step < max(steps.values())]

    @property
    def wanted(self) -> list[tuple[PeerId, str]]:
        """Donor and digest of what the plan is built from, in its order."""
        return [(source.peer, source.donation.digest) for source in self.plan.sources] if self.plan else []

    def is_awaited(self, donor: PeerId, digest: str) -> bool:
        """The plan needs this donation, and it is not here."""
        return (donor, digest) in self.wanted and (donor, digest) not in self.payloads

    @property
    def needs_founder(self) -> bool:
        """A run that begins with weights must not begin with others: nothing was trained that a wait could cost."""
        return self.plan is not None and self.plan.method == "initial" and self.plan.step == 0
