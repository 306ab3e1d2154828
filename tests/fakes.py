"""Streams in memory, for what sends and receives bytes: no sockets, and failures where a test wants them."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from understudy.protocol.errors import NetworkError
from understudy.protocol.ids import PeerId

T = TypeVar("T")
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def until(condition: Callable[[], object]) -> None:
    """Let the others run until something holds. The caller sets the deadline."""
    while not condition():  # noqa: ASYNC110 - any state of the subject may be what is waited for
        await asyncio.sleep(0)


class LeapingLoop(asyncio.SelectorEventLoop):
    """A loop with a clock of its own: with nothing to do it leaps to the next timer, and hours take no time."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_LeapingSelector(self))

    def time(self) -> float:
        return self._now

    def leap(self, seconds: float) -> None:
        self._now += seconds


class _LeapingSelector(selectors.SelectSelector):
    def __init__(self, loop: LeapingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing will ever happen"
            self._loop.leap(timeout)
        return ready


def run_leaping(main: Coroutine[Any, Any, T]) -> T:
    """Run it in a loop whose time costs none."""
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        return runner.run(main)


class MemoryTransport:
    """What a writer's transport is used for."""

    def __init__(self, writer: MemoryWriter) -> None:
        self._writer = writer

    def abort(self) -> None:
        self._writer.close()


class MemoryWriter:
    """The writing half of a stream: what is written arrives at ``target``.

    After ``breaks_after`` bytes the stream is cut: no more arrives, and the writer is told at the next drain.
    While ``is_stuck`` nothing is taken in: draining waits. It waits for what a line of ``bytes_per_s`` takes.
    """

    bytes_per_s = float("inf")

    def __init__(self, target: asyncio.StreamReader | None = None, breaks_after: int | None = None) -> None:
        self.data = bytearray()
        self.is_closed = False
        self.is_stuck = False
        self.transport = MemoryTransport(self)
        self._target, self._breaks_after = target, breaks_after
        self._drained = 0

    def write(self, data: bytes | memoryview) -> None:
        room = len(data) if self._breaks_after is None else max(0, self._breaks_after - len(self.data))
        arriving = bytes(data[:room])
        self.data += arriving
        if self._target is not None and arriving and not self.is_closed:
            self._target.feed_data(arriving)
        if room < len(data):
            self.close()

    async def drain(self) -> None:
        if self.is_stuck:
            await asyncio.Event().wait()
        if self.is_closed:
            raise ConnectionResetError("the stream broke")
        unsent, self._drained = len(self.data) - self._drained, len(self.data)
        await asyncio.sleep(unsent / self.bytes_per_s)  # 0 as well: a real drain may let others run

    def close(self) -> None:
        if not self.is_closed and self._target is not None:
            self._target.feed_eof()
        self.is_closed = True

    async def wait_closed(self) -> None:
        return


def as_writer(writer: MemoryWriter) -> asyncio.StreamWriter:
    return cast(asyncio.StreamWriter, writer)


def reader_of(data: bytes) -> asyncio.StreamReader:
    """A stream that brings this and ends."""
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


@dataclass
class Opened:
    """One stream that somebody opened."""

    peer: PeerId
    protocol: str
    reader: asyncio.StreamReader
    """What the opener reads."""
    writer: MemoryWriter
    """What the opener writes."""

    def end(self) -> None:
        """The other side goes away."""
        self.reader.feed_eof()


@dataclass
class FakeStreams:
    """Opens streams as `P2PNode` does. ``outcomes`` are used up in turn: None opens, an error is raised."""

    outcomes: list[NetworkError | None] = field(default_factory=list)
    breaks_after: list[int | None] = field(default_factory=list)
    """Bytes after which the streams break, one by one; of the opener's, or of the server's if there is one."""
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] | None = None
    """Who answers; nobody: the written bytes are only kept."""
    opened: list[Opened] = field(default_factory=list)
    tasks: asyncio.TaskGroup | None = None

    async def open_stream(self, peer: PeerId, protocol: str, timeout_s: float) -> Ends:
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome
        breaks_after = self.breaks_after.pop(0) if self.breaks_after else None
        there, back = asyncio.StreamReader(), asyncio.StreamReader()
        writer = MemoryWriter(there, None if self.serve else breaks_after)
        self.opened.append(Opened(peer, protocol, back, writer))
        if self.serve is not None:
            assert self.tasks is not None
            self.tasks.create_task(self._serve(there, MemoryWriter(back, breaks_after)))
        return back, as_writer(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: MemoryWriter) -> None:
        assert self.serve is not None
        await self.serve(reader, as_writer(writer))
        writer.close()
