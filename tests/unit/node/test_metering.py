"""Bytes are counted where they pass, and pass unchanged."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes import FakeStreams, MemoryWriter, as_writer, reader_of
from understudy.node.links.metering import Counters, MeteredStreams
from understudy.node.p2p.zero_copy import read_front
from understudy.protocol.ids import PeerId

PEER = PeerId("QmPeer")


def test_what_we_open_is_counted_both_ways() -> None:
    async def main() -> None:
        counters, streams = Counters(), FakeStreams()
        reader, writer = await MeteredStreams(streams, counters).open_stream(PEER, "protocol", 1.0)
        (opened,) = streams.opened
        writer.write(b"12345")
        writer.write(memoryview(bytearray(16)).cast("f"))  # four numbers, sixteen bytes
        await writer.drain()
        assert bytes(opened.writer.data) == b"12345" + bytes(16)
        opened.reader.feed_data(b"abcdefg")
        assert await reader.readexactly(3) + await reader.read(100) == b"abcdefg"
        assert (counters.bytes_in, counters.bytes_out, counters.microbatches) == (7, 21, 0)
        writer.close()
        assert opened.writer.is_closed

    asyncio.run(main())


def test_what_goes_straight_into_memory_is_counted_too() -> None:
    async def main() -> None:
        counters, target = Counters(), bytearray(8)
        reader, _ = counters.metered(reader_of(b"hello"), as_writer(MemoryWriter()))
        assert await read_front(reader, memoryview(target)) == 5
        assert (bytes(target), counters.bytes_in) == (b"hello\0\0\0", 5)

    asyncio.run(main())


def test_what_others_open_is_counted_too() -> None:
    async def main() -> None:
        counters = Counters()

        async def echo(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert peer == PEER
            writer.write(await reader.read())

        writer = MemoryWriter()
        await counters.metered_callback(echo)(PEER, reader_of(b"hello"), as_writer(writer))
        assert (bytes(writer.data), counters.bytes_in, counters.bytes_out) == (b"hello", 5, 5)

    asyncio.run(main())


def test_a_stream_that_cannot_be_opened_or_ends_early_is_told_as_ever() -> None:
    async def main() -> None:
        reader, _ = Counters().metered(reader_of(b"abc"), as_writer(MemoryWriter()))
        with pytest.raises(asyncio.IncompleteReadError):
            await reader.readexactly(4)

    asyncio.run(main())
