"""The whole of a node's decisions: ``handle(event, now) -> actions``.

The core wires its parts together and owns the node's life: spare, claimant, owner, retired, gone.
It never waits, never reads a clock and never fails on what a peer says; `deadline` tells the shell
when to come back with `TimerFired`.
"""

from __future__ import annotations

from understudy.protocol.bulletin import Bulletin
from understudy.protocol.driving import Driver
from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.events import (
    Action,
    CloseLinks,
    Event,
    Fetched,
    FetchFailed,
    JobDone,
    MessageReceived,
    Payload,
    PeerUnreachable,
    RecordsRead,
    SendFailed,
    Started,
    StopRequested,
    TextRead,
    TimerFired,
)
from understudy.protocol.ids import DRIVER_STAGE, PeerId, Tenure
from understudy.protocol.manifest import RunManifest
from understudy.protocol.membership import Membership
from understudy.protocol.messages import (
    Alive,
    Announce,
    Backward,
    Claim,
    Commit,
    CommitAck,
    DataMessage,
    Dropped,
    EdgeCopy,
    EdgeCopyKept,
    Fenced,
    FetchRequest,
    Forward,
    Grant,
    Heartbeat,
    Held,
    Hold,
    LetGo,
    Lost,
    Refusal,
    Withdraw,
)
from understudy.protocol.neighbourhood import Neighbourhood
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline import BlockStage
from understudy.protocol.recognition import Recognition
from understudy.protocol.records import ManifestRecord
from understudy.protocol.self_view import SelfView, self_view
from understudy.protocol.tenancy import Tenancy

TICKS_PER_HEARTBEAT = 4

StepMessage = Commit | CommitAck | Dropped | EdgeCopy | EdgeCopyKept


