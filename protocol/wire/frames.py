"""Frames: how messages and tensors lie on a stream.

A frame is a fixed prefix, a msgpack message and, for data messages, the raw bytes of a tensor::

    uint32 message_bytes | uint64 payload_bytes | message | payload

(both little-endian). The prefix is judged before anything is allocated for what follows, so an
oversized frame costs its sender the connection and us twelve bytes.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import msgspec

from understudy.protocol.errors import LocalProtocolError, RemoteProtocolError
from understudy.protocol.wire.messages import AnyMessage
from understudy.protocol.wire.tensors import TensorHeader

PREFIX = struct.Struct("<IQ")
MESSAGE_BYTES_MAX = 64 * 1024
"""Longest encoded message on a link. Heartbeats take some 20 bytes; a tensor's some 50 for each stage, for its path."""
FETCH_MESSAGE_BYTES_MAX = 8 * 1024 * 1024
"""Longest message on a fetch stream: its header lists every tensor of a stage."""
PAYLOAD_BYTES_MAX = 1 << 30
"""Largest tensor on a link; the run's own activation size is a tighter bound (`tensor_bytes`)."""


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """What the message part of a frame encodes."""

    message: AnyMessage
    tensor: TensorHeader | None = None


@dataclass(frozen=True, slots=True)
class Prefix:
    """The sizes, in bytes, of what follows."""

    message_bytes: int
    payload_bytes: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def tensor_bytes(tensor: TensorHeader) -> int:
    """Bytes of the raw tensor that a header describes."""
    return math.prod(tensor.shape[:-1]) * tensor.row_bytes


def encode_frame(message: AnyMessage, tensor: TensorHeader | None = None) -> bytes:
    """Prefix and message; the caller writes the ``tensor_bytes(tensor)`` raw bytes right behind them."""
    body = _encoder.encode(Frame(message, tensor))
    if len(body) > FETCH_MESSAGE_BYTES_MAX:
        raise LocalProtocolError(f"a {type(message).__name__} of {len(body)} bytes is too long to send")
    return PREFIX.pack(len(body), tensor_bytes(tensor) if tensor else 0) + body


def decode_prefix(data: bytes, message_bytes_max: int, payload_bytes_max: int) -> Prefix:
    """Sizes of the next frame. Raises `RemoteProtocolError` if they are beyond the limits."""
    message_bytes, payload_bytes = PREFIX.unpack(data)
    if not 0 < message_bytes <= message_bytes_max:
        raise RemoteProtocolError(f"a message of {message_bytes} bytes; 1 to {message_bytes_max} are allowed")
    if payload_bytes > payload_bytes_max:
        raise RemoteProtocolError(f"a tensor of {payload_bytes} bytes; at most {payload_bytes_max} are allowed")
    return Prefix(message_bytes, payload_bytes)


def decode_frame(body: bytes, payload_bytes: int) -> Frame:
    """Decode and validate a frame's message. Raises `RemoteProtocolError`."""
    try:
        frame = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"a malformed message: {error}") from error
    described = tensor_bytes(frame.tensor) if frame.tensor else 0
    if described != payload_bytes:
        raise RemoteProtocolError(f"a tensor of {payload_bytes} bytes described as {described} bytes")
    return frame
