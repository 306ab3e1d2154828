"""Who holds each stage: the groups of a run as one node sees them, and what can be asked of them.

A stage is served by a *group*: the ordered members of one configuration, which the stage's incarnation numbers.
A claim makes a group of one, and nothing makes a larger one yet; whatever is asked of a stage is asked of its group.
What changes the groups is in view.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from understudy.protocol.ids import INCARNATION_LEAP_MAX, PeerId, Tenure
from understudy.protocol.membership.placement import Standing
from understudy.protocol.membership.seats import Seat
from understudy.protocol.membership.titles import Titles


@dataclass(slots=True)
class Group:
    """The members of a stage's configuration, in order. Never empty; all are of one incarnation."""

    members: list[Seat]
    displaced: Group | None = None
    """Whose place a claimant took: it comes back if the claim is withdrawn before it was served."""

    @property
    def first(self) -> Seat:
        return self.members[0]

    @property
    def incarnation(self) -> int:
        return self.first.incarnation

    @property
    def is_present(self) -> bool:
        """Somebody is there, serving or recovering."""
        return any(seat.is_present for seat in self.members)

    @property
    def is_serving(self) -> bool:
        return any(seat.is_serving for seat in self.members)

    @property
    def step(self) -> int:
        """The last step that a member committed: the others follow, or leave the group."""
        return max(seat.step for seat in self.members)

    @property
    def is_claim(self) -> bool:
        """Nobody serves yet: whoever is there is still recovering the stage."""
        return all(seat.state == "recovering" for seat in self.members)

    @property
    def standing(self) -> Standing:
        """What decides between this group and another of the stage."""
        return self.first.standing._replace(step=self.step)

    def member(self, peer: PeerId, incarnation: int) -> Seat | None:
        """The peer's seat, if it is a member of this very configuration."""
        return next((seat for seat in self.members if seat.is_tenure(peer, incarnation)), None)


WORD_LEAP_MAX = INCARNATION_LEAP_MAX // 2
"""What one word, or many, can spend: less than a witness grants, so that the next claim is not beyond that."""


