"""Into the core: what happened. The shell says it, and carries out what the core answers (actions.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from understudy.protocol.ids import PeerId
from understudy.protocol.jobs import Job, Payload
from understudy.protocol.wire.contact import Reachability
from understudy.protocol.wire.messages import AnyMessage, DataMessage
from understudy.protocol.wire.records import AnyRecord


@dataclass(frozen=True, slots=True)
class Started:
    """The node is on the network. ``wanted_stage`` None means: take what is needed most."""

    wanted_stage: int | None = None
    capacity: float = 1.0
    """Measured; spares are ranked by it."""
    reachability: Reachability = "unknown"
    """Of this machine."""


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
    came: float | None = None
    """The root mean square of the tensor that came with it; not finite if the tensor is not. None: no tensor came."""


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
class ReachabilityFound:
    """How others get to this machine, as they say."""

    reachability: Reachability
    reason: str
    seen_at: str
    """Where most peers see us, as host:port; empty if nobody said."""


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """The link to a peer goes another way than before, or is there for the first time. For people."""

    peer: PeerId
    way: Literal["direct", "relayed"]
    reason: str
    address: str
    """Of the peer, or of the relay."""


@dataclass(frozen=True, slots=True)
class LinkFailed:
    """A link to a peer could not be opened, and nobody said that the peer is gone. For people."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class CutOff:
    """Nobody can get to this node. For people."""

    reason: str
    advice: str


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
    | ReachabilityFound
    | LinkChanged
    | LinkFailed
    | CutOff
    | StopRequested
)
