"""What a claimant knows of a lost stage and of the weights that there are for it, and what it makes of that: a plan."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.manifest import RecoverySettings, RunManifest
from understudy.protocol.wire.fields import Part
from understudy.protocol.wire.messages import Donation


@dataclass(frozen=True, slots=True)
class GrantedDonations:
    """A nearest survivor that recognised a claim, with the weights that it offers, if any."""

    stage: int
    peer: PeerId
    step: int
    donations: tuple[Donation, ...] = ()


NO_STAGE = -1
"""Of a source that no stage is: the founder's seed, or what the claimant itself holds."""


@dataclass(frozen=True, slots=True)
class Source:
    """One donation to fetch, and from whom. ``stage`` is the donor's own."""

    stage: int
    peer: PeerId
    donation: Donation


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stage is rebuilt from, and why."""

    method: str
    reason: str
    step: int
    """The last committed step that the rebuilt stage stands at."""
    sources: tuple[Source, ...] = ()
    coefficients: tuple[float, ...] = ()
    """Of a blend, one for each source; a copy has the coefficient 1; the parts of S0 have none."""
    learning_rate_scale: float = 1.0

    @property
    def donors(self) -> list[int]:
        """The stages that the weights come from; none for what the run began with, or we hold ourselves."""
        return list(dict.fromkeys(source.stage for source in self.sources if source.stage != NO_STAGE))

    @property
    def payload_bytes(self) -> int:
        return sum(source.donation.payload_bytes for source in self.sources)


def initial_source(manifest: RunManifest, stage: int) -> Source | None:
    """The stage's initial weights with the founder, if the run has any."""
    if not manifest.initial.digests:
        return None
    payload_bytes = manifest.model.stage_bytes(stage)
    donation = Donation("initial", stage, 0, None, payload_bytes, manifest.initial.digests[stage])
    return Source(NO_STAGE, PeerId(manifest.initial.peer), donation)


@dataclass(frozen=True, slots=True)
class RecoveryCase:
    """A lost stage and what its nearest survivors offer."""

    stage: int
    block_stages: int
    witnesses: tuple[GrantedDonations, ...]
    settings: RecoverySettings
    initial: Source | None = None
    """The weights that the run began with, if it did not begin with the seed's and they can still be had."""
    is_initial_lost: bool = False
    """The run began with weights of its own, but its founder does not deliver them."""
    own: tuple[Source, ...] = ()
    """Copies of the lost stage that the claimant itself holds."""

    @property
    def step(self) -> int:
        """Where the rebuilt stage will stand: at the step of the weights that it comes from, if it comes from any."""
        given = [source.donation for source in self._granted() if not source.donation.is_copy]
        offered = [donation.step for donation in given if donation.part == "stage"]
        known = [witness.step for witness in self.witnesses]
        return max(known if self.stage == DRIVER_STAGE else offered or known, default=0)

    def sources(self, part: Part) -> list[Source]:
        """All copies of this part of the stage, in order of the holders' stages, our own first, the latest last."""
        found = [source for source in (*self._granted(), *self.own) if source.donation.is_copy]
        of_part = [source for source in found if source.donation.part == part]
        return sorted(of_part, key=lambda source: (source.stage, source.donation.step))

    def donors(self) -> list[Source]:
        """All witnesses' own weights, in order of their stages.

        Those of another step are no donation: a blend of two steps is neither's.
        """
        found = [source for source in self._granted() if not source.donation.is_copy]
        fitting = [s for s in found if (s.donation.part, s.donation.step) == ("stage", self.step)]
        return sorted(fitting, key=lambda source: source.stage)

    def _granted(self) -> list[Source]:
        return [Source(w.stage, w.peer, donation) for w in self.witnesses for donation in w.donations]

    def block_sources(self) -> list[Source]:
        """The nearest block stage with weights below the lost one and the nearest above it."""
        offered = [] if self.stage == DRIVER_STAGE else self.donors()
        below = [source for source in offered if source.stage < self.stage]
        above = [source for source in offered if source.stage > self.stage]
        return [*below[-1:], *above[:1]]
