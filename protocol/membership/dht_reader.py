"""Reading the DHT: what records mean to an owner, and to a spare."""

from __future__ import annotations

from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.membership.consequences import Consequences
from understudy.protocol.membership.failure_detector import FailureDetector
from understudy.protocol.membership.gossip import MembershipGossip
from understudy.protocol.membership.placement import in_order
from understudy.protocol.node_state import NodeState
from understudy.protocol.wire.records import (
    SPARES_KEY,
    AnyRecord,
    OfferRecord,
    ProgressRecord,
    SpareRecord,
    StageRecord,
    stage_key,
)


class DhtReader:
    """Takes in what was read under one key."""

    def __init__(
        self, state: NodeState, detector: FailureDetector, consequences: Consequences, gossip: MembershipGossip
    ) -> None:
        self._state, self._detector = state, detector
        self._consequences, self._gossip = consequences, gossip

    def on_records(self, key: str, records: tuple[AnyRecord, ...]) -> None:
        tenures = [record for record in records if isinstance(record, StageRecord)]
        for record in in_order(tenures):
            if not self._state.is_stopped:
                self._gossip.read(record)
        self._note_missing(key, tenures)
        spares = [record for record in records if isinstance(record, SpareRecord)]
        if key == SPARES_KEY:
            self._detector.note_spares(spares)
            self._consequences.note_spares(spares)
        if self._state.tenure is None:
            self._note_offers([record for record in records if isinstance(record, OfferRecord)])
        news = [record for record in records if isinstance(record, ProgressRecord)]
        for word in news:
            self._note_end(word)
        for word in news:
            if not self._state.is_stopped:
                self._note_progress(word)
        self._consequences.note_read(key)
        if self._state.tenure is None and not self._state.is_stopped:
            self._consequences.look_for_work()

    def _note_missing(self, key: str, records: list[StageRecord]) -> None:
        """A stage whose owner's record has expired is a hole to those who do not hear the owner.

        Our own is none: we may have slept for longer than our record lives, or the DHT lost it.
        """
        for seat in self._state.membership.seats():
            if stage_key(seat.stage) == key and seat.peer not in {self._state.me, *(record.peer for record in records)}:
                if self._state.membership.record_missing(seat.stage, self._state.now):
                    self._gossip.on_seat_changed(seat.stage)
                return

    def _note_offers(self, records: list[OfferRecord]) -> None:
        """Witnesses say that a stage is lost, or is not any more.

        Only who holds a stage is a witness. Who was cut off took the others for dead; its offers, and ours, outlast its
        return, and it holds none any more.
        """
        membership, stages = self._state.membership, range(self._state.manifest.stage_count)
        said = [r for r in records if r.for_stage in stages and membership.holds_a_seat(PeerId(r.peer))]
        for record in said:
            membership.note_step(PeerId(record.peer), record.stage, record.step)
        lost = {(record.for_stage, record.lost_incarnation) for record in said if not record.is_taken_back}
        for stage, incarnation in sorted(lost):
            if membership.has_just_spoken(stage, self._state.now):
                membership.raise_incarnation(stage, incarnation)
            elif membership.mark_dead(stage, incarnation, self._state.now):
                self._gossip.on_seat_changed(stage)
        for stage, incarnation in sorted({(r.for_stage, r.lost_incarnation) for r in said if r.is_taken_back} - lost):
            self._gossip.refute(stage, incarnation)

    def _note_end(self, record: ProgressRecord) -> None:
        if 0 < self._state.manifest.step.total_steps <= record.step:
            self._gossip.ending.note(PeerId(record.peer))

    def _note_progress(self, record: ProgressRecord) -> None:
        """The driver's news: how far the run is, for spares, and that it is done, for all who missed the end."""
        if self._state.progress is None or record.step > self._state.progress.step:
            self._state.progress = record
        membership, total = self._state.membership, self._state.manifest.step.total_steps
        is_end = 0 < total <= record.step and self._gossip.ending.is_credible
        is_recent = record.incarnation >= membership.known_incarnation(DRIVER_STAGE)
        is_drivers = membership.serving_peer(DRIVER_STAGE) == record.peer
        is_successors = not membership.is_serving(DRIVER_STAGE) or self._consequences.is_alone
        is_successors |= is_end and self._consequences.is_beaten_to(record)
        if is_end:
            self._consequences.take_over_end(record)
        if is_drivers and record.step > 0:
            membership.note_step(PeerId(record.peer), DRIVER_STAGE, record.step)
        if record.peer == self._state.me or not (is_drivers or (is_successors and (is_recent or is_end))):
            return
        if self._state.tenure is None:
            self._state.committed = min(record.step, total or record.step)
        if is_end and (self._state.tenure is None or is_successors):
            self._consequences.end_run(is_doubtful=not is_recent)