class Core:
    """One node of a run, without its body."""

    def __init__(
        self,
        me: PeerId,
        manifest: RunManifest,
        charter: ManifestRecord | None = None,
        *,
        can_drive: bool = True,
    ) -> None:
        """``charter``: the founder's record of the manifest, to be published again by whoever drives.

        ``can_drive`` False: never take S0, because this machine does not have the run's text.
        """
        self._manifest = manifest
        membership = Membership(manifest.stage_count, manifest.timing)
        self.state = NodeState(me, manifest, membership, can_drive=can_drive)
        self._neighbourhood = Neighbourhood(self.state)
        self._tenancy = Tenancy(self.state, self._neighbourhood, charter)
        self._recognition = Recognition(self.state, self._neighbourhood, self._tenancy)
        self._bulletin = Bulletin(self.state, self._neighbourhood, self._tenancy, self._recognition)
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
        if not self.state.is_stopped:
            self._dispatch(event)
            self._tenancy.review()
        return self.state.actions

    def may_fetch(self, peer: PeerId, request: FetchRequest) -> bool:
        """Whether the peer may have the weights that we hold."""
        host, donor = self._tenancy.host, self._tenancy.donor
        if isinstance(host, Driver) and host.copier.may_fetch(peer, request):
            return True
        if host is not None and host.pipe.holds.may_fetch(peer, request):
            return True
        return donor is not None and donor.may_fetch(peer, request)

    def self_view(self) -> SelfView:
        """What there is to see of this node. Changes nothing."""
        return self_view(self.state, self._neighbourhood, self._tenancy.claimant)

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
                self.state.pace.note(self.state.tenure, event)
                self._tenancy.on_job_done(event)
            case SendFailed():
                if self._tenancy.host is not None:
                    self._tenancy.host.on_send_failed(event)
            case RecordsRead(key, records):
                self._bulletin.on_records(key, records)
            case PeerUnreachable(peer):
                self._recognition.on_unreachable(peer)
            case Fetched() | FetchFailed():
                self._on_fetch_ended(event)
            case Started(wanted_stage, capacity):
                self._tenancy.start(wanted_stage, capacity)
            case TextRead():
                self._on_text_read(event)
            case StopRequested():
                self._tenancy.leave("asked")

    def _on_text_read(self, event: TextRead) -> None:
        """Who may drive depends on it; a driver that cannot read its text gives S0 up before others wait for it."""
        self.state.text.note(event.step, self.state.now, is_read=event.failure is None)
        self.state.is_view_changed = True
        if event.failure is None:
            self._tenancy.claimant.on_text_read()
            return
        self.state.emit("text.failed", step=event.step, reason=event.failure)
        claim = self._tenancy.claimant.claim
        if isinstance(self._tenancy.host, Driver):
            self._tenancy.hand_back("the text cannot be read")
        elif claim is not None and claim.stage == DRIVER_STAGE:
            self._tenancy.claimant.abandon("the text cannot be read")
        else:
            self._tenancy.refresh()

    # --- time ---

    def _on_tick(self) -> None:
        self._next_tick = self.state.now + self._manifest.timing.heartbeat_s / TICKS_PER_HEARTBEAT
        stored_at = self._neighbourhood.stored_at
        for seat in self._neighbourhood.on_tick():
            self._recognition.declare_dead(seat)
        if self._neighbourhood.stored_at != stored_at:
            self._tenancy.refresh()
        if self._tenancy.host is None:
            self._tenancy.claimant.on_tick()
        else:
            self._tenancy.host.pipe.holds.on_tick()
            if isinstance(self._tenancy.host, Driver):
                self._tenancy.host.on_tick()
        self._tenancy.yield_if_apart()
        self._tenancy.finish_if_done()

    # --- messages ---

    def _on_message(self, event: MessageReceived) -> None:
        peer, message = event.peer, event.message
        match message:
            case Heartbeat() | Announce():
                self._on_word(peer, message)
            case Forward() | Backward():
                self._on_data(peer, message, event.payload)
            case Commit() | CommitAck() | Dropped() | EdgeCopy() | EdgeCopyKept():
                self._on_step_message(peer, message)
            case Lost() | Alive() | Fenced():
                self._recognition.on_gossip(peer, message)
            case Claim() | Withdraw() | Grant() | Refusal():
                self._on_claim_message(peer, message)
            case Hold() | LetGo():
                self._on_hold_message(peer, message)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} has no place on a link")

    def _on_word(self, peer: PeerId, message: Heartbeat | Announce) -> None:
        """An owner speaks of itself."""
        if isinstance(message, Heartbeat):
            self._neighbourhood.note_speaker(peer)
        tenure = Tenure(message.stage, message.incarnation, peer)
        is_known = self._recognition.hear(tenure, message.state, message.step)
        host = self._tenancy.host
        if not is_known or host is None or message.state != "serving":
            return
        if isinstance(host, Driver):
            host.on_stage_step(message.stage, message.step)
        else:
            host.on_neighbour_step(message.step)

    def _on_data(self, peer: PeerId, message: DataMessage, payload: Payload) -> None:
        """A tensor for our stage: from whoever owns the stage before or after it on the route."""
        tenure = Tenure(message.stage, message.incarnation, peer)
        is_known = self._recognition.hear(tenure, "serving", max(0, message.step - 1))
        host = self._tenancy.host
        if not is_known or host is None:
            return
        if not host.pipe.is_on_route(message):
            self.state.send(peer, self.state.my_announcement())
        elif isinstance(message, Forward):
            host.on_forward(message, payload)
        else:
            host.on_backward(message, payload)

    def _on_step_message(self, peer: PeerId, message: StepMessage) -> None:
        """What S0 and the stages say of steps and copies."""
        if isinstance(message, EdgeCopyKept):
            if isinstance(self._tenancy.host, Driver):
                self._tenancy.host.on_copy_kept(peer, message)
            return
        stage = message.stage if isinstance(message, CommitAck | Dropped) else DRIVER_STAGE
        committed = max(0, message.step - 1) if isinstance(message, Dropped) else message.step
        if not self._recognition.hear(Tenure(stage, message.incarnation, peer), "serving", committed):
            return
        match message, self._tenancy.host:
            case Commit(), BlockStage() as host:
                host.on_commit(peer, message)
            case CommitAck(), Driver() as host:
                host.on_stage_step(message.stage, message.step)
            case Dropped(), Driver() as host:
                host.on_dropped(message)
            case EdgeCopy(), BlockStage():
                if self._tenancy.donor is not None:
                    self._tenancy.donor.keeper.on_offer(peer, message)

    def _on_claim_message(self, peer: PeerId, message: Claim | Withdraw | Grant | Refusal) -> None:
        """Both sides of a claim."""
        match message:
            case Claim():
                self._on_claim(peer, message)
            case Withdraw(stage, incarnation):
                if self.state.membership.withdraw(stage, peer, incarnation):
                    self._recognition.on_seat_changed(stage)
            case Grant():
                self._tenancy.claimant.on_grant(peer, message)
            case Refusal():
                self._tenancy.claimant.on_refusal(peer, message)

    def _on_claim(self, peer: PeerId, claim: Claim) -> None:
        if claim.stage >= self._manifest.stage_count:
            raise RemoteProtocolError(f"stage {claim.stage} does not exist in this run")
        self._recognition.on_claim_of_owner(peer, claim)
        if self._tenancy.donor is None:
            known = self.state.membership.known_incarnation(claim.stage)
            self.state.send(peer, Refusal(claim.stage, claim.incarnation, known, "not serving"))
            return
        self._tenancy.donor.on_claim(peer, claim)
        self.state.is_view_changed = True

    def _on_hold_message(self, peer: PeerId, message: Hold | LetGo) -> None:
        """What exporters ask of the owner of a stage."""
        host = self._tenancy.host
        if isinstance(message, LetGo):
            if host is not None:
                host.pipe.holds.let_go(peer, message.step)
        elif host is None:
            tenure = (message.stage, message.incarnation)
            self.state.send(peer, Held(*tenure, message.step, "not mine", self.state.committed))
        else:
            host.pipe.holds.on_hold(peer, message, host.step)
            host.pump()

    def _on_fetch_ended(self, event: Fetched | FetchFailed) -> None:
        """Fetches of an owner are copies of S0's weights; all others are of our claim."""
        donor = self._tenancy.donor
        receiver = self._tenancy.claimant if donor is None else donor.keeper
        if isinstance(event, Fetched):
            receiver.on_fetched(event)
        else:
            receiver.on_fetch_failed(event)
