"""Zero-copy reading from a real socket into memory of ours, and all that may come between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from tests.fakes import reader_of, until
from understudy.node.p2p.zero_copy import (
    WRITE_BUFFER_BYTES,
    ZeroCopyReader,
    open_unix_stream,
    read_front,
    start_unix_streams,
)

TIMEOUT_S = 10.0
LIMIT = 1 << 10
LOOPS = (asyncio.new_event_loop, uvloop.new_event_loop)
PAYLOAD = bytes(range(256)) * 4096

Body = Callable[[ZeroCopyReader, asyncio.StreamWriter], Awaitable[None]]
"""The reading end, and the writing end of the same stream at the other side."""


def connected(folder: Path, make_loop: Callable[[], asyncio.AbstractEventLoop], body: Body) -> None:
    """Run a test with both ends of one stream."""

    async def main() -> None:
        others: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        server = await asyncio.start_unix_server(lambda _, writer: others.put_nowait(writer), folder / "socket")
        async with asyncio.timeout(TIMEOUT_S), server:
            reader, writer = await open_unix_stream(folder / "socket", LIMIT)
            other = await others.get()
            try:
                await body(reader, other)
            finally:
                writer.close()
                other.close()
                await writer.wait_closed()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


async def filled(reader: ZeroCopyReader, count: int) -> bytes:
    """The next bytes, without a copy."""
    target = memoryview(bytearray(count))
    done = 0
    while done < count:
        more = await reader.recv_into(target[done:])
        assert more
        done += more
    return bytes(target)


@pytest.mark.parametrize("make_loop", LOOPS)
def test_what_is_sent_lies_in_the_target(tmp_path: Path, make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def body(reader: ZeroCopyReader, other: asyncio.StreamWriter) -> None:
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(filled(reader, len(PAYLOAD)))
            other.write(PAYLOAD)
        assert reading.result() == PAYLOAD

    connected(tmp_path, make_loop, body)


@pytest.mark.parametrize("make_loop", LOOPS)
def test_both_ways_of_reading_may_be_mixed(tmp_path: Path, make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Messages are read by asyncio, the tensors between them without a copy, whatever came together."""

    async def body(reader: ZeroCopyReader, other: asyncio.StreamWriter) -> None:
        other.write(PAYLOAD * 2)
        found = b""
        for count in (7, 100_000, 3, 70_000, 4096):
            found += await reader.readexactly(count)
            found += await filled(reader, count * 2)
            found += await reader.read(count)
        assert found == (PAYLOAD * 2)[: len(found)]

    connected(tmp_path, make_loop, body)


def test_what_was_read_by_asyncio_leaves_the_way_free(tmp_path: Path) -> None:
    """A tensor behind a message is not copied because there was a message."""

    async def body(reader: ZeroCopyReader, other: asyncio.StreamWriter) -> None:
        other.write(b"messages")
        assert await reader.readexactly(5) + await reader.read(100) == b"messages"
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(reader.recv_into(memoryview(bytearray(4))))
            await until(lambda: reader.room() is not None)
            other.write(b"1234")
        assert waiting.result() == 4

    connected(tmp_path, asyncio.new_event_loop, body)


