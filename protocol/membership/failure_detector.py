"""Keeping in touch: heartbeats out, silence judged, deaths declared, records stored and read.

This part decides whom we listen to and whom we tell what. What a change of the view means for our
stage or our claim is decided by the core, which is told through `is_changed` and return values.
"""

from __future__ import annotations

from understudy.protocol.actions import CloseLinks, Read, Store
from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.membership.placement import (
    dead_stretch,
    jitter,
    near_holders,
    nearest_survivors,
    rank_spares,
    watched,
)
from understudy.protocol.membership.seats import Seat, Status
from understudy.protocol.node_state import NodeState
from understudy.protocol.wire.messages import Alive, AnyMessage, Lost
from understudy.protocol.wire.records import PROGRESS_KEY, SPARES_KEY, SpareRecord, stage_key, weights_key

SPARE_READ_PERIOD_S = 1.0
"""How often a spare looks for work, and an owner next to a hole looks for whoever fills it."""
RESERVE_READ_MIN = 0.6
"""A spare in reserve reads after this part of ``record_refresh_s`` at the earliest, at the latest after all of it."""
RESERVE_STAGES_MAX = 14
"""Stages whose offers a spare in reserve looks for: with two keys more they are one question. If those in front take
nothing, nobody else tells it."""
LOOK_UP_S = 0.25
"""Between two questions about tenures that we do not know: whoever makes some up shall not make us ask all the time."""
SPARES_TOLD_MAX = 4
"""A death is told directly to this many spares; the others find it in the DHT."""


