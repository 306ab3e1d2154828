"""Into and out of the core: events and actions.

The shell feeds the core with events and carries out the actions it gets back, in order.
Payloads (tensors, snapshots) are opaque to the protocol: it passes them on and never looks inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from understudy.protocol.ids import Attempt, Microbatch, PeerId
from understudy.protocol.wire.messages import AnyMessage, DataMessage, Part
from understudy.protocol.wire.records import AnyRecord

Payload = Any
"""A tensor to the node, a symbol to the simulator, nothing at all to the protocol."""


# --- events: what happened -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The node is on the network. ``wanted_stage`` None means: take what is needed most."""

    wanted_stage: int | None = None
    capacity: float = 1.0
    """Measured; spares are ranked by it."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """`Core.deadline` has passed."""


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """``peer`` (authenticated) said ``message``."""

    peer: PeerId
    message: AnyMessage
    payload: Payload = None


@dataclass(frozen=True, slots=True)
class PeerUnreachable:
    """The peer's machine says that nobody is there any more."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class SendFailed:
    """A tensor that was to be sent did not get there, as far as its sender can know. It may have all the same."""

    peer: PeerId
    message: DataMessage
    payload: Payload


@dataclass(frozen=True, slots=True)
class RecordsRead:
    """The valid, unexpired records now found under one key."""

    key: str
    records: tuple[AnyRecord, ...]


@dataclass(frozen=True, slots=True)
class JobDone:
    """A job of the compute thread finished. What ``result`` is depends on the job."""

    job: Job
    result: Any = None
    seconds: float = 0.0
    """The thread was busy with it for so long."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Weights of one donor arrived whole and verified."""

    claim: tuple[int, int]
    donor: PeerId
    digest: str
    payload: Payload


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """Weights of one donor will not come: it died, refused, or sent bytes that do not verify."""

    claim: tuple[int, int]
    donor: PeerId
    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class TextRead:
    """The run's text of a step was read on this machine, or cannot be, and why: of `ReadText`, or in driving."""

    step: int
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class StopRequested:
    """A person or the system asked the node to stop: say goodbye."""


Event = (
    Started
    | TimerFired
    | MessageReceived
    | PeerUnreachable
    | SendFailed
    | RecordsRead
    | JobDone
    | Fetched
    | FetchFailed
    | TextRead
    | StopRequested
)


# --- jobs: what the compute thread does, one at a time ----------------------------------------


class Priority(IntEnum):
    """Lower runs first: what frees memory and unblocks others goes before what fills them."""

    APPLY = 0
    SNAPSHOT = 1
    BACKWARD = 2
    LOSS = 3
    FORWARD = 4
    COPY = 5


@dataclass(frozen=True, slots=True)
class ForwardJob:
    """Run the stage on an activation (S0: embed the tokens of the microbatch). Result: activation."""

    microbatch: Microbatch
    attempt: Attempt
    payload: Payload = None


@dataclass(frozen=True, slots=True)
class LossJob:
    """S0: norm, head and loss on the last stage's activation. Result: (loss, gradient)."""

    microbatch: Microbatch
    attempt: Attempt
    payload: Payload
    is_counted: bool


@dataclass(frozen=True, slots=True)
class BackwardJob:
    """Back-propagate a gradient. Result: gradient for the previous stage (None on S0).

    ``is_counted`` False: compute the input's gradient only and leave the stage's sum alone.
    """

    microbatch: Microbatch
    attempt: Attempt
    payload: Payload
    is_counted: bool


@dataclass(frozen=True, slots=True)
class ApplyJob:
    """Apply the mean gradient over ``counted`` microbatches. Result: `Applied`."""

    step: int
    counted: int
    head_counted: int = 0
    """S0: the microbatches in the sum of norm and head; ``counted`` are those in the embedding's."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of an update."""

    squared_gradient_norm: float | None = None
    """Of the mean gradient, before clipping; None if nothing was counted or it is not finite."""
    is_skipped: bool = False
    """The gradient is not finite: the weights stayed as they were."""
    is_own: bool = False
    """Only of a skipped one: finite numbers came in and others went out, so it is this stage that spoils them."""


