"""Frames on an asyncio stream: read and write them whole, with a deadline, within limits."""

from __future__ import annotations

import asyncio

from torch import Tensor

from understudy.node.straight import read_front
from understudy.node.tensors import bytes_of, check_activation, empty_tensor, header_of
from understudy.protocol.errors import NetworkError, RemoteProtocolError
from understudy.protocol.messages import AnyMessage, Backward, Forward, TensorHeader
from understudy.protocol.wire import (
    MESSAGE_BYTES_MAX,
    PREFIX,
    decode_frame,
    decode_prefix,
    encode_frame,
    tensor_bytes,
)

READ_BYTES = 1 << 20
"""A tensor is read in pieces of at most this size."""


async def read_some(reader: asyncio.StreamReader, target: memoryview) -> int:
    """Put what the stream has into the front of ``target``; returns how many bytes, at least one.

    Raises `NetworkError` if the stream ended.
    """
    count = await read_front(reader, target[:READ_BYTES])
    if not count:
        raise NetworkError("the stream was cut off within a tensor")
    return count


async def read_into(reader: asyncio.StreamReader, target: memoryview) -> None:
    """Fill ``target`` from the stream. Raises `NetworkError` if it ends early."""
    filled = 0
    while filled < len(target):
        filled += await read_some(reader, target[filled:])


async def read_message(reader: asyncio.StreamReader, message_bytes_max: int = MESSAGE_BYTES_MAX) -> AnyMessage | None:
    """The next message of a stream that carries no tensors; None at its end."""
    prefix_bytes = await _read_prefix(reader)
    if prefix_bytes is None:
        return None
    prefix = decode_prefix(prefix_bytes, message_bytes_max, 0)
    return decode_frame(await _read_exactly(reader, prefix.message_bytes), 0).message


async def read_link_frame(
    reader: asyncio.StreamReader, activation: TensorHeader, frame_timeout_s: float
) -> tuple[AnyMessage, Tensor | None] | None:
    """The next message of a link and its tensor; None at the stream's end.

    Waits for the first byte as long as the caller allows, for the rest of the frame ``frame_timeout_s``.
    Raises `RemoteProtocolError` for anything that the run's peers do not send.
    """
    prefix_bytes = await _read_prefix(reader)
    if prefix_bytes is None:
        return None
    prefix = decode_prefix(prefix_bytes, MESSAGE_BYTES_MAX, tensor_bytes(activation))
    async with asyncio.timeout(frame_timeout_s):
        body = await _read_exactly(reader, prefix.message_bytes)
        frame = decode_frame(body, prefix.payload_bytes)
        if not isinstance(frame.message, Forward | Backward):
            if frame.tensor is not None:
                raise RemoteProtocolError(f"a {type(frame.message).__name__} carries a tensor")
            return frame.message, None
        check_activation(frame.tensor, activation)
        tensor = empty_tensor(activation)
        await read_into(reader, bytes_of(tensor))
    return frame.message, tensor


async def write_frame(writer: asyncio.StreamWriter, message: AnyMessage, tensor: Tensor | None = None) -> None:
    """Write a message, and the tensor behind it without copying it first."""
    if tensor is None:
        writer.write(encode_frame(message))
    else:
        writer.write(encode_frame(message, header_of(tensor)))
        writer.write(bytes_of(tensor))
    await writer.drain()


async def _read_prefix(reader: asyncio.StreamReader) -> bytes | None:
    try:
        return await reader.readexactly(PREFIX.size)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise NetworkError("the stream was cut off within a frame") from error
        return None


async def _read_exactly(reader: asyncio.StreamReader, count: int) -> bytes:
    try:
        return await reader.readexactly(count)
    except asyncio.IncompleteReadError as error:
        raise NetworkError("the stream was cut off within a frame") from error