class FailureDetector:
    """Our contact with owners, spares and the DHT."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._speakers: dict[PeerId, float] = {}
        self._accused: dict[int, int] = {}
        """Tenures (stage: incarnation) that we ourselves declared dead and that nobody replaced yet."""
        self._spares: list[PeerId] = []
        self._heartbeat_at = self._probe_at = self.stored_at = self._read_at = float("-inf")
        self._looked_up_at = float("-inf")

    # --- whom we watch ---

    def watched(self) -> frozenset[int]:
        """The stages whose owners we must know."""
        state = self._state
        if not state.is_serving or state.stage == DRIVER_STAGE:
            return frozenset(range(state.manifest.stage_count))
        near = state.neighbours()
        if state.manifest.recovery.standby_every:
            near |= set(near_holders(state.stage, state.manifest.last_stage))
        return watched(state.stage, state.manifest.stage_count, near, state.membership.is_serving)

    def monitored(self) -> frozenset[int]:
        """The stages whose owners we listen to: our neighbours on the routes and on the ring, and who claims a stage.

        S0 speaks with every stage, but is listened to, like any other, only by those next to it.
        """
        claimed = {s.stage for s in self._state.membership.seats() if s.is_present and s.state == "recovering"}
        return self._near() | claimed if self._state.is_serving else frozenset()

    def _near(self) -> frozenset[int]:
        """The stages whose silence is ours to tell of."""
        state = self._state
        if not state.is_serving:
            return frozenset()
        count, is_serving = state.manifest.stage_count, state.membership.is_serving
        stretch = dead_stretch(state.stage, count, is_serving)
        near = {*state.neighbours(), *stretch, *nearest_survivors(state.stage, count, is_serving)}
        return frozenset(near - {state.stage})

    # --- time ---

    def on_tick(self) -> list[Seat]:
        """Do what is due. Returns the seats that just died by silence."""
        timing, now = self._state.manifest.timing, self._state.now
        died = self._judge()
        if now - self._heartbeat_at >= timing.heartbeat_s:
            self._heartbeat_at = now
            self._send_heartbeats()
        if now - self.stored_at >= timing.record_refresh_s:
            self.store_tenure()
        if now - self._read_at >= self._read_period_s():
            self.read()
        return died

    def _judge(self) -> list[Seat]:
        membership = self._state.membership
        membership.monitor(self.monitored(), self._state.now)
        died = []
        for seat in membership.tick(self._state.now):
            if seat.status is Status.SUSPECT:
                self._state.emit_about("peer.suspected", seat)
            else:
                died.append(seat)
        return died

    def _read_period_s(self) -> float:
        if self._is_in_reserve:
            part = RESERVE_READ_MIN + (1 - RESERVE_READ_MIN) * jitter(self._state.me)
            return part * self._state.manifest.timing.record_refresh_s
        if self._state.is_serving and not self._state.membership.missing(self.watched()):
            return self._state.manifest.timing.record_refresh_s
        return SPARE_READ_PERIOD_S

    def read(self) -> None:
        """Read what concerns us from the DHT."""
        self._read_at = self._state.now
        if self._is_in_reserve:
            offers = map(weights_key, range(min(self._state.manifest.stage_count, RESERVE_STAGES_MAX)))
            self._state.act(Read((SPARES_KEY, PROGRESS_KEY, *offers)))
            return
        stages = sorted(self.watched())
        keys = [stage_key(stage) for stage in stages] + [SPARES_KEY]
        if self._state.tenure is None:
            keys += [weights_key(stage) for stage in stages]
        if self._state.tenure is None or self._state.membership.missing(self.watched()):
            keys.append(PROGRESS_KEY)
        self._state.act(Read(tuple(keys)))

    def look_up(self, stages: set[int]) -> None:
        """Somebody speaks for a stage that we know to be another's: what lies in the DHT tells, and nothing else."""
        if self._state.now - self._looked_up_at >= LOOK_UP_S:
            self._looked_up_at = self._state.now
            self._state.act(Read(tuple(map(stage_key, sorted(stages)))))

    @property
    def _is_in_reserve(self) -> bool:
        return self._state.tenure is None and self._state.is_in_reserve

    def store_tenure(self) -> None:
        """Publish our tenure record, now and for a while."""
        self.stored_at = self._state.now
        state = self._state
        if state.tenure is not None and state.is_recognised:
            state.act(Store(state.my_record(), state.manifest.timing.record_lifetime_s))

    # --- heartbeats ---

    def note_speaker(self, peer: PeerId) -> None:
        """Who listens to us is who sends us heartbeats; they get ours."""
        self._speakers[peer] = self._state.now

    def _send_heartbeats(self) -> None:
        state = self._state
        if state.tenure is None:
            return
        horizon = state.now - state.manifest.timing.dead_after_s
        self._speakers = {peer: heard for peer, heard in self._speakers.items() if heard >= horizon}
        targets = {seat.peer for seat in self._monitored_seats() if seat.is_present} | set(self._speakers)
        if state.now - self._probe_at >= state.manifest.timing.record_refresh_s:
            self._probe_at = state.now
            targets |= {seat.peer for seat in self._monitored_seats()}
        for peer in sorted(targets - {state.me}):
            state.send(peer, state.my_heartbeat())
        self._repeat_accusations()

    def _monitored_seats(self) -> list[Seat]:
        groups = self._state.membership.groups
        return [seat for stage in sorted(self.monitored()) if stage in groups for seat in groups[stage].members]

    # --- declaring ---

    def declare_dead(self, seat: Seat) -> None:
        """We found out ourselves that this owner is gone: say so to all whom it concerns."""
        self._state.emit_about("peer.dead", seat)
        self._state.act(CloseLinks(seat.peer))
        if self._state.is_serving and seat.stage in self._near():
            self._accused[seat.stage] = seat.incarnation
            self._spread(Lost(seat.stage, seat.incarnation, seat.peer))

    def _repeat_accusations(self) -> None:
        """Go on accusing whom we should hear and do not. Two who only believe each other would never stop."""
        membership, horizon = self._state.membership, self._state.now - self._state.manifest.timing.suspect_after_s
        for stage, incarnation in list(self._accused.items()):
            seat = membership.tenure_or_displaced(stage, incarnation)
            is_ours_to_judge = stage in self._near()
            if not is_ours_to_judge or seat is None or seat.status is not Status.DEAD or seat.heard > horizon:
                del self._accused[stage]
            else:
                self.tell(Lost(stage, incarnation, seat.peer))

    def take_back(self, seat: Seat) -> None:
        """An owner that was taken for dead speaks again: those who do not hear it themselves must know."""
        self._state.emit_about("peer.revived", seat)
        self._accused.pop(seat.stage, None)
        if self._state.is_serving:
            self._spread(Alive(seat.stage, seat.incarnation))

    def _spread(self, message: Lost | Alive) -> None:
        """News of an owner, for all owners and for the spares in front."""
        self.tell(message)
        for spare in self._spares[:SPARES_TOLD_MAX]:
            self._state.send(spare, message)

    def announce(self) -> None:
        """Tell every owner that we know of about our tenure."""
        self.tell(self._state.my_announcement())

    def tell(self, message: AnyMessage) -> None:
        """Say something to every owner that we know of."""
        peers = {seat.peer for seat in self._state.membership.seats() if seat.is_present}
        for peer in sorted(peers - {self._state.me}):
            self._state.send(peer, message)

    def note_spares(self, records: list[SpareRecord]) -> None:
        by_peer = {PeerId(record.peer): record for record in records}
        self._spares = [peer for peer in rank_spares(records) if peer != self._state.me]
        idle = (peer for peer in self._spares if not self._state.membership.holds_a_seat(peer))
        self._state.idle_spares = tuple(by_peer[peer] for peer in idle)
