"""Out of the core: what is to be done. The shell carries actions out in the order in which they are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from understudy.protocol.ids import Attempt, Microbatch, PeerId
from understudy.protocol.jobs import Job, Payload
from understudy.protocol.wire.fields import Part
from understudy.protocol.wire.messages import AnyMessage
from understudy.protocol.wire.records import AnyRecord


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
    base: str = ""
    """Of a standby copy: the digest of the copy that we keep already, if any. A difference to it is enough."""
    share: int = 0
    """In the background, as one of so many that share a fifth of the donor's line; 0: as fast as it comes."""


@dataclass(frozen=True, slots=True)
class CancelFetches:
    """Stop all fetches of this claim."""

    claim: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ReleaseStage:
    """Forget weights, optimizer and saved activations: the node holds no stage any more."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Hold a fetched copy of another's stage, whatever becomes of ours, to serve it in turn."""

    digest: str
    payload: Payload


@dataclass(frozen=True, slots=True)
class ReleaseSnapshot:
    """Free a snapshot, or an image, of our own weights."""

    digest: str


@dataclass(frozen=True, slots=True)
class ReleaseCopy:
    """Free a copy of another's stage that was kept."""

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
    | ReleaseCopy
    | ReleaseLease
    | CloseLinks
    | Emit
    | Stop
)
