"""Counts the bytes that come from peers and go to them, and the work done; for people."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

from understudy.node.links.link import Streams
from understudy.node.p2p.streams import StreamCallback
from understudy.node.p2p.zero_copy import ReadsInto, read_front
from understudy.protocol.ids import PeerId

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class Counters:
    """What passed so far."""

    bytes_in: int = 0
    bytes_out: int = 0
    microbatches: int = 0
    """Whose backward work is done here."""

    def metered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Ends:
        """The same stream, counted."""
        return (
            cast(asyncio.StreamReader, _MeteredReader(reader, self)),
            cast(asyncio.StreamWriter, _MeteredWriter(writer, self)),
        )

    def metered_callback(self, callback: StreamCallback) -> StreamCallback:
        """A callback for incoming streams, whose streams are counted."""

        async def counted(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await callback(peer, *self.metered(reader, writer))

        return counted


class MeteredStreams:
    """A `P2PNode`'s streams to peers, counted."""

    def __init__(self, streams: Streams, counters: Counters) -> None:
        self._streams, self._counters = streams, counters

    async def open_stream(self, peer: PeerId, protocol: str, timeout_s: float) -> Ends:
        return self._counters.metered(*await self._streams.open_stream(peer, protocol, timeout_s))


class _MeteredReader(ReadsInto):
    """Those methods of a reader that streams of ours are read with."""

    def __init__(self, reader: asyncio.StreamReader, counters: Counters) -> None:
        self._reader, self._counters = reader, counters

    async def read(self, count: int = -1) -> bytes:
        data = await self._reader.read(count)
        self._counters.bytes_in += len(data)
        return data

    async def recv_into(self, target: memoryview) -> int:
        count = await read_front(self._reader, target)
        self._counters.bytes_in += count
        return count

    async def readexactly(self, count: int) -> bytes:
        data = await self._reader.readexactly(count)
        self._counters.bytes_in += len(data)
        return data


class _MeteredWriter:
    """Those methods of a writer that streams of ours are written with."""

    def __init__(self, writer: asyncio.StreamWriter, counters: Counters) -> None:
        self._writer, self._counters = writer, counters

    def write(self, data: bytes | memoryview) -> None:
        self._writer.write(data)
        self._counters.bytes_out += memoryview(data).nbytes

    async def drain(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()
