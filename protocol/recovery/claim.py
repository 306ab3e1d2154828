"""A claim that we are making: what it knows, and the questions that it can answer alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.ids import PeerId
from understudy.protocol.jobs import Payload
from understudy.protocol.recovery.ladder import GrantedDonations, Plan
from understudy.protocol.recovery.phases import ClaimPhase, ClaimStep, next_phase

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
    asked: int | None = None
    """Invariant: a stage while we are asking, None in every other phase."""
    asked_at: float = 0.0
    repeated_at: float = 0.0
    told: set[PeerId] = field(default_factory=set)
    """Whom we sent the claim: they must know if it ends, whether their grant reached us or not."""
    gone: set[PeerId] = field(default_factory=set)
    """Witnesses that do not answer, or do not deliver."""
    failures: Counter[PeerId] = field(default_factory=Counter)
    """Failed fetches by donor."""
    witnesses: dict[int, GrantedDonations] = field(default_factory=dict)
    """Invariant: we told each of them of the claim."""
    plan: Plan | None = None
    """Invariant: there is one while we fetch and build, and none before or while we ask anew."""
    rung: int = 0
    recognised_at: float = 0.0
    payloads: dict[tuple[PeerId, str], Payload] = field(default_factory=dict)
    """Donations that arrived, by donor and digest."""

    @property
    def name(self) -> tuple[int, int]:
        return (self.stage, self.incarnation)

    def enter(self, step: ClaimStep, now: float) -> None:
        """Go on to the phase that the step leads to. Raises `LocalProtocolError` if it leads to none."""
        phase = next_phase(self.phase, step)
        if phase is None:
            raise LocalProtocolError(f"{step.name} ends a claim: nothing of it goes on")
        self.phase, self.phase_began = phase, now

    def laggards(self, now: float) -> list[int]:
        """Witnesses that stand at an earlier step than another: they are about to follow, and are asked again then."""
        if now - self.began > CATCH_UP_S:
            return []
        last = max((witness.step for witness in self.witnesses.values()), default=0)
        return [stage for stage, witness in sorted(self.witnesses.items()) if witness.step < last]

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