@pytest.mark.parametrize("make_loop", LOOPS)
def test_nothing_is_written_where_nobody_waits(
    tmp_path: Path, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """The memory may be another tensor's by then."""

    async def body(reader: ZeroCopyReader, other: asyncio.StreamWriter) -> None:
        target = bytearray(4)
        waiting = asyncio.ensure_future(reader.recv_into(memoryview(target)))
        await until(lambda: reader.room() is not None)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        other.write(b"late")
        assert await reader.readexactly(4) == b"late"
        assert target == bytes(4)

    connected(tmp_path, make_loop, body)


@pytest.mark.parametrize("make_loop", LOOPS)
def test_more_than_the_target_holds_waits_for_the_next(
    tmp_path: Path, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def body(reader: ZeroCopyReader, other: asyncio.StreamWriter) -> None:
        first, second = bytearray(3), bytearray(5)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(reader.recv_into(memoryview(first)))
            other.write(b"12345678")
        assert await filled(reader, 5) == b"45678"
        assert first == b"123"
        assert second == bytes(5)

    connected(tmp_path, make_loop, body)


@pytest.mark.parametrize("make_loop", LOOPS)
def test_the_end_of_a_stream_is_no_byte(tmp_path: Path, make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def body(reader: ZeroCopyReader, other: asyncio.StreamWriter) -> None:
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(reader.recv_into(memoryview(bytearray(4))))
            await until(lambda: reader.room() is not None)
            other.close()
        assert waiting.result() == 0
        assert await reader.recv_into(memoryview(bytearray(4))) == 0

    connected(tmp_path, make_loop, body)


def test_a_broken_stream_says_so_to_who_waits() -> None:
    async def main() -> None:
        reader = ZeroCopyReader(LIMIT, asyncio.get_running_loop())
        async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:

            async def wait() -> None:
                with pytest.raises(ConnectionResetError):
                    await reader.recv_into(memoryview(bytearray(4)))

            tasks.create_task(wait())
            await until(lambda: reader.room() is not None)
            reader.set_exception(ConnectionResetError("reset"))
        with pytest.raises(ConnectionResetError):
            await reader.recv_into(memoryview(bytearray(4)))

    asyncio.run(main())


@pytest.mark.parametrize("make_loop", LOOPS)
def test_whoever_reads_nothing_stops_the_sender(
    tmp_path: Path, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """What comes while nobody waits is bounded, as asyncio bounds it."""

    async def body(reader: ZeroCopyReader, other: asyncio.StreamWriter) -> None:
        other.write(PAYLOAD * 8)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await other.drain()
        assert await filled(reader, len(PAYLOAD) * 8) == PAYLOAD * 8

    connected(tmp_path, make_loop, body)


def test_a_reader_that_cannot_is_copied_from() -> None:
    async def main() -> None:
        target = bytearray(4)
        reader = reader_of(b"12")
        assert await read_front(reader, memoryview(target)) == 2
        assert target == b"12\0\0"
        assert await read_front(reader, memoryview(target)) == 0

    asyncio.run(main())


def accepting(
    folder: Path, make_loop: Callable[[], asyncio.AbstractEventLoop], body: Callable[..., Awaitable[None]]
) -> None:
    """Run a test with the reading end that a server of ours accepted, and both writers."""

    async def main() -> None:
        accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.put_nowait((reader, writer))

        server = await start_unix_streams(accept, folder / "socket", LIMIT)
        async with asyncio.timeout(TIMEOUT_S), server:
            _, opener = await open_unix_stream(folder / "socket", LIMIT)
            reader, acceptor = await accepted.get()
            try:
                await body(reader, opener, acceptor)
            finally:
                for writer in (opener, acceptor):
                    writer.transport.abort()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("make_loop", LOOPS)
def test_a_stream_that_was_accepted_is_read_straight_too(
    tmp_path: Path, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def body(reader: asyncio.StreamReader, opener: asyncio.StreamWriter, _: asyncio.StreamWriter) -> None:
        assert isinstance(reader, ZeroCopyReader)
        opener.write(PAYLOAD)
        assert await filled(reader, len(PAYLOAD)) == PAYLOAD

    accepting(tmp_path, make_loop, body)


@pytest.mark.parametrize("make_loop", LOOPS)
def test_both_ends_write_ahead_and_then_wait(
    tmp_path: Path, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def body(_: asyncio.StreamReader, *writers: asyncio.StreamWriter) -> None:
        for writer in writers:
            assert writer.transport.get_write_buffer_limits() == (WRITE_BUFFER_BYTES // 4, WRITE_BUFFER_BYTES)
            writer.write(bytes(32 << 20))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await writer.drain()

    accepting(tmp_path, make_loop, body)


@pytest.mark.parametrize("make_loop", LOOPS)
def test_writing_after_the_end_is_a_broken_connection(
    tmp_path: Path, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def body(_: asyncio.StreamReader, *writers: asyncio.StreamWriter) -> None:
        for writer in writers:
            writer.transport.abort()
            await writer.wait_closed()
            with pytest.raises(ConnectionResetError):
                writer.write(b"late")

    accepting(tmp_path, make_loop, body)
