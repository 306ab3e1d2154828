"""Frames on an asyncio stream: read and write them whole, with a deadline, within limits.

A frame's deadline begins with its first byte. It must move on (`STALL_TIMEOUT_S`), and it must get there
(`SLOWEST_BYTES_PER_S`): a slow line is given its time, a peer that trickles is not.
"""

from __future__ import annotations

import asyncio

from torch import Tensor

from understudy.node.compute.tensors import bytes_of, check_activation, empty_tensor, header_of
from understudy.node.p2p.zero_copy import WRITE_BUFFER_BYTES, read_front
from understudy.protocol.errors import NetworkError, RemoteProtocolError
from understudy.protocol.wire.frames import (
    MESSAGE_BYTES_MAX,
    PREFIX,
    decode_frame,
    decode_prefix,
    encode_frame,
    tensor_bytes,
)
from understudy.protocol.wire.messages import AnyMessage, Backward, Forward
from understudy.protocol.wire.tensors import TensorHeader

READ_BYTES = 1 << 20
"""A tensor is read in pieces of at most this size."""
WRITE_BYTES = 1 << 20
"""A tensor is written in pieces of this size, each of which must be taken in in time."""
PROGRESS_NOTED_S = 1.0
"""Whether something moves is looked at so often: to move a deadline costs microseconds."""
STALL_TIMEOUT_S = 30.0
"""A frame of which nothing moves for so long is given up, whatever TCP thinks of the line."""
SLOWEST_BYTES_PER_S = 16 * 1024
"""A frame that is slower than this on average is given up. Four data links share a line: of 0.5 Mbit/s, then."""


def frame_timeout_s(frame_bytes: int) -> float:
    """How long so many bytes may take at most."""
    return STALL_TIMEOUT_S + frame_bytes / SLOWEST_BYTES_PER_S


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
    reader: asyncio.StreamReader, activation: TensorHeader, idle_timeout_s: float
) -> tuple[AnyMessage, Tensor | None] | None:
    """The next message of a link and its tensor; None at the stream's end.

    Waits ``idle_timeout_s`` for the first byte; from then on the frame has a deadline of its own. Raises
    `TimeoutError`, and `RemoteProtocolError` for anything that the run's peers do not send.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(idle_timeout_s) as deadline:
        start = await reader.read(PREFIX.size)
        if not start:
            return None
        deadline.reschedule(loop.time() + STALL_TIMEOUT_S)
        start += await _read_exactly(reader, PREFIX.size - len(start)) if len(start) < PREFIX.size else b""
        prefix = decode_prefix(start, MESSAGE_BYTES_MAX, tensor_bytes(activation))
        frame = decode_frame(await _read_exactly(reader, prefix.message_bytes), prefix.payload_bytes)
        if not isinstance(frame.message, Forward | Backward):
            if frame.tensor is not None:
                raise RemoteProtocolError(f"a {type(frame.message).__name__} carries a tensor")
            return frame.message, None
        check_activation(frame.tensor, activation)
        tensor = empty_tensor(activation)
        await _read_in_time(reader, bytes_of(tensor), deadline)
        return frame.message, tensor


async def _read_in_time(reader: asyncio.StreamReader, target: memoryview, deadline: asyncio.Timeout) -> None:
    """As `read_into`; the deadline moves on with what comes, as far as so many bytes may take."""
    loop = asyncio.get_running_loop()
    filled, moved = 0, loop.time()
    last = moved + frame_timeout_s(len(target))
    while filled < len(target):
        filled += await read_some(reader, target[filled:])
        if loop.time() - moved > PROGRESS_NOTED_S:
            moved = loop.time()
            deadline.reschedule(min(last, moved + STALL_TIMEOUT_S))


async def write_frame(writer: asyncio.StreamWriter, message: AnyMessage, tensor: Tensor | None = None) -> None:
    """Write a message, and the tensor behind it without copying it first.

    Raises `TimeoutError` if the other side takes nothing in for too long, or too little in all.
    """
    if tensor is None:
        writer.write(encode_frame(message))
        async with asyncio.timeout(frame_timeout_s(WRITE_BUFFER_BYTES)):
            await writer.drain()
        return
    writer.write(encode_frame(message, header_of(tensor)))
    content, loop = bytes_of(tensor), asyncio.get_running_loop()
    moved = loop.time()
    last = moved + frame_timeout_s(len(content) + WRITE_BUFFER_BYTES)
    # Draining waits until most of what is unsent has gone, which may be the buffer and a piece.
    piece_timeout_s = frame_timeout_s(WRITE_BUFFER_BYTES + WRITE_BYTES)
    async with asyncio.timeout_at(min(last, moved + piece_timeout_s)) as deadline:
        for start in range(0, len(content), WRITE_BYTES):
            writer.write(content[start : start + WRITE_BYTES])
            await writer.drain()
            if loop.time() - moved > PROGRESS_NOTED_S:
                moved = loop.time()
                deadline.reschedule(min(last, moved + piece_timeout_s))


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
