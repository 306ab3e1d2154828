"""The whole of a node's decisions: ``handle(event, now) -> actions``.

The core wires its parts together. What must hold inside it after every event: protocol/invariants/.
It never waits, never reads a clock and never fails on what a peer says; `deadline` tells the shell
when to come back with `TimerFired`.
"""

from __future__ import annotations

from understudy.protocol.actions import Action, CloseLinks
from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.events import (
    CutOff,
    Event,
    Fetched,
    FetchFailed,
    JobDone,
    LinkChanged,
    LinkFailed,
    MessageReceived,
    PeerUnreachable,
    ReachabilityFound,
    RecordsRead,
    SendFailed,
    Started,
    StopRequested,
    TextRead,
    TimerFired,
)
from understudy.protocol.ids import DRIVER_STAGE, PeerId, Tenure
from understudy.protocol.invariants.node import Invariants
from understudy.protocol.jobs import Payload
from understudy.protocol.manifest import RunManifest
from understudy.protocol.membership.dht_reader import DhtReader
from understudy.protocol.membership.failure_detector import FailureDetector
from understudy.protocol.membership.gossip import MembershipGossip
from understudy.protocol.membership.sentencing import Sentencing
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.observe.node_status import SelfView, self_view
from understudy.protocol.observe.ways import Ways
from understudy.protocol.pipeline.edge_host import EdgeHost
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.recovery.lifecycle import Lifecycle
from understudy.protocol.seal import Seal
from understudy.protocol.wire.messages import (
    Alive,
    Announce,
    Backward,
    Claim,
    Commit,
    CommitAck,
    CopyKept,
    CopyOffer,
    DataMessage,
    Dropped,
    Fenced,
    FetchRequest,
    Forward,
    Grant,
    Heartbeat,
    LeaseRelease,
    LeaseRequest,
    Lost,
    Refusal,
    Withdraw,
)
from understudy.protocol.wire.rates import Quiet
from understudy.protocol.wire.records import ManifestRecord
from understudy.protocol.wire.watching import Here, NotFinite, WatchMessage, Where

TICKS_PER_HEARTBEAT = 4

StepMessage = Commit | CommitAck | Dropped | CopyOffer | CopyKept


