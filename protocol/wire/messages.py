"""What peers say to each other over a link.

Messages are msgspec structs: validated when decoded, tagged, and append-only (a new field goes to the end and has a
default). Their sender's PeerID is authenticated by libp2p and no part of them. Tensors follow as raw bytes (frames.py).
A little above 300 lines, because the union at the end names every message.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from understudy.protocol.ids import INCARNATION_MAX, STAGES_MAX, Attempt, Microbatch
from understudy.protocol.wire.contact import Contact
from understudy.protocol.wire.fields import (
    VISIBLE,
    ByteCount,
    Digest,
    Incarnation,
    Index,
    LeaseState,
    NamedPeer,
    Part,
    PathOfPeers,
    PeerText,
    RefusalReason,
    StageNumber,
    StageState,
    StepNumber,
)
from understudy.protocol.wire.tensors import TensorSpec
from understudy.protocol.wire.votes import Proof, Vote
from understudy.protocol.wire.watching import WatchMessage


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages."""


class Hello(Message, frozen=True, tag="hello"):
    """First message on every link: are we of the same run and version?"""

    protocol_version: int
    manifest_digest: Digest
    contact: Contact = Contact()


class Filler(Message, frozen=True, tag="filler"):
    """Says nothing: a line that was silent for a moment begins slowly again (node/links/network.py)."""


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """I am alive in this tenure, and ``step`` is the last step that I committed."""

    stage: StageNumber
    incarnation: Incarnation
    state: StageState
    step: StepNumber


class Announce(Message, frozen=True, tag="announce"):
    """My tenure changed: sent at once to all whom it concerns, where a heartbeat would come later."""

    stage: StageNumber
    incarnation: Incarnation
    state: StageState
    step: StepNumber
    proof: Proof = ()


class Lost(Message, frozen=True, tag="lost"):
    """I declare this tenure dead. ``owner``: whose it is, as far as I know; after a split not all know the same."""

    stage: StageNumber
    incarnation: Incarnation
    owner: NamedPeer | None = None


class Alive(Message, frozen=True, tag="alive"):
    """I take back that this tenure is dead: I hear it again."""

    stage: StageNumber
    incarnation: Incarnation


class Fenced(Message, frozen=True, tag="fenced"):
    """Your tenure of this stage is over: ``owner`` serves it under ``incarnation`` and has committed ``step``."""

    stage: StageNumber
    incarnation: Incarnation
    owner: PeerText
    step: StepNumber


class Claim(Message, frozen=True, tag="claim"):
    """I want to take the lost stage: do you recognise me? The owners of ``witnesses`` I ask for weights.

    ``passed``: nearer ones that did not answer, or refused what a majority granted. Who is left out otherwise refuses.
    """

    stage: StageNumber
    incarnation: Incarnation
    witnesses: Annotated[tuple[StageNumber, ...], Meta(max_length=8)]
    passed: Annotated[tuple[StageNumber, ...], Meta(max_length=STAGES_MAX)] = ()


class Donation(msgspec.Struct, frozen=True, array_like=True):
    """Weights that a donor holds still for a claimant. ``stage`` is the donor's own."""

    part: Part
    stage: StageNumber
    step: StepNumber
    squared_gradient_norm: float | None
    """Squared L2 norm of the donor's last mean gradient, before clipping; None if it has none yet."""
    payload_bytes: ByteCount
    digest: Digest
    incarnation: Annotated[int, Meta(ge=0, le=INCARNATION_MAX)] = 0
    """Of a copy: the incarnation that it was taken from; two of them may disagree on a step."""
    is_copy: bool = False
    """Of the lost stage itself, by a holder; else these are the donor's own weights."""


DONATIONS_MAX = 6
"""The donor's own stage and a copy of the lost one with its optimizer; or the last two copies of both parts of S0."""


class Grant(Message, frozen=True, tag="grant"):
    """I recognise you, and no other peer under this incarnation. ``step``: the last I committed."""

    stage: StageNumber
    incarnation: Incarnation
    step: StepNumber
    donations: Annotated[tuple[Donation, ...], Meta(max_length=DONATIONS_MAX)]
    is_preparing: bool = False
    """Another grant follows, with my weights."""
    vote: Vote | None = None
    """For all others to see. Without it the grant is none."""


class Refusal(Message, frozen=True, tag="refusal"):
    """I do not recognise the claim; what I know of the stage is here."""

    stage: StageNumber
    incarnation: Incarnation
    known_incarnation: Annotated[int, Meta(ge=0, le=INCARNATION_MAX)]
    reason: RefusalReason


class Withdraw(Message, frozen=True, tag="withdraw"):
    """I give up my claim."""

    stage: StageNumber
    incarnation: Incarnation


class Commit(Message, frozen=True, tag="commit"):
    """From the driver: every microbatch of ``step`` came back; apply it."""

    incarnation: Incarnation
    step: StepNumber