class Groups:
    """The groups of a run, by stage."""

    def __init__(self, stage_count: int) -> None:
        self.stage_count = stage_count
        self.groups: dict[int, Group] = {}
        self.titles = Titles()
        self.me: PeerId | None = None
        """Whose view it is."""
        self._incarnation_floor: dict[int, int] = {}
        self._accepted: dict[int, int] = {}
        """The highest incarnation of each stage whose tenure we took for true."""

    def seat(self, stage: int) -> Seat | None:
        """The first member of the stage's group: its only one, until groups have more."""
        group = self.groups.get(stage)
        return group.first if group is not None else None

    def seats(self) -> list[Seat]:
        """All members of all groups."""
        return [seat for group in self.groups.values() for seat in group.members]

    def tenure_or_displaced(self, stage: int, incarnation: int) -> Seat | None:
        """The seat of this tenure, be it behind a claim."""
        group = self.groups.get(stage)
        if group is not None and group.incarnation != incarnation and group.displaced is not None:
            group = group.displaced
        return group.first if group is not None and group.incarnation == incarnation else None

    def is_present(self, stage: int) -> bool:
        group = self.groups.get(stage)
        return group is not None and group.is_present

    def vacant_s(self, stage: int, now: float) -> float:
        """How long we have known of nobody who owns the stage; 0 if somebody is there."""
        group = self.groups.get(stage)
        if group is None:
            return float("inf")
        return 0.0 if group.is_present else now - max(seat.died_at for seat in group.members)

    def is_serving(self, stage: int) -> bool:
        group = self.groups.get(stage)
        return group is not None and group.is_serving

    def serving_peers(self, stage: int) -> list[PeerId]:
        """The living, serving members of a stage's group, in order."""
        group = self.groups.get(stage)
        return [seat.peer for seat in group.members if seat.is_serving] if group is not None else []

    def serving_peer(self, stage: int) -> PeerId | None:
        """The first living, serving member of a stage's group."""
        return next(iter(self.serving_peers(stage)), None)

    def known_incarnation(self, stage: int) -> int:
        """The highest incarnation of the stage that we know of; 0 if it was never owned."""
        group = self.groups.get(stage)
        return max(group.incarnation if group else 0, self._incarnation_floor.get(stage, 0))

    def accepted_incarnation(self, stage: int) -> int:
        """The highest incarnation whose tenure we took for true; 0 if there was none."""
        return self._accepted.get(stage, 0)

    def raise_incarnation(self, stage: int, incarnation: int) -> None:
        """Somebody knows of this incarnation, though we do not know its owner. It is a word, so it counts so far."""
        credible = min(incarnation, self.accepted_incarnation(stage) + WORD_LEAP_MAX)
        self._incarnation_floor[stage] = max(credible, self._incarnation_floor.get(stage, 0))

    def spend_incarnation(self, stage: int, incarnation: int) -> None:
        """We took a tenure under this incarnation for true."""
        self._accepted[stage] = max(incarnation, self.accepted_incarnation(stage))
        self.note_claimed(stage, incarnation)

    def note_claimed(self, stage: int, incarnation: int) -> None:
        """We claimed the stage ourselves under this incarnation."""
        self._incarnation_floor[stage] = max(incarnation, self._incarnation_floor.get(stage, 0))

    def lower_incarnation(self, stage: int, incarnation: int) -> None:
        """We are further ahead than others grant: what we only heard, or claimed in vain, is taken back."""
        known = self._incarnation_floor.get(stage, 0)
        self._incarnation_floor[stage] = max(self.accepted_incarnation(stage), min(known, incarnation))

    def lost_incarnation(self, stage: int) -> int:
        """The tenure that ended, 0 if there was none: a claimant still recovering has not begun one."""
        seat = self.seat(stage)
        is_claimed = seat is not None and seat.is_present and seat.state == "recovering"
        return seat.incarnation - 1 if seat is not None and is_claimed else self.known_incarnation(stage)

    def seats_of(self, peer: PeerId) -> list[Seat]:
        return [seat for seat in self.seats() if seat.peer == peer]

    def holds_a_seat(self, peer: PeerId) -> bool:
        """The peer serves or recovers a stage, whatever its record as a spare still says."""
        return any(seat.is_present for seat in self.seats_of(peer))

    # --- who trained them, and who may take them ---

    def note_training(self, seat: Seat) -> None:
        """Who serves at a later step than the first has trained the stage."""
        if seat.step > 0 and seat.state == "serving":
            self.titles.note_trained(seat.stage)

    def note_step(self, peer: PeerId, stage: int, step: int) -> None:
        """How far the owner of a stage is, by what it said of something else."""
        for seat in self.seats_of(peer):
            if seat.stage == stage:
                seat.step = max(seat.step, step)
                self.note_training(seat)

    def is_entitled(self, tenure: Tenure, now: float, record_lifetime_s: float) -> bool:
        """Whether the tenure's word is enough for us to see it in the seat."""
        stage, titles = tenure.stage, self.titles
        group = self.groups.get(stage)
        if titles.is_proven(tenure) or (group is None and not titles.is_known(stage)):
            return True
        if titles.is_trained(stage):
            return False
        if titles.is_run_trained:
            return self.vacant_s(stage, now) > record_lifetime_s
        is_ours_to_yield = group is not None and group.first.peer == self.me
        return is_ours_to_yield or not self.is_present(stage)

    # --- all of them ---

    def missing(self, stages: Iterable[int]) -> list[int]:
        """Those of the stages that nobody serves."""
        return [stage for stage in stages if not self.is_serving(stage)]

    def beyond(self, stage: int, step: int) -> tuple[list[int], int]:
        """Of the other stages with a living owner: which committed this step, and how many there are."""
        others = [other for other in self.groups if other != stage and self.is_serving(other)]
        return [other for other in others if self.groups[other].step >= step], len(others)