class Core:
    """One node of a run, without its body."""

    def __init__(
        self,
        seal: Seal,
        manifest: RunManifest,
        signed_manifest: ManifestRecord | None = None,
        *,
        can_drive: bool = True,
        can_hold_blocks: bool = True,
        check_every: int = 0,
    ) -> None:
        """``seal``: this node's key. ``signed_manifest``: the founder's record of it; whoever drives publishes it.

        ``can_drive`` False: never take S0, because this machine does not have the run's text, or no room for it;
        ``can_hold_blocks`` False: never take a block stage, for want of room.

        ``check_every``: after so many events all invariants of the core are checked; 0: only those that cost little.
        """
        self._manifest = manifest
        membership = Membership(manifest.stage_count, manifest.timing)
        self.state = NodeState(seal, manifest, membership, can_drive=can_drive, can_hold_blocks=can_hold_blocks)
        self._detector = FailureDetector(self.state)
        self._lifecycle = Lifecycle(self.state, self._detector, signed_manifest)
        self._gossip = MembershipGossip(self.state, self._detector, self._lifecycle)
        self._dht_reader = DhtReader(self.state, self._detector, self._lifecycle, self._gossip)
        self._invariants = Invariants(self.state, self._lifecycle, check_every)
        self._ways = Ways(self.state)
        self._sentencing = Sentencing(self.state, self._detector, self._gossip)
        self._quiet = Quiet()
        self._next_tick = 0.0

    # --- the way in ---

    @property
    def deadline(self) -> float:
        """When the core wants a `TimerFired`."""
        return self._next_tick

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event, return what to do about it, in order.

        Raises `LocalProtocolError` if that broke an invariant of the core: it is a bug, and nothing more to be done.
        """
        self.state.now = now
        self.state.actions = []
        if not self.state.is_stopped:
            self._dispatch(event)
            self._lifecycle.review()
        self._invariants.check()
        return self.state.actions

    def may_fetch(self, peer: PeerId, request: FetchRequest) -> bool:
        """Whether the peer may have the weights that we hold."""
        return self._lifecycle.may_fetch(peer, request)

    def self_view(self) -> SelfView:
        """What there is to see of this node. Changes nothing."""
        return self_view(self.state, self._detector, self._lifecycle.claimant, self._ways)

    def _dispatch(self, event: Event) -> None:
        match event:
            case TimerFired():
                self._on_tick()
            case MessageReceived(peer, message, _):
                try:
                    self._on_message(event)
                except RemoteProtocolError as error:
                    self._on_misbehaved(peer, type(message).__name__, str(error))
            case JobDone():
                self.state.pace.note(self.state.tenure, event)
                self._lifecycle.on_job_done(event)
            case SendFailed() if self._lifecycle.host is not None:
                self._lifecycle.host.on_send_failed(event)
            case RecordsRead(key, records):
                self._dht_reader.on_records(key, records)
            case PeerUnreachable(peer):
                self._gossip.on_unreachable(peer)
            case Fetched() | FetchFailed():
                self._lifecycle.on_fetch_ended(event)
            case Started(wanted_stage, capacity, reachability):
                self.state.reachability = reachability
                self._lifecycle.start(wanted_stage, capacity)
            case TextRead():
                self._lifecycle.on_text_read(event)
            case StopRequested():
                self._lifecycle.leave("asked")
            case ReachabilityFound() | LinkChanged() | LinkFailed() | CutOff():
                self._ways.on_event(event)

    def _on_misbehaved(self, peer: PeerId, message: str, reason: str) -> None:
        """Its links are closed each time; said is it now and then."""
        unsaid = self._quiet.admit(peer, message, self.state.now)
        if unsaid is not None:
            self.state.emit("peer.misbehaved", offender=peer, reason=reason, message=message, unsaid=unsaid)
        self.state.act(CloseLinks(peer))

    # --- time ---

    def _on_tick(self) -> None:
        self._next_tick = self.state.now + self._manifest.timing.heartbeat_s / TICKS_PER_HEARTBEAT
        stored_at = self._detector.stored_at
        for seat in self._detector.on_tick():
            self._gossip.declare_dead(seat)
        self._sentencing.on_tick()
        if self._detector.stored_at != stored_at:
            self._lifecycle.refresh()
        self._lifecycle.on_tick()
        self._ways.on_tick()

    # --- messages ---

    def _on_message(self, event: MessageReceived) -> None:
        peer, message = event.peer, event.message
        self._ways.on_heard(peer)
        match message:
            case Heartbeat() | Announce():
                self._on_word(peer, message)
            case Forward() | Backward():
                self._on_data(peer, message, event.payload)
            case Commit() | CommitAck() | Dropped() | CopyOffer() | CopyKept():
                self._on_step_message(peer, message)
            case Where() | Here() | NotFinite():
                self._on_watch_message(peer, message)
            case Lost() | Alive() | Fenced():
                self._gossip.on_gossip(peer, message)
            case Claim() | Withdraw() | Grant() | Refusal():
                self._on_claim_message(peer, message)
            case LeaseRequest() | LeaseRelease():
                self._lifecycle.on_lease_message(peer, message)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} has no place on a link")

    def _on_word(self, peer: PeerId, message: Heartbeat | Announce) -> None:
        """An owner speaks of itself."""
        if isinstance(message, Heartbeat):
            self._detector.note_speaker(peer)
        tenure = Tenure(message.stage, message.incarnation, peer)
        proof = message.proof if isinstance(message, Announce) else ()
        is_known = self._gossip.hear(tenure, message.state, message.step, proof)
        host = self._lifecycle.host
        if not is_known or host is None or message.state != "serving":
            return
        if isinstance(host, BlockStage):
            if message.stage == DRIVER_STAGE or not self.state.membership.is_serving(DRIVER_STAGE):
                host.on_neighbour_step(message.step)
        elif self._lifecycle.coordinator is not None:
            self._lifecycle.coordinator.on_stage_step(message.stage, message.step)

    def _on_data(self, peer: PeerId, message: DataMessage, payload: Payload) -> None:
        """A tensor for our stage: from whoever owns the stage before or after it on the route."""
        tenure = Tenure(message.stage, message.incarnation, peer)
        is_known = self._gossip.hear(tenure, "serving", max(0, message.step - 1))
        host = self._lifecycle.host
        if not is_known or host is None:
            return
        if not host.is_on_route(message):
            self.state.send(peer, self.state.my_announcement())
        elif isinstance(message, Forward):
            host.on_forward(message, payload)
        else:
            host.on_backward(message, payload)

    def _on_step_message(self, peer: PeerId, message: StepMessage) -> None:
        """What S0 and the stages say of steps and copies."""
        if isinstance(message, CopyKept):
            self._lifecycle.on_copy_message(peer, message)
            return
        stage = DRIVER_STAGE if isinstance(message, Commit) else message.stage
        committed = max(0, message.step - 1) if isinstance(message, Dropped) else message.step
        if not self._gossip.hear(Tenure(stage, message.incarnation, peer), "serving", committed):
            return
        host, coordinator = self._lifecycle.host, self._lifecycle.coordinator
        match message:
            case Commit() if isinstance(host, BlockStage):
                host.on_commit(peer, message)
            case CommitAck() if coordinator is not None:
                coordinator.on_stage_step(message.stage, message.step)
            case Dropped() if isinstance(host, EdgeHost):
                host.on_dropped(message)
            case CopyOffer():
                self._lifecycle.on_copy_message(peer, message)

    def _on_watch_message(self, peer: PeerId, message: WatchMessage) -> None:
        """S0 asks where a microbatch is; stages say it, and what was not finite."""
        host = self._lifecycle.host
        match message:
            case Where() if isinstance(host, BlockStage):
                host.on_where(peer, message)
            case Here() if isinstance(host, EdgeHost):
                host.watchman.on_here(peer, message)
            case NotFinite() if isinstance(host, EdgeHost):
                host.watchman.on_not_finite(peer, message)

    def _on_claim_message(self, peer: PeerId, message: Claim | Withdraw | Grant | Refusal) -> None:
        """Both sides of a claim."""
        match message:
            case Claim():
                self._on_claim(peer, message)
            case Withdraw(stage, incarnation):
                if self.state.membership.withdraw(stage, peer, incarnation):
                    self._gossip.on_seat_changed(stage)
            case Grant():
                self._lifecycle.claimant.on_grant(peer, message)
            case Refusal():
                self._lifecycle.claimant.on_refusal(peer, message)

    def _on_claim(self, peer: PeerId, claim: Claim) -> None:
        if claim.stage >= self._manifest.stage_count:
            raise RemoteProtocolError(f"stage {claim.stage} does not exist in this run")
        self._gossip.on_claim_of_owner(peer, claim)
        self._lifecycle.on_claim(peer, claim)