@dataclass(frozen=True, slots=True)
class SnapshotJob:
    """Copy the weights of some parts as they are, all at one moment; the shell keeps the copies.

    Result: (payload_bytes, digest) of each part.
    """

    step: int
    parts: tuple[Part, ...] = ("stage",)


@dataclass(frozen=True, slots=True)
class LeaseJob:
    """Copy the weights for exporters; they are as they were after ``step``. No digests yet. Result: nothing."""

    step: int


@dataclass(frozen=True, slots=True)
class DigestJob:
    """Compute the digest of the held copy's next tensor. Result: None; after the last (payload_bytes, digest)."""

    step: int


@dataclass(frozen=True, slots=True)
class InitialiseJob:
    """Build the stage from the run's seed, and load the parts of S0 of which there are copies."""

    stage: int
    incarnation: int
    learning_rate_scale: float = 1.0
    parts: tuple[tuple[Part, Payload], ...] = ()


@dataclass(frozen=True, slots=True)
class BlendJob:
    """Build the stage from donors' weights: the sum of coefficient times weights, in this order."""

    stage: int
    incarnation: int
    payloads: tuple[Payload, ...]
    coefficients: tuple[float, ...]
    learning_rate_scale: float


Job = ForwardJob | LossJob | BackwardJob | ApplyJob | SnapshotJob | LeaseJob | DigestJob | InitialiseJob | BlendJob


# --- actions: what to do ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Queue a message for a peer; a link that fails loses it. If it had a payload, `SendFailed` says so."""

    peer: PeerId
    message: AnyMessage
    payload: Payload = None


@dataclass(frozen=True, slots=True)
class Store:
    """Sign and store a record; it expires ``lifetime_s`` from now."""

    record: AnyRecord
    lifetime_s: float


@dataclass(frozen=True, slots=True)
class Read:
    """Read these keys; answer each with `RecordsRead`."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReadText:
    """Try whether the run's text of a step, and of the one after it, can be read here; answer with `TextRead`.

    Of two, because what we know of the run may be a commit old.
    """

    step: int


@dataclass(frozen=True, slots=True)
class Run:
    """Give a job to the compute thread; answer with `JobDone`."""

    job: Job


@dataclass(frozen=True, slots=True)
class Discard:
    """Free what the compute thread saved for this attempt of the microbatch."""

    microbatch: Microbatch
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch a donation; answer with `Fetched` or `FetchFailed`. ``claim`` is (stage, incarnation)."""

    claim: tuple[int, int]
    donor: PeerId
    part: Part
    digest: str
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class CancelFetches:
    """Stop all fetches of this claim."""

    claim: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ReleaseStage:
    """Forget weights, optimizer and saved activations: the node holds no stage any more."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Hold a fetched copy, to serve it in turn."""

    digest: str
    payload: Payload


@dataclass(frozen=True, slots=True)
class ReleaseSnapshot:
    """Free a snapshot or copy that was held."""

    digest: str


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    """Free the copy that was held for exporters."""

    step: int


@dataclass(frozen=True, slots=True)
class CloseLinks:
    """Close the links to a peer that is gone, or that broke the protocol."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Emit:
    """Write an event to the event file."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stop:
    """The node is done: flush, close, exit."""

    reason: Literal["done", "asked", "failed"]
    failure: str = ""
    """Why it failed and what to do, in one line."""


Action = (
    Send
    | Store
    | Read
    | ReadText
    | Run
    | Discard
    | Fetch
    | CancelFetches
    | ReleaseStage
    | Keep
    | ReleaseSnapshot
    | ReleaseLease
    | CloseLinks
    | Emit
    | Stop
)
