"""The whole of a node's decisions: ``handle(event, now) -> actions``.

The core wires its parts together and owns the node's life: spare, claimant, owner, retired, gone.
It never waits, never reads a clock and never fails on what a peer says; `deadline` tells the shell
when to come back with `TimerFired`.
"""

from __future__ import annotations

import msgspec

from protocol.claiming import Claimant, OpenClaim
from protocol.donating import Donor
from protocol.driving import FINAL_PROGRESS_LIFETIME_S, Driver
from protocol.edge_copies import EdgeKeeper
from protocol.errors import RemoteProtocolError
from protocol.events import (
    Action,
    ApplyJob,
    CloseLinks,
    Event,
    Fetched,
    FetchFailed,
    JobDone,
    MessageReceived,
    PeerUnreachable,
    RecordsRead,
    ReleaseStage,
    SnapshotJob,
    Started,
    Stop,
    StopRequested,
    Store,
    TimerFired,
)
from protocol.ids import DRIVER_STAGE, PeerId
from protocol.manifest import RunManifest
from protocol.membership import Membership, Observation, Seat, Status
from protocol.messages import (
    Alive,
    Announce,
    Backward,
    Claim,
    Commit,
    CommitAck,
    DataMessage,
    EdgeCopy,
    EdgeCopyKept,
    Fenced,
    FetchRequest,
    Forward,
    Grant,
    Heartbeat,
    Lost,
    Refusal,
    Withdraw,
)
from protocol.neighbourhood import Neighbourhood
from protocol.node_state import NodeState
from protocol.pipeline import BlockStage
from protocol.records import AnyRecord, ManifestRecord, OfferRecord, ProgressRecord, SpareRecord, StageRecord, stage_key

TICKS_PER_HEARTBEAT = 4


