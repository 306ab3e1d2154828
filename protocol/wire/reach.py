"""Being dialled back: a node asks a peer where it sees it, and whether it can be dialled there.

One request and one answer on a stream of their own, spoken before a node knows of any run. Each is a msgpack message
behind its length, uint32, little-endian. The asker names ports only: a peer dials nothing but the address at which it
sees the asker, so nobody can have others dialled.
"""

from __future__ import annotations

import struct
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.manifest import PROTOCOL_VERSION
from understudy.protocol.wire.fields import VISIBLE

DIAL_BACK_PROTOCOL = f"/understudy/{PROTOCOL_VERSION}/dial-back"
"""The stream protocol: of no run, as whoever asks may not have found its run yet."""
PORTS_MAX = 2
"""Ports that are dialled for one request at most."""
LENGTH = struct.Struct("<I")
REACH_BYTES_MAX = 2048
"""Longest message, in bytes."""
REASON_CHARS_MAX = 160

Port = Annotated[int, Meta(ge=1, le=65535)]
Reason = Annotated[str, Meta(max_length=REASON_CHARS_MAX, pattern=VISIBLE)]


class DialBackRequest(msgspec.Struct, frozen=True, array_like=True, tag="dial_back"):
    """Where do you see me, and does a libp2p peer answer on these TCP ports there?"""

    ports: Annotated[tuple[Port, ...], Meta(min_length=1, max_length=PORTS_MAX)]


class DialOutcome(msgspec.Struct, frozen=True, array_like=True):
    """What became of one port."""

    port: Port
    failure: Reason
    """Why nobody answers there; empty: somebody does."""


class DialBackAnswer(msgspec.Struct, frozen=True, array_like=True, tag="dialled_back"):
    """What the asked peer saw and tried."""

    seen_host: Annotated[str, Meta(max_length=45, pattern=VISIBLE)]
    """The IP address at which it is connected to the asker; empty: it cannot tell."""
    seen_port: Annotated[int, Meta(ge=0, le=65535)]
    outcomes: Annotated[tuple[DialOutcome, ...], Meta(max_length=PORTS_MAX)] = ()
    refusal: Reason = ""
    """Why nothing was dialled; empty: it was."""


ReachMessage = TypeVar("ReachMessage", DialBackRequest, DialBackAnswer)


def encode_reach(message: DialBackRequest | DialBackAnswer) -> bytes:
    """The message behind its length."""
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


def decode_length(data: bytes) -> int:
    """Bytes of the message that follows. Raises `RemoteProtocolError` beyond the limit."""
    (length,) = LENGTH.unpack(data)
    if not 0 < length <= REACH_BYTES_MAX:
        raise RemoteProtocolError(f"a message of {length} bytes; 1 to {REACH_BYTES_MAX} are allowed")
    return int(length)


def decode_reach(body: bytes, kind: type[ReachMessage]) -> ReachMessage:
    """Decode and validate a message of this kind. Raises `RemoteProtocolError`."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"a malformed message: {error}") from error