class CommitAck(Message, frozen=True, tag="commit_ack"):
    """The stage applied ``step`` (and all before)."""

    stage: StageNumber
    incarnation: Incarnation
    step: StepNumber


class Dropped(Message, frozen=True, tag="dropped"):
    """From a stage to the driver: what it sent on of this attempt was lost; ``is_gradient``: on the way back."""

    stage: StageNumber
    incarnation: Incarnation
    step: StepNumber
    index: Index
    attempt: Attempt
    is_gradient: bool


SHARES_MAX = 64


class CopyOffer(Message, frozen=True, tag="copy"):
    """From the owner of this tenure to a holder: the image of a part, as of ``step``, waits to be fetched."""

    stage: StageNumber
    incarnation: Incarnation
    part: Part
    step: StepNumber
    payload_bytes: ByteCount
    digest: Digest
    share: Annotated[int, Meta(ge=1, le=SHARES_MAX)] = 1
    """Of how many offers that the owner has out: together they may take a fifth of its line."""


class CopyKept(Message, frozen=True, tag="copy_kept"):
    """The answer to `CopyOffer`. ``is_full``: no, I hold enough for others; else the copy is here, verified."""

    stage: StageNumber
    incarnation: Incarnation
    part: Part
    step: StepNumber
    digest: Digest
    is_full: bool = False


class LeaseRequest(Message, frozen=True, tag="hold"):
    """From an exporter to the owner of this tenure: hold your weights as they are after ``step`` for me.

    Said again it renews the lease; an owner whose holder falls silent lets go by itself.
    """

    stage: StageNumber
    incarnation: Incarnation
    step: StepNumber


class LeaseStatus(Message, frozen=True, tag="held"):
    """The answer to `LeaseRequest`, and news when its status changes. ``committed``: the last step closed here."""

    stage: StageNumber
    incarnation: Incarnation
    step: StepNumber
    status: LeaseState
    committed: StepNumber
    payload_bytes: ByteCount = 0
    digest: Digest = ""


class LeaseRelease(Message, frozen=True, tag="let_go"):
    """The exporter needs the weights of ``step`` no more."""

    step: StepNumber


class _Passing(Message, frozen=True):
    """A tensor on its way from one stage of the microbatch's route to the next; ``stage`` is the sender's."""

    step: StepNumber
    index: Index
    attempt: Attempt
    stage: StageNumber
    incarnation: Incarnation
    path: PathOfPeers = ()

    @property
    def microbatch(self) -> Microbatch:
        return Microbatch(self.step, self.index)


class Forward(_Passing, frozen=True, tag="forward"):
    """An activation for the next stage of the microbatch's route."""


class Backward(_Passing, frozen=True, tag="backward"):
    """A gradient for the previous stage of the microbatch's route."""


class FetchRequest(Message, frozen=True, tag="fetch"):
    """Opens a fetch stream: the claimant asks a donor for its weights from a byte offset on."""

    stage: StageNumber
    incarnation: Incarnation
    digest: Digest
    offset: ByteCount
    base: Digest = ""
    """What the claimant has already: if the donor can, it sends the difference to that, and its header says so."""
    piece_bytes: ByteCount = 0
    """Send so much, then wait for `FetchMore`; 0: all at once."""


class FetchMore(Message, frozen=True, tag="fetch_more"):
    """From whoever fetches in pieces: the next one, of at most so many bytes."""

    piece_bytes: Annotated[int, Meta(ge=1, le=2**50)]


class FetchHeader(Message, frozen=True, tag="fetch_header"):
    """The donor's answer; ``payload_bytes - offset`` raw bytes and a `FetchEnd` follow."""

    specs: Annotated[tuple[TensorSpec, ...], Meta(max_length=65536)]
    payload_bytes: ByteCount
    base: Digest = ""
    """Not empty: what follows is the difference to these weights, in bfloat16."""


class FetchRefused(Message, frozen=True, tag="fetch_refused"):
    """The donor does not recognise the claimant, or no longer holds these weights."""

    reason: Annotated[str, Meta(max_length=512, pattern=VISIBLE)]


class FetchEnd(Message, frozen=True, tag="fetch_end"):
    """The explicit end marker: a stream that ends without it was cut off."""


AnyMessage = (
    Hello
    | Filler
    | Heartbeat
    | Announce
    | Lost
    | Alive
    | Fenced
    | Claim
    | Grant
    | Refusal
    | Withdraw
    | Commit
    | CommitAck
    | Dropped
    | CopyOffer
    | CopyKept
    | LeaseRequest
    | LeaseStatus
    | LeaseRelease
    | WatchMessage
    | Forward
    | Backward
    | FetchRequest
    | FetchMore
    | FetchHeader
    | FetchRefused
    | FetchEnd
)

DataMessage = Forward | Backward
"""Messages with a tensor behind them; they travel on data links, all others on the control link."""
