"""What the parts of the core share: who we are, what we hold, what we see, what we are about to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from understudy.protocol.actions import Action, Emit, ReadText, Send
from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.ids import DRIVER_STAGE, Microbatch, PeerId, Tenure
from understudy.protocol.jobs import Payload
from understudy.protocol.manifest import RunManifest
from understudy.protocol.membership.seats import Seat, Status
from understudy.protocol.membership.view import Membership
from understudy.protocol.pace import Pace
from understudy.protocol.routing import neighbours
from understudy.protocol.seal import Seal
from understudy.protocol.text_check import TextCheck
from understudy.protocol.wire.contact import Reachability
from understudy.protocol.wire.fields import StageState
from understudy.protocol.wire.messages import Announce, AnyMessage, Heartbeat
from understudy.protocol.wire.records import ProgressRecord, SpareRecord, StageRecord
from understudy.protocol.wire.votes import Vote, is_signed, vote_bytes


@dataclass(slots=True)
class Sentence:
    """S0 found that an owner lives and does not do its work: its stage is to go to another."""

    incarnation: int
    since: float
    microbatch: Microbatch | None = None
    """The one that it keeps; if it comes after all, the sentence is over."""
    is_over: bool = False


@dataclass(slots=True)
class NodeState:
    """The state of one node. Only the core and its parts change it, within one `Core.handle`."""

    seal: Seal
    manifest: RunManifest
    membership: Membership
    now: float = 0.0
    can_drive: bool = True
    """This machine has the run's text, and room for S0, so it may take S0."""
    can_hold_blocks: bool = True
    """This machine has room for a block stage."""
    reachability: Reachability = "unknown"
    """How others get to this machine."""
    text: TextCheck = field(default_factory=TextCheck)
    is_in_reserve: bool = False
    """A spare that others are ranked before: it publishes nothing, and reads little and seldom."""
    tenure: Tenure | None = None
    tenure_state: StageState = "recovering"
    proof: tuple[Vote, ...] = ()
    """The votes for our tenure that we show others."""
    is_recognised: bool = False
    """Our tenure is public: every witness recognised it, or there was none and it lies open in the DHT."""
    committed: int = 0
    """The last step whose update is applied to our weights."""
    squared_gradient_norm: float | None = None
    """Of our last mean gradient, before clipping."""
    progress: ProgressRecord | None = None
    """The driver's last word that we read, or said ourselves. For people; no decision looks at it."""
    pace: Pace = field(default_factory=Pace)
    sentences: dict[int, Sentence] = field(default_factory=dict)
    """By stage, the owners that we, as S0, want replaced (protocol/membership/sentencing.py sees to it)."""
    idle_spares: tuple[SpareRecord, ...] = ()
    """Who waits and could take a stage, as far as we have read, the most capable first."""
    copied: int = 0
    """The last step as of which a holder has a copy of our weights; 0: none has."""
    orphans: int = 0
    """Jobs of a stage that we gave up which the compute thread has not finished: until then we can do no other work."""
    is_view_changed: bool = False
    """Somebody's tenure began, ended or moved on within this `Core.handle`: what follows is due."""
    failure: str | None = None
    """Why this node cannot go on with its stage: it will say goodbye and end."""
    is_stopped: bool = False
    """We said goodbye; nothing happens any more."""
    actions: list[Action] = field(default_factory=list)
    me: PeerId = field(init=False)
    _run_digest: str = field(init=False)
    """Whatever we sign is of this run alone."""

    def __post_init__(self) -> None:
        self.me = self.membership.me = self.seal.peer_id
        self._run_digest = self.manifest.digest()

    @property
    def has_spares(self) -> bool:
        """Somebody waits who could take a stage."""
        return bool(self.idle_spares)

    @property
    def is_serving(self) -> bool:
        return self.tenure is not None and self.tenure_state == "serving"

    @property
    def is_run_done(self) -> bool:
        """The run's last step is committed here."""
        total = self.manifest.step.total_steps
        return total > 0 and self.committed >= total

    @property
    def may_drive(self) -> bool:
        """We may take S0: this machine has the run's text, and could read it when it last tried."""
        return self.can_drive and not self.text.is_failing(self.now)

    def may_take(self, stage: int) -> bool:
        """Whether this machine can host a stage."""
        return self.may_drive if stage == DRIVER_STAGE else self.can_hold_blocks

    def is_text_ready(self, committed: int | None = None) -> bool:
        """Whether the text of the step that is due was read here. Has it read if not: ask again then.

        ``committed``: the step before, from who knows it; else from what we have read of the stages.
        """
        known = max((seat.step for seat in self.membership.seats()), default=0)
        step_due = 1 + (known if committed is None else committed)
        if self.text.has_read(step_due):
            return True
        if self.text.ask(step_due):
            self.act(ReadText(step_due))
        return False

    @property
    def stage(self) -> int:
        """The stage we hold."""
        if self.tenure is None:
            raise LocalProtocolError("a node without a stage was asked for its stage")
        return self.tenure.stage

    @property
    def incarnation(self) -> int:
        if self.tenure is None:
            raise LocalProtocolError("a node without a stage was asked for its incarnation")
        return self.tenure.incarnation

    def neighbours(self) -> frozenset[int]:
        """The stages we exchange activations with."""
        return neighbours(self.manifest.recovery.method, self.manifest.model.block_stages, self.stage)

    def give_tenure_up(self) -> None:
        """We hold no stage any more, or never came to."""
        self.tenure, self.is_recognised, self.proof, self.copied = None, False, (), 0

    def act(self, action: Action) -> None:
        self.actions.append(action)

    def send(self, peer: PeerId, message: AnyMessage, payload: Payload = None) -> None:
        self.act(Send(peer, message, payload))

    def send_to_stage(self, stage: int, message: AnyMessage) -> bool:
        """Send to the living owner of a stage, serving or not. False: there is none."""
        seat = self.membership.seat(stage)
        if seat is None or not seat.is_present or seat.peer == self.me:
            return False
        self.send(seat.peer, message)
        return True

    def emit(self, name: str, **fields: Any) -> None:
        """Write an event about ourselves."""
        standing: dict[str, Any] = {"peer": self.me, "step": self.committed}
        if self.tenure is not None:
            standing |= {"stage": self.tenure.stage, "incarnation": self.tenure.incarnation}
        self.act(Emit(name, {**standing, **fields}))

    def emit_about(self, name: str, seat: Seat, **fields: Any) -> None:
        """Write an event about the owner of another stage; we are its observer."""
        about = {"peer": seat.peer, "stage": seat.stage, "incarnation": seat.incarnation, "step": seat.step}
        observer = {"observer": self.me, "observer_stage": self.tenure.stage if self.tenure else None}
        self.act(Emit(name, {**about, **observer, **fields}))

    def my_heartbeat(self) -> Heartbeat:
        return Heartbeat(self.stage, self.incarnation, self.tenure_state, self.committed)

    def my_announcement(self) -> Announce:
        return Announce(self.stage, self.incarnation, self.tenure_state, self.committed, self.proof)

    def my_record(self) -> StageRecord:
        """Our tenure as it lies in the DHT; the addresses are the shell's to add."""
        pace = self.pace.microbatches_per_second
        return StageRecord(
            self.me,
            self.stage,
            self.incarnation,
            self.tenure_state,
            self.committed,
            pace,
            proof=self.proof,
            copied=self.copied,
        )

    def is_entitled(self, tenure: Tenure) -> bool:
        """Whether we would see the tenure in the seat, if it said that it has it."""
        return self.membership.is_entitled(tenure, self.now, self.manifest.timing.record_lifetime_s)

    def vote_for(self, claim: Tenure) -> Vote:
        """Our signature under a claim."""
        assert self.tenure is not None
        signature = self.seal.sign(vote_bytes(self._run_digest, claim, self.tenure))
        return Vote(self.me, self.stage, self.incarnation, self.seal.public_key_bytes, signature)

    def is_vote_for(self, claim: Tenure, vote: Vote) -> bool:
        """Whether the voter signed it."""
        return is_signed(self._run_digest, claim, vote, self.seal.is_of)

    def my_seat(self) -> Seat:
        """Our own tenure as others see it."""
        return Seat(self.stage, self.me, self.incarnation, self.tenure_state, self.committed, Status.ALIVE, self.now)
