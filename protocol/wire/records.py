"""What peers publish in the DHT, under which keys, and how it is checked when read.

Every record is signed by the peer it speaks of: the DHT layer (node/dht/hivemind_dht.py) hands us only
values whose signature and owner it verified, and `decode` checks that the record names that
owner and fits the key it was found under. Values are msgpack; keys are per stage, so none grows
with the swarm.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.ids import STAGES_MAX, PeerId
from understudy.protocol.wire.contact import Contact
from understudy.protocol.wire.fields import (
    VISIBLE,
    ByteCount,
    Digest,
    Incarnation,
    PeerText,
    StageNumber,
    StageState,
    StepNumber,
)
from understudy.protocol.wire.votes import Proof

RECORD_BYTES_MAX = 4096
STAGE_RECORD_BYTES_MAX = 8 * 1024
"""With the votes that it shows (`VOTES_SHOWN_MAX`)."""
MANIFEST_RECORD_BYTES_MAX = 24 * 1024
RECORDS_PER_KEY_MAX = 256
"""Owners with a record under one key at most; a key flooded beyond it is cut off, never our memory."""
RECORD_LIFETIME_MAX_S = 3600.0
"""What expires later than this from now is kept by nobody, and believed by nobody."""
WHY_CHARS_MAX = 200


class Record(msgspec.Struct, frozen=True):
    """Base of all records. ``peer`` is the signer."""

    peer: PeerText


class StageRecord(Record, frozen=True, tag="stage"):
    """`{run}/stage/{i}`: this peer's tenure of the stage, and the last step that it committed."""

    stage: StageNumber
    incarnation: Incarnation
    state: StageState
    step: StepNumber
    microbatches_per_second: Annotated[float, Meta(ge=0)] = 0.0
    """What the owner's compute thread can do, measured at work; 0 if it is not known yet. For people."""
    contact: Contact = Contact()
    proof: Proof = ()
    copied: StepNumber = 0
    """The last step as of which a holder has a copy of the stage; 0: none has. For people."""


CAPACITY_MAX = 1e7
"""Billions of multiply-adds a second: ten times what the fastest accelerators do."""


SPARE_COPIES_MAX = 4


class SpareRecord(Record, frozen=True, tag="spare"):
    """`{run}/spares`: a peer without a stage; ``capacity`` is measured, larger is better."""

    capacity: Annotated[float, Meta(ge=0, le=CAPACITY_MAX)]
    state: Literal["waiting", "left"] = "waiting"
    can_drive: bool = True
    """It has the run's text, so it may take S0."""
    contact: Contact = Contact()
    can_hold_blocks: bool = True
    """It has room for a block stage; without that it may take S0 alone."""
    copies: Annotated[tuple[StageNumber, ...], Meta(max_length=SPARE_COPIES_MAX)] = ()
    """The stages that it holds copies of: what is lost of these is its to take."""


class OfferRecord(Record, frozen=True, tag="offer"):
    """`{run}/weights/{i}`: a neighbour of the lost stage ``for_stage`` holds weights for whoever takes it.

    ``is_taken_back``: the owner of ``lost_incarnation`` speaks again.
    """

    for_stage: StageNumber
    lost_incarnation: Incarnation
    stage: StageNumber
    step: StepNumber
    squared_gradient_norm: float | None
    payload_bytes: ByteCount
    digest: Digest
    is_taken_back: bool = False


class ProgressRecord(Record, frozen=True, tag="progress"):
    """`{run}/progress`: the driver's news."""

    incarnation: Incarnation
    step: StepNumber
    loss: float | None
    tokens: Annotated[int, Meta(ge=0)]
    tokens_per_second: float
    why_no_loss: Annotated[str, Meta(max_length=WHY_CHARS_MAX, pattern=VISIBLE)] = ""


class ManifestRecord(Record, frozen=True, tag="manifest"):
    """`{run}/manifest`: the canonical manifest, signed by the founder.

    Published by the founder and by whoever drives, so that it outlives the founder's machine.
    """

    manifest: Annotated[bytes, Meta(max_length=16 * 1024)]
    founder_key: Annotated[bytes, Meta(max_length=2048)]
    signature: Annotated[bytes, Meta(max_length=2048)]


AnyRecord = StageRecord | SpareRecord | OfferRecord | ProgressRecord | ManifestRecord

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyRecord)


STAGE_KEYS = "stage/"


def stage_key(stage: int) -> str:
    """Key, below the run's prefix, of the tenures of one stage."""
    return f"{STAGE_KEYS}{stage}"


def weights_key(stage: int) -> str:
    """Key, below the run's prefix, of the offers for one lost stage."""
    return f"weights/{stage}"


SPARES_KEY = "spares"
PROGRESS_KEY = "progress"
MANIFEST_KEY = "manifest"


def run_keys(stage_count: int = STAGES_MAX) -> dict[str, int]:
    """Every key, below the run's prefix, that there can be, and how many bytes a record under it may have."""
    stages = range(stage_count)
    keys = [*map(stage_key, stages), *map(weights_key, stages), SPARES_KEY, PROGRESS_KEY, MANIFEST_KEY]
    return {key: _bytes_max(key) for key in keys}


def key_of(record: AnyRecord) -> str:
    """The key that a record belongs under."""
    match record:
        case StageRecord():
            return stage_key(record.stage)
        case OfferRecord():
            return weights_key(record.for_stage)
        case SpareRecord():
            return SPARES_KEY
        case ProgressRecord():
            return PROGRESS_KEY
        case ManifestRecord():
            return MANIFEST_KEY


def encode_record(record: AnyRecord) -> bytes:
    """The value stored in the DHT."""
    return _encoder.encode(record)


def _bytes_max(key: str) -> int:
    if key == MANIFEST_KEY:
        return MANIFEST_RECORD_BYTES_MAX
    return STAGE_RECORD_BYTES_MAX if key.startswith(STAGE_KEYS) else RECORD_BYTES_MAX


def decode_record(key: str, owner: PeerId, value: bytes) -> AnyRecord:
    """Decode what ``owner`` signed under ``key``. Raises `RemoteProtocolError` if it does not fit."""
    limit = _bytes_max(key)
    if len(value) > limit:
        raise RemoteProtocolError(f"a record of {len(value)} bytes under {key}; at most {limit} are allowed")
    try:
        record: AnyRecord = _decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"a malformed record under {key}: {error}") from error
    if record.peer != owner:
        raise RemoteProtocolError(f"a record under {key} speaks of {record.peer} but was signed by {owner}")
    if key_of(record) != key:
        raise RemoteProtocolError(f"a {type(record).__name__} does not belong under {key}")
    return record
