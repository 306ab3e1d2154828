"""The two messages of a dial-back on a stream. The caller sets the deadline."""

from __future__ import annotations

import asyncio

from understudy.protocol.errors import NetworkError
from understudy.protocol.wire.reach import (
    LENGTH,
    DialBackAnswer,
    DialBackRequest,
    ReachMessage,
    decode_length,
    decode_reach,
    encode_reach,
)


async def read_reach(reader: asyncio.StreamReader, kind: type[ReachMessage]) -> ReachMessage:
    """The next message. Raises `NetworkError` at the stream's end, `RemoteProtocolError` for anything else."""
    try:
        length = decode_length(await reader.readexactly(LENGTH.size))
        return decode_reach(await reader.readexactly(length), kind)
    except asyncio.IncompleteReadError as error:
        raise NetworkError("the stream ended within a dial-back") from error


async def write_reach(writer: asyncio.StreamWriter, message: DialBackRequest | DialBackAnswer) -> None:
    """Write a message and wait until it is on its way."""
    writer.write(encode_reach(message))
    await writer.drain()