class Core:
    """One node of a run, without its body."""

    def __init__(
        self, me: PeerId, manifest: RunManifest, capacity: float = 1.0, charter: ManifestRecord | None = None
    ) -> None:
        """``charter``: the founder's record of the manifest, to be published again by whoever drives."""
        self._manifest = manifest
        self._charter = charter
        self._capacity = capacity
        self.state = NodeState(me, manifest, Membership(manifest.stage_count, manifest.timing))
        self._neighbourhood = Neighbourhood(self.state)
        self._claimant = Claimant(self.state, capacity, None)
        self._host: BlockStage | Driver | None = None
        self._donor: Donor | None = None
        self._is_view_changed = False
        self._is_known_spare = False
        self.is_stopped = False
        self._next_tick = 0.0

    # --- the way in ---

    @property
    def deadline(self) -> float:
        """When the core wants a `TimerFired`."""
        return self._next_tick

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event, return what to do about it, in order."""
        self.state.now = now
        self.state.actions = []
        if not self.is_stopped:
            self._dispatch(event)
            self._review()
        return self.state.actions

    def may_fetch(self, peer: PeerId, request: FetchRequest) -> bool:
        """Whether the peer may have the weights that we hold."""
        if isinstance(self._host, Driver) and self._host.copier.may_fetch(peer, request):
            return True
        return self._donor is not None and self._donor.may_fetch(peer, request)

    def _dispatch(self, event: Event) -> None:
        match event:
            case TimerFired():
                self._on_tick()
            case MessageReceived(peer, message, _):
                try:
                    self._on_message(event)
                except RemoteProtocolError as error:
                    self.state.emit("peer.misbehaved", offender=peer, reason=str(error), message=type(message).__name__)
                    self.state.act(CloseLinks(peer))
            case JobDone():
                self._on_job_done(event)
            case RecordsRead(key, records):
                self._on_records(key, records)
            case PeerUnreachable(peer):
                self._on_unreachable(peer)
            case Fetched() | FetchFailed():
                self._on_fetch_ended(event)
            case Started(wanted_stage):
                self._claimant = Claimant(self.state, self._capacity, wanted_stage)
                self._become_spare()
            case StopRequested():
                self._leave("asked")

    def _review(self) -> None:
        """What follows from a change of the view."""
        if not self._is_view_changed or self.is_stopped:
            return
        self._is_view_changed = False
        if self._donor is not None and self._host is not None:
            self._donor.review()
            self._host.pump()
        if isinstance(self._host, Driver):
            self._host.advance()
        if self.state.tenure is None:
            self._claimant.consider()

    # --- time ---

    def _on_tick(self) -> None:
        self._next_tick = self.state.now + self._manifest.timing.heartbeat_s / TICKS_PER_HEARTBEAT
        stored_at = self._neighbourhood.stored_at
        for seat in self._neighbourhood.on_tick():
            self._declare_dead(seat)
        if self._neighbourhood.stored_at != stored_at:
            self._refresh()
        if self._host is None:
            self._claimant.on_tick()
        elif isinstance(self._host, Driver):
            self._host.on_tick()
        self._finish_if_done()

    def _refresh(self) -> None:
        """Store again what must not expire, say again what was not acknowledged."""
        if self._donor is not None:
            self._donor.refresh()
        if isinstance(self._host, Driver) and self._charter is not None:
            self._store(msgspec.structs.replace(self._charter, peer=self.state.me))
        if self.state.tenure is None:
            self._store(self._claimant.my_spare_record())

    def _store(self, record: AnyRecord) -> None:
        self.state.act(Store(record, self._manifest.timing.record_lifetime_s))

    def _finish_if_done(self) -> None:
        if self._host is None or not self.state.is_run_done:
            return
        if isinstance(self._host, Driver):
            is_over = self._host.is_done
        else:
            is_over = not self.state.membership.is_present(DRIVER_STAGE)
        if is_over:
            self._leave("done")

    # --- messages ---

    def _on_message(self, event: MessageReceived) -> None:  # noqa: PLR0912 - one case per message
        peer, message = event.peer, event.message
        match message:
            case Heartbeat():
                self._neighbourhood.note_speaker(peer)
                self._on_word(peer, message)
            case Announce():
                self._on_word(peer, message)
            case Forward() | Backward():
                self._on_data(peer, message, event)
            case Commit(incarnation, step):
                if self._observe(peer, (DRIVER_STAGE, incarnation, step)) and isinstance(self._host, BlockStage):
                    self._host.on_commit(peer, message)
            case CommitAck(stage, incarnation, step):
                if self._observe(peer, (stage, incarnation, step)) and isinstance(self._host, Driver):
                    self._host.on_acknowledgement(message)
            case EdgeCopy(_, incarnation, step):
                if self._observe(peer, (DRIVER_STAGE, incarnation, step)) and self._donor is not None:
                    self._donor.keeper.on_offer(peer, message)
            case EdgeCopyKept():
                if isinstance(self._host, Driver):
                    self._host.copier.on_kept(peer, message)
                    self._host.pump()
            case Lost() | Alive() | Fenced():
                self._on_gossip(peer, message)
            case Claim():
                self._on_claim(peer, message)
            case Withdraw(stage, incarnation):
                if self.state.membership.withdraw(stage, peer, incarnation):
                    self._on_seat_changed(stage)
            case Grant():
                self._claimant.on_grant(peer, message)
            case Refusal():
                self._claimant.on_refusal(peer, message)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} has no place on a link")

    def _on_word(self, peer: PeerId, message: Heartbeat | Announce) -> None:
        """An owner speaks of itself."""
        if message.stage >= self._manifest.stage_count:
            raise RemoteProtocolError(f"stage {message.stage} does not exist in this run")
        seat = self._seat(peer, (message.stage, message.incarnation, message.step), message.state)
        if not self._take_note(seat, is_direct=True) or self._host is None or message.state != "serving":
            return
        if isinstance(self._host, Driver):
            self._host.on_stage_step(message.stage, message.step)
        self._host.on_neighbour_step(message.step)

    def _on_data(self, peer: PeerId, message: DataMessage, event: MessageReceived) -> None:
        is_known = self._observe(peer, (message.stage, message.incarnation, max(0, message.step - 1)))
        if not is_known or self._host is None:
            return
        if not self._host.pipe.is_on_route(message):
            self.state.send(peer, self.state.my_announcement())
        elif isinstance(message, Forward):
            self._host.on_forward(message, event.payload)
        else:
            self._host.on_backward(message, event.payload)

    def _on_gossip(self, peer: PeerId, message: Lost | Alive | Fenced) -> None:
        """What one owner says of another. Only known owners are believed; others send us to the DHT."""
        tenure, membership = self.state.tenure, self.state.membership
        is_about_us = tenure is not None and tenure.stage == message.stage
        if not membership.seats_of(peer):
            self._neighbourhood.read()
        elif isinstance(message, Fenced):
            if is_about_us and message.incarnation >= self.state.incarnation and message.owner != self.state.me:
                membership.raise_incarnation(message.stage, message.incarnation)
                self._lose_tenure(f"S{message.stage} is held by another peer under {message.incarnation}")
        elif is_about_us:
            return
        elif isinstance(message, Lost):
            if membership.accuse(message.stage, message.incarnation, self.state.now):
                self._on_seat_changed(message.stage)
                if self.state.tenure is None:
                    self._neighbourhood.read()
        elif membership.absolve(message.stage, message.incarnation, self.state.now):
            self._on_revived(message.stage)

    def _on_fetch_ended(self, event: Fetched | FetchFailed) -> None:
        """Fetches of an owner are copies of S0's weights; all others are of our claim."""
        keeper = self._donor.keeper if self._donor is not None else None
        match event, keeper:
            case Fetched(), None:
                self._claimant.on_fetched(event)
            case FetchFailed(), None:
                self._claimant.on_fetch_failed(event)
            case Fetched(), EdgeKeeper():
                keeper.on_fetched(event)
            case FetchFailed(), EdgeKeeper():
                keeper.on_fetch_failed(event)

    def _on_claim(self, peer: PeerId, claim: Claim) -> None:
        if claim.stage >= self._manifest.stage_count:
            raise RemoteProtocolError(f"stage {claim.stage} does not exist in this run")
        if self._donor is None:
            known = self.state.membership.known_incarnation(claim.stage)
            self.state.send(peer, Refusal(claim.stage, claim.incarnation, known, "not serving"))
            return
        self._donor.on_claim(peer, claim)
        self._is_view_changed = True

    # --- the view ---

    def _seat(self, peer: PeerId, tenure: tuple[int, int, int], state: str) -> Seat:
        stage, incarnation, step = tenure
        return Seat(stage, peer, incarnation, state, step, Status.ALIVE, self.state.now)  # type: ignore[arg-type]

    def _observe(self, peer: PeerId, tenure: tuple[int, int, int]) -> bool:
        """A message that only a serving owner sends. False: its tenure is over, and it is told so."""
        if tenure[0] >= self._manifest.stage_count:
            raise RemoteProtocolError(f"stage {tenure[0]} does not exist in this run")
        return self._take_note(self._seat(peer, tenure, "serving"), is_direct=True)

    def _take_note(self, seat: Seat, *, is_direct: bool) -> bool:
        membership = self.state.membership
        observation = membership.observe(seat, is_direct=is_direct)
        match observation:
            case Observation.OUTDATED:
                self._fence(seat, is_direct)
                return False
            case Observation.NEW_OWNER | Observation.SERVING:
                self._on_new_owner(seat.stage)
            case Observation.REVIVED:
                self._neighbourhood.take_back(membership.seats[seat.stage])
                self._on_revived(seat.stage)
            case Observation.LEFT:
                self._on_left(membership.seats[seat.stage])
        return True

    def _on_left(self, left: Seat) -> None:
        """An owner said goodbye. If it held our stage, then it held it after us."""
        self.state.emit_about("peer.left", left)
        tenure = self.state.tenure
        if tenure is not None and tenure.stage == left.stage:
            self._lose_tenure(f"S{left.stage} was held by another peer under {left.incarnation}")
        self._on_seat_changed(left.stage)
        is_enough = left.stage == DRIVER_STAGE or self.state.tenure is None
        if is_enough and 0 < self._manifest.step.total_steps <= left.step:
            self._on_run_over()

    def _fence(self, seat: Seat, is_direct: bool) -> None:
        """Tell an outdated owner that its tenure is over."""
        if is_direct and seat.state != "left":
            known = self.state.membership.seats[seat.stage]
            self.state.send(seat.peer, Fenced(seat.stage, known.incarnation, known.peer))

    def _on_new_owner(self, stage: int) -> None:
        tenure = self.state.tenure
        if tenure is not None and tenure.stage == stage and self.state.membership.seats[stage].peer != self.state.me:
            self._lose_tenure(f"S{stage} is held by another peer")
        elif self._host is not None and self.state.membership.is_serving(stage):
            self._host_owner_changed(stage)
        self._on_seat_changed(stage)

    def _host_owner_changed(self, stage: int) -> None:
        if isinstance(self._host, Driver):
            self._host.owner_changed(stage)
        elif self._host is not None:
            self._host.pipe.owner_changed(stage)

    def _on_revived(self, stage: int) -> None:
        if self._host is not None and self.state.membership.is_serving(stage):
            self._host.pipe.owner_revived(stage)
        self._on_seat_changed(stage)

    def _on_seat_changed(self, stage: int) -> None:
        self._is_view_changed = True
        self._claimant.seat_changed(stage)

    def _declare_dead(self, seat: Seat) -> None:
        self._neighbourhood.declare_dead(seat)
        self._on_seat_changed(seat.stage)

    def _on_unreachable(self, peer: PeerId) -> None:
        for seat in self.state.membership.seats_of(peer):
            if self.state.membership.mark_dead(seat.stage, seat.incarnation, self.state.now):
                self._declare_dead(seat)

    # --- records ---

    def _on_records(self, key: str, records: tuple[AnyRecord, ...]) -> None:
        tenures = [record for record in records if isinstance(record, StageRecord)]
        for found in tenures:
            tenure = (found.stage, found.incarnation, found.step)
            is_foreign = found.stage < self._manifest.stage_count and found.peer != self.state.me
            if is_foreign and not self.is_stopped:
                self._take_note(self._seat(PeerId(found.peer), tenure, found.state), is_direct=False)
        self._note_missing(key, tenures)
        spares = [record for record in records if isinstance(record, SpareRecord)]
        if spares:
            self._neighbourhood.note_spares(spares)
            self._claimant.note_spares(spares)
        for record in records:
            if isinstance(record, OfferRecord) and self.state.tenure is None:
                self._note_offer(record)
            elif isinstance(record, ProgressRecord):
                self._note_progress(record)
        self._claimant.note_read(key)
        if self.state.tenure is None and not self.is_stopped:
            self._claimant.consider()
            self._say_spare()

    def _note_missing(self, key: str, records: list[StageRecord]) -> None:
        """A stage whose owner's record has expired is a hole to those who do not hear the owner."""
        for stage, seat in self.state.membership.seats.items():
            if stage_key(stage) == key and seat.peer not in {record.peer for record in records}:
                if self.state.membership.record_missing(stage, self.state.now):
                    self._on_seat_changed(stage)
                return

    def _note_offer(self, record: OfferRecord) -> None:
        if record.for_stage < self._manifest.stage_count and self.state.membership.mark_dead(
            record.for_stage, record.lost_incarnation, self.state.now
        ):
            self._on_seat_changed(record.for_stage)

    def _note_progress(self, record: ProgressRecord) -> None:
        """The driver's news: how far the run is, for spares, and that it is done, for all who missed the end."""
        membership, total = self.state.membership, self._manifest.step.total_steps
        is_drivers = membership.serving_peer(DRIVER_STAGE) == record.peer
        is_successors = (
            not membership.is_serving(DRIVER_STAGE) or self._is_alone
        ) and record.incarnation >= membership.known_incarnation(DRIVER_STAGE)
        if record.peer == self.state.me or not (is_drivers or is_successors):
            return
        if self.state.tenure is None:
            self.state.committed = min(record.step, total or record.step)
        if total and record.step >= total and (self.state.tenure is None or is_successors):
            self._on_run_over()

    def _on_run_over(self) -> None:
        """The driver left after the last step. We apply it if only its commit is missing, and leave."""
        total = self._manifest.step.total_steps
        if isinstance(self._host, BlockStage):
            self._host.on_neighbour_step(total)
            if self._host.step > total:
                return
        self._leave("done")

    @property
    def _is_alone(self) -> bool:
        """We drive, but no stage is there to be driven."""
        block_stages = range(1, self._manifest.stage_count)
        return isinstance(self._host, Driver) and not any(map(self.state.membership.is_present, block_stages))

    # --- the node's life ---

    def _become_spare(self) -> None:
        self._is_known_spare = False
        self._store(self._claimant.my_spare_record())
        self._neighbourhood.read()

    def _say_spare(self) -> None:
        """Once we have looked around and found nothing to do."""
        if not self._is_known_spare and self._claimant.has_looked_around and self._claimant.claim is None:
            self._is_known_spare = True
            self.state.emit("peer.spare")

    def _on_job_done(self, event: JobDone) -> None:
        if isinstance(event.job, SnapshotJob) and self._donor is not None and self._host is not None:
            self._host.pipe.queue.finished()
            if event.job.part == "stage":
                self._donor.on_snapshot(*event.result)
            elif isinstance(self._host, Driver):
                self._host.copier.on_snapshot(event.job.part, *event.result)
            self._host.pump()
        elif self._host is not None:
            self._host.on_job_done(event)
            self._is_view_changed |= isinstance(event.job, ApplyJob)
        else:
            built = self._claimant.on_job_done(event)
            if built is not None:
                self._begin_serving(built)

    def _begin_serving(self, claim: OpenClaim) -> None:
        state, plan = self.state, claim.plan
        assert plan is not None
        state.tenure_state, state.committed, state.squared_gradient_norm = "serving", plan.step, None
        state.membership.observe(state.my_seat(), is_direct=True)
        self._host = Driver(state) if claim.stage == DRIVER_STAGE else BlockStage(state)
        self._donor = Donor(state, self._host.pipe.queue)
        if claim.incarnation > 1:
            state.emit(
                "stage.recovered",
                method=plan.method,
                donors=[source.stage for source in plan.sources],
                coefficients=list(plan.coefficients),
                bytes=plan.payload_bytes,
                digests=[source.donation.digest for source in plan.sources],
                seconds=state.now - claim.began,
                fetch_seconds=claim.phase_began - claim.recognised_at,
                blend_seconds=state.now - claim.phase_began,
                reason=plan.reason,
            )
        state.emit("peer.serving", why=claim.why)
        self._neighbourhood.announce()
        self._neighbourhood.store_tenure()
        self._store(SpareRecord(state.me, self._capacity, "left"))
        self._neighbourhood.read()
        self._is_view_changed = True

    def _lose_tenure(self, reason: str) -> None:
        """Our tenure is over: forget the stage and be a spare."""
        if self._claimant.claim is not None:
            self._claimant.abandon(reason)
            return
        self.state.emit("peer.retired", reason=reason)
        self.state.tenure, self.state.is_recognised = None, False
        self._host = self._donor = None
        self.state.act(ReleaseStage())
        self.state.membership.forget_deaths()
        self._claimant = Claimant(self.state, self._capacity, None)
        self._become_spare()

    def _leave(self, reason: str) -> None:
        """Say goodbye: a record outlives us, so ours must say that we left."""
        if self.is_stopped:
            return
        self.is_stopped = True
        if self._claimant.claim is not None:
            self._claimant.abandon("stopping")
        if self.state.tenure is not None:
            self.state.tenure_state = "left"
            self._neighbourhood.announce()
            self._neighbourhood.store_tenure()
        else:
            self._store(SpareRecord(self.state.me, self._capacity, "left"))
        if self.state.tenure is not None and self.state.is_run_done and not isinstance(self._host, Driver):
            self._store_end()
        self.state.emit("peer.left", reason=reason)
        self.state.act(Stop("done" if reason == "done" else "asked"))

    def _store_end(self) -> None:
        """The driver may have died with the news: every owner that saw the end leaves word of it."""
        incarnation = max(1, self.state.membership.known_incarnation(DRIVER_STAGE))
        tokens = self.state.committed * self._manifest.tokens_per_step
        record = ProgressRecord(self.state.me, incarnation, self.state.committed, None, tokens, 0.0)
        self.state.act(Store(record, FINAL_PROGRESS_LIFETIME_S))
