"""A spare's policy: what it has read, which holes it sees, and which of them is its to take."""

from __future__ import annotations

from understudy.protocol.actions import Store
from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.membership.placement import (
    by_copies,
    choose_hole,
    had_their_turn,
    is_in_front,
    jitter,
    rank_holes,
    rank_spares,
)
from understudy.protocol.node_state import NodeState
from understudy.protocol.recovery import reasons
from understudy.protocol.standby.shelf import Shelf
from understudy.protocol.wire.contact import Contact
from understudy.protocol.wire.records import CAPACITY_MAX, SpareRecord, stage_key

PASSED_OVER_S = 600.0
"""So long a spare that left a hole open comes after all who did not."""
PASSED_OVER_MAX = 1024
REFUSAL_PAUSE_S = 0.5
"""After a refusal we look again before we claim the same stage: for so long, and up to a second more."""


class SparePolicy:
    """Watches for a stage without an owner."""

    def __init__(self, state: NodeState, capacity: float, wanted_stage: int | None, shelf: Shelf) -> None:
        self._state, self._shelf = state, shelf
        self._copies_said: tuple[int, ...] = ()
        self._capacity = capacity
        self._wanted_stage = wanted_stage
        self._spares: dict[PeerId, SpareRecord] = {}
        self._keys_unread: set[str] = set()
        self._holes_since: dict[int, float] = {}
        self._refused_until: dict[int, float] = {}
        self._passed_over: dict[PeerId, float] = {}
        """Spares that had their turn and did not take it -> until when that counts."""
        self.look_again()

    def my_record(self) -> SpareRecord:
        """How we present ourselves to the swarm."""
        contact = Contact(reachability=self._state.reachability)  # the addresses are the shell's to add
        state = self._state
        return SpareRecord(
            state.me,
            min(self._capacity, CAPACITY_MAX),
            "left" if state.orphans else "waiting",
            can_drive=state.may_drive,
            contact=contact,
            can_hold_blocks=state.can_hold_blocks,
            copies=self._shelf.stages,
        )

    def say_copies(self) -> None:
        """The others must know whose it is to bring a stage back, should it be lost."""
        if self._copies_said != self._shelf.stages and not self._state.is_in_reserve:
            self._copies_said = self._shelf.stages
            self._state.act(Store(self.my_record(), self._state.manifest.timing.record_lifetime_s))

    def note_spares(self, records: list[SpareRecord]) -> None:
        self._spares = {PeerId(record.peer): record for record in records}

    def look_again(self) -> None:
        """Decide nothing before every stage was looked up from now on: what we knew may be old."""
        self._keys_unread = {stage_key(stage) for stage in range(self._state.manifest.stage_count)}

    def note_read(self, key: str) -> None:
        self._keys_unread.discard(key)

    def note_refusal(self, stage: int, incarnation: int) -> None:
        """Our claim came to nothing: leave the stage alone for a moment.

        Two who shared the votes between them come back at different times, and at others each time.
        """
        pause_s = REFUSAL_PAUSE_S + jitter(PeerId(f"{self._state.me} {incarnation}"))
        self._refused_until[stage] = self._state.now + pause_s

    @property
    def has_looked_around(self) -> bool:
        """Every stage was looked up since we began to look."""
        return not self._keys_unread

    @property
    def is_dispensable(self) -> bool:
        """There is nothing to do for us, and enough spares that come before us wait for work already."""
        ahead = [spare for peer, spare in self._spares.items() if not self._is_passed_over(peer)]
        return self.has_looked_around and not self._holes() and not is_in_front(self.my_record(), ahead)

    def _is_passed_over(self, peer: PeerId) -> bool:
        return self._passed_over.get(peer, 0.0) > self._state.now

    def _pass_over(self, peers: list[PeerId]) -> None:
        """They claim nothing: others need not wait for them next time."""
        until = self._state.now + PASSED_OVER_S
        self._passed_over |= dict.fromkeys((peer for peer in peers if peer != self._state.me), until)
        for peer in list(self._passed_over)[: max(0, len(self._passed_over) - PASSED_OVER_MAX)]:
            del self._passed_over[peer]

    def _holes(self) -> list[int]:
        """The stages without an owner that we may take."""
        membership = self._state.membership
        takeable = [stage for stage in range(membership.stage_count) if self._state.may_take(stage)]
        return [stage for stage in takeable if not membership.is_present(stage)]

    def choose(self) -> tuple[int, str] | None:
        """The stage to claim now, and why."""
        if not self.has_looked_around or self._state.orphans:
            return None
        membership = self._state.membership
        holes = self._holes()
        self._holes_since = {hole: self._holes_since.get(hole, self._state.now) for hole in holes}
        allowed = [stage for stage in holes if self._refused_until.get(stage, 0.0) <= self._state.now]
        if self._wanted_stage is not None and not membership.is_present(self._wanted_stage):
            return (self._wanted_stage, reasons.ASKED_FOR) if self._wanted_stage in allowed else None
        self._wanted_stage = None
        return self._choose_needed(allowed)

    def _choose_needed(self, holes: list[int]) -> tuple[int, str] | None:
        if not holes:
            return None
        membership = self._state.membership
        lost = [stage for stage in holes if membership.known_incarnation(stage) > 0]
        ranked = rank_holes(lost, [stage for stage in holes if stage not in lost])
        idle = {peer: spare for peer, spare in self._spares.items() if not membership.holds_a_seat(peer)}
        idle[self._state.me] = self.my_record()
        is_driver_wanted = ranked[0] == DRIVER_STAGE
        able = rank_spares(
            spare for spare in idle.values() if (spare.can_drive if is_driver_wanted else spare.can_hold_blocks)
        )
        ranking = sorted(able, key=self._is_passed_over)
        waited_s = {hole: self._state.now - since for hole, since in self._holes_since.items()}
        order = by_copies(ranking, ranked, {p: s.copies for p, s in idle.items() if not self._is_passed_over(p)})
        self._pass_over(had_their_turn(order, ranked, waited_s))
        stage = choose_hole(self._state.me, order, ranked, waited_s)
        if stage is None:
            return None
        if stage == DRIVER_STAGE:
            return stage, reasons.DRIVER_NEEDED
        return stage, reasons.lost(stage) if stage in lost else reasons.never_owned(stage)
