"""Zero-copy reading: bytes of a stream go from the socket into memory of ours.

asyncio's `StreamReader` copies what comes four times before it lies in a tensor (uvloop's buffer, bytes, its own
buffer, bytes again). While somebody waits in `ZeroCopyReader.recv_into`, the operating system writes into the
target itself. All other reading is asyncio's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import SupportsIndex

SPILL_BYTES = 64 * 1024
"""Room for what comes while nobody waits with a target."""
WRITE_BUFFER_BYTES = 1 << 20
"""`drain` waits while more than this is unsent, until a quarter of it is left: the socket never runs dry between
two tensors."""

Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ReadsInto:
    """A reader that can fill memory of ours. Not a protocol of typing: to ask for one costs 50 us a time."""

    async def recv_into(self, target: memoryview) -> int:
        """At least one byte into the front of ``target``; how many, 0 at the stream's end. Raises what broke it."""
        raise NotImplementedError


async def read_front(reader: asyncio.StreamReader | ReadsInto, target: memoryview) -> int:
    """Put what the stream has into the front of ``target``, without a copy if it can; how many bytes, 0 at its end."""
    if isinstance(reader, ReadsInto):
        return await reader.recv_into(target)
    piece = await reader.read(len(target))
    target[: len(piece)] = piece
    return len(piece)


class ZeroCopyReader(asyncio.StreamReader, ReadsInto):
    """The reading half of a stream; made with `open_unix_stream` and `start_unix_streams`."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=limit, loop=loop)
        self._future: Callable[[], asyncio.Future[None]] = loop.create_future
        self._unread = 0
        """Bytes that came while nobody waited with a target."""
        self._target: memoryview | None = None
        self._filled = 0
        self._progress: asyncio.Future[None] | None = None

    async def recv_into(self, target: memoryview) -> int:
        """See `ReadsInto`."""
        if self._unread:
            piece = await self.read(len(target))
            target[: len(piece)] = piece
            return len(piece)
        self._raise_failure()
        if self.at_eof() or not target:
            return 0
        self._target, self._filled, self._progress = target, 0, self._future()
        try:
            await self._progress
            if not self._filled:
                self._raise_failure()
            return self._filled
        finally:
            self._target = self._progress = None

    def room(self) -> memoryview | None:
        """Where the next bytes go; None: to `feed_data`."""
        return self._target[self._filled :] if self._target is not None and self._filled < len(self._target) else None

    def filled(self, count: int) -> None:
        """So many bytes were written into `room`."""
        self._filled += count
        self._wake()

    def _wake(self) -> None:
        if self._progress is not None and not self._progress.done():
            self._progress.set_result(None)

    def _raise_failure(self) -> None:
        failure = self.exception()
        if failure is not None:
            raise failure

    # --- what asyncio's reader is told and asked ---

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        self._unread += len(bytes(data))
        super().feed_data(data)

    def feed_eof(self) -> None:
        super().feed_eof()
        self._wake()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self._wake()

    async def read(self, n: int = -1) -> bytes:
        data = await super().read(n)
        self._unread -= len(data) if n >= 0 else 0  # a read of everything calls this method for each piece
        return data

    async def readexactly(self, n: int) -> bytes:
        try:
            data = await super().readexactly(n)
        except asyncio.IncompleteReadError as error:
            self._unread -= len(error.partial)
            raise
        self._unread -= len(data)
        return data


class _StraightProtocol(asyncio.BufferedProtocol):
    """Between a transport and asyncio's protocol for streams: gives out the reader's target as the buffer."""

    def __init__(self, reader: ZeroCopyReader, inner: asyncio.StreamReaderProtocol) -> None:
        self._reader, self._inner = reader, inner
        self._spill = memoryview(bytearray(SPILL_BYTES))
        self._is_spilling = False

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._reader.room()
        self._is_spilling = room is None
        return self._spill if room is None else room

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_spilling:
            self._inner.data_received(bytes(self._spill[:nbytes]))
        else:
            self._reader.filled(nbytes)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class _Writer(asyncio.StreamWriter):
    """The writing half of a stream. After its end asyncio drops what is written, uvloop raises a `RuntimeError`."""

    given: asyncio.StreamWriter | None = None
    """asyncio's own for the same stream. From Python 3.13 on it closes the stream when nobody refers to it any more."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Raises `ConnectionResetError` once the stream has ended, whichever loop runs it."""
        if self.transport.is_closing():
            raise ConnectionResetError("the stream has ended")
        super().write(data)


async def open_unix_stream(path: Path, limit: int) -> tuple[ZeroCopyReader, asyncio.StreamWriter]:
    """Like `asyncio.open_unix_connection`, with a reader that can do so. Raises `OSError`."""
    loop = asyncio.get_running_loop()
    reader = ZeroCopyReader(limit, loop)
    inner = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_unix_connection(lambda: _StraightProtocol(reader, inner), str(path))
    transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
    return reader, _Writer(transport, inner, reader, loop)


async def start_unix_streams(accept: Accept, path: Path, limit: int) -> asyncio.Server:
    """Like `asyncio.start_unix_server`, with readers that can do so."""
    loop = asyncio.get_running_loop()

    def protocol() -> _StraightProtocol:
        reader = ZeroCopyReader(limit, loop)

        async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
            ours = _Writer(writer.transport, inner, reader, loop)
            ours.given = writer
            await accept(reader, ours)

        inner = asyncio.StreamReaderProtocol(reader, accepted, loop=loop)
        return _StraightProtocol(reader, inner)

    return await loop.create_unix_server(protocol, str(path))
