"""Moving a stage's weights: a donor serves its snapshot, a claimant fetches and verifies it.

One stream per fetch: request, header with the specs, raw bytes, explicit end. A stream that breaks is
opened again from where it stopped; a donor that refuses or stays silent is given up.

Who has an image of the weights already asks for the difference to it, and gets that or the weights themselves; the
header says which. Who fetches in the background asks for one piece after the other (node/links/pacing.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from understudy.node.compute.parts import check_part, header_bytes_max
from understudy.node.compute.standby import followed
from understudy.node.compute.thread import ComputeThread
from understudy.node.compute.weights import WeightsSnapshot
from understudy.node.compute.weights_buffer import WeightsBuffer
from understudy.node.links.framing import read_message, read_some, write_frame
from understudy.node.links.link import OPEN_TIMEOUT_S, LinkRules, Streams
from understudy.node.links.pacing import LINE_SHARE, Pace, check_piece
from understudy.protocol.actions import Fetch
from understudy.protocol.errors import NetworkError, PeerRefusedError, RemoteProtocolError, WeightsError
from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import PROTOCOL_VERSION, ModelSettings
from understudy.protocol.wire.messages import FetchEnd, FetchHeader, FetchMore, FetchRefused, FetchRequest

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
DIGEST_BYTES = 4 << 20
"""What came is digested in pieces of at least this size while more comes."""
SILENCE_TIMEOUT_S = 8.0
"""No byte for this long: the donor is gone or stuck."""
MORE_TIMEOUT_S = 30.0
"""Nobody asked for the next piece for this long: the claimant is gone. It pauses for much less."""
MORE_BYTES_MAX = 64
"""Of the message that asks for more."""
SLOWEST_BYTES_PER_S = 32 * 1024
"""A donor that sends less than this on average is given up, however regularly a byte of it comes."""
TRIES_MAX = 4
"""Streams in a row that brought nearly nothing, after which a donor is given up."""
STREAMS_MAX = 32
"""Opened for one donation at most. A link that climbs from the relay breaks all streams once or twice."""

MayFetch = Callable[[PeerId, FetchRequest], bool]
Held = Callable[[str], WeightsSnapshot | None]
"""Weights by their digest."""
Difference = Callable[[str, str], WeightsSnapshot | None]
"""What weights of the second digest have more than those of the first."""


def fetch_protocol(run_id: str) -> str:
    """The stream protocol of fetches of this run."""
    return f"/understudy/{PROTOCOL_VERSION}/{run_id}/fetch"


class WeightsServer:
    """Serves held snapshots to whom the core recognises."""

    def __init__(self, may_fetch: MayFetch, held: Held, difference: Difference = lambda base, digest: None) -> None:
        self._may_fetch, self._held, self._difference = may_fetch, held, difference

    async def serve(self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One fetch. Ends early when the claimant loses its recognition meanwhile."""
        try:
            async with asyncio.timeout(SILENCE_TIMEOUT_S):
                request = await read_message(reader)
            if not isinstance(request, FetchRequest):
                raise RemoteProtocolError("a fetch did not begin with a request")
            if request.piece_bytes:
                check_piece(request.piece_bytes)
            await self._answer(peer, request, reader, writer)
        except (RemoteProtocolError, NetworkError, TimeoutError, OSError) as error:
            logger.debug("fetch by %s ended: %s", peer, error)

    async def _answer(
        self, peer: PeerId, request: FetchRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        held, base = self._find(request)
        if held is None or not self._may_fetch(peer, request) or request.offset > held.payload_bytes:
            async with asyncio.timeout(SILENCE_TIMEOUT_S):
                await write_frame(writer, FetchRefused("you are not the claimant, or these weights are outdated"))
            return
        async with asyncio.timeout(SILENCE_TIMEOUT_S):
            await write_frame(writer, FetchHeader(held.specs, held.payload_bytes, base))
        left = request.piece_bytes or held.payload_bytes
        for chunk in held.chunks(request.offset, CHUNK_BYTES):
            unsent = chunk
            while unsent:
                left = left or await _asked_for(reader)
                if not self._may_fetch(peer, request):
                    return
                async with asyncio.timeout(SILENCE_TIMEOUT_S):
                    writer.write(unsent[:left])
                    await writer.drain()
                unsent, left = unsent[left:], max(0, left - len(unsent))
        async with asyncio.timeout(SILENCE_TIMEOUT_S):
            await write_frame(writer, FetchEnd())

    def _find(self, request: FetchRequest) -> tuple[WeightsSnapshot | None, str]:
        """What to send, and the digest of the weights that it is a difference to, if it is one."""
        lacking = self._difference(request.base, request.digest) if request.base else None
        return (self._held(request.digest), "") if lacking is None else (lacking, request.base)


async def _asked_for(reader: asyncio.StreamReader) -> int:
    """How large the next piece may be, once the claimant says so. Raises `TimeoutError` if it does not."""
    async with asyncio.timeout(MORE_TIMEOUT_S):
        more = await read_message(reader, MORE_BYTES_MAX)
    if not isinstance(more, FetchMore):
        raise RemoteProtocolError("the claimant did not ask for more")
    check_piece(more.piece_bytes)
    return more.piece_bytes


class Fetcher:
    """Fetches donations for the claims of this node, or whole stages for an export."""

    def __init__(
        self,
        streams: Streams,
        rules: LinkRules,
        model: ModelSettings,
        thread: ComputeThread,
        held: Held = lambda digest: None,
    ) -> None:
        """``held``: what we have that differences may be to. Asked on the compute thread, behind what it has to do."""
        self.streams, self.protocol = streams, fetch_protocol(rules.run_id)
        self.model = model
        self.on_bytes: Callable[[Fetch, int], None] = lambda fetch, count: None
        """Told of bytes as they come."""
        self.thread, self._held = thread, held

    async def fetch(self, fetch: Fetch) -> WeightsSnapshot:
        """The donor's verified weights. Raises an `UnderstudyError` that says why they will not come."""
        transfer = _Transfer(self, fetch, await self._base_of(fetch))
        await transfer.run()
        snapshot: WeightsSnapshot = await self.thread.call(transfer.freeze)
        if snapshot.digest != fetch.digest:
            raise WeightsError("the donor sent other weights than it offered")
        return snapshot

    async def _base_of(self, fetch: Fetch) -> WeightsSnapshot | None:
        if not fetch.base or fetch.part == "moments":
            return None
        base: WeightsSnapshot | None = await self.thread.call(lambda: self._held(fetch.base))
        return base


class _Transfer:
    """One donation on its way, over as many streams as it takes."""

    def __init__(self, fetcher: Fetcher, fetch: Fetch, base: WeightsSnapshot | None) -> None:
        self._fetcher, self._fetch = fetcher, fetch
        self._header_bytes_max = header_bytes_max(fetch.part, fetcher.model, fetch.claim[0])
        self._base = base
        """What comes, or is asked for, is the difference to these. None: it is the weights."""
        self._pace = Pace(fetch.share) if fetch.share else None
        self._buffer: WeightsBuffer | None = None
        self._digesting: asyncio.Future[Any] | None = None
        self._digest_at = DIGEST_BYTES

    def freeze(self) -> WeightsSnapshot:
        """Verify every tensor's digest, of which most are computed already, and follow a difference.

        For the compute thread. Raises `WeightsError`.
        """
        if self._buffer is None:
            raise WeightsError("no weights came")
        came = self._buffer.freeze()
        return came if self._base is None else followed(self._base, came)

    async def run(self) -> None:
        failure, streams, in_vain = "", 0, 0
        while in_vain < TRIES_MAX and streams < STREAMS_MAX:
            before, streams = self._received, streams + 1
            try:
                return await self._continue()
            except (PeerRefusedError, RemoteProtocolError, WeightsError):
                raise
            except (NetworkError, TimeoutError, OSError) as error:
                failure = str(error) or "no byte came in time"
            in_vain = 0 if self._received - before >= CHUNK_BYTES else in_vain + 1
        raise NetworkError(f"the transfer was interrupted {streams} times, at last because {failure}")

    @property
    def _received(self) -> int:
        return self._buffer.received if self._buffer else 0

    async def _continue(self) -> None:
        """Open a stream and fetch from where the buffer ends; what came stays there if it breaks."""
        reader, writer = await self._fetcher.streams.open_stream(
            self._fetch.donor, self._fetcher.protocol, OPEN_TIMEOUT_S
        )
        try:
            async with asyncio.timeout(SILENCE_TIMEOUT_S):
                await write_frame(writer, self._request())
                header = await read_message(reader, self._header_bytes_max)
            if self._pace is not None:
                self._pace.answered(asyncio.get_running_loop().time())
            self._prepare(header)
            await self._fill(reader, writer)
        finally:
            writer.close()

    def _request(self) -> FetchRequest:
        base = self._base.digest if self._base is not None else ""
        piece_bytes = self._ask_for_piece(self._pace) if self._pace is not None else 0
        return FetchRequest(*self._fetch.claim, self._fetch.digest, self._received, base, piece_bytes)

    def _ask_for_piece(self, pace: Pace) -> int:
        pace.asked(asyncio.get_running_loop().time())
        return pace.left

    def _prepare(self, header: object) -> None:
        """Make room for what the donor announces, if it is what our stage needs."""
        if header is None:
            raise NetworkError("the donor ended the stream")
        if isinstance(header, FetchRefused):
            raise RemoteProtocolError(f"the donor refused: {header.reason}")
        if not isinstance(header, FetchHeader):
            raise RemoteProtocolError("the donor answered with something else than weights")
        self._note_base(header.base)
        if self._buffer is None:
            is_difference = self._base is not None
            check_part(
                header.specs, self._fetch.part, self._fetcher.model, self._fetch.claim[0], is_difference=is_difference
            )
            self._buffer = WeightsBuffer(header.specs)
        elif self._buffer.specs != header.specs:
            raise RemoteProtocolError("the donor changed its weights during the transfer")

    def _note_base(self, digest: str) -> None:
        """Whether the difference comes that we asked for. If a donor has lost it meanwhile we begin anew, once."""
        if digest and (self._base is None or digest != self._base.digest):
            raise RemoteProtocolError("the donor sent a difference to weights that we did not name")
        if digest or self._base is None:
            return
        self._base = None
        if self._buffer is not None:
            self._buffer, self._digesting, self._digest_at = None, None, DIGEST_BYTES
            raise NetworkError("the donor has lost the difference")

    async def _fill(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        buffer, pace, loop = self._buffer, self._pace, asyncio.get_running_loop()
        assert buffer is not None
        missing = sum(spec.payload_bytes for spec in buffer.specs) - buffer.received
        slowest_s = missing / SLOWEST_BYTES_PER_S * (1 if pace is None else LINE_SHARE * pace.share)
        async with asyncio.timeout(SILENCE_TIMEOUT_S + slowest_s):
            while not buffer.is_complete:
                if pace is not None and not pace.left:
                    await self._rest(pace, reader, writer)
                async with asyncio.timeout(SILENCE_TIMEOUT_S):
                    room = buffer.writable()
                    count = await read_some(reader, room if pace is None else room[: pace.left])
                buffer.advance(count)
                if pace is not None:
                    pace.came(count, loop.time())
                self._digest_along(buffer)
                self._fetcher.on_bytes(self._fetch, count)
        async with asyncio.timeout(SILENCE_TIMEOUT_S):
            end = await read_message(reader)
        if end is None:
            raise NetworkError("the stream was cut off before its end marker")
        if not isinstance(end, FetchEnd):
            raise RemoteProtocolError("the donor did not end the transfer with its end marker")

    async def _rest(self, pace: Pace, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Leave the line alone, then ask for the next piece.

        A donor that goes on sending does not leave it alone: what it sent would be measured as fast, and pauses shrink.
        """
        early = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pace.rest()):
                early = await reader.read(1)
        if early:
            raise RemoteProtocolError("the donor sent more than the piece that it was asked for")
        if early is not None:
            raise NetworkError("the donor ended the stream")
        async with asyncio.timeout(SILENCE_TIMEOUT_S):
            await write_frame(writer, FetchMore(self._ask_for_piece(pace)))

    def _digest_along(self, buffer: WeightsBuffer) -> None:
        """Let the compute thread digest what came, a piece at a time, instead of all of it at the end."""
        if buffer.received >= self._digest_at and (self._digesting is None or self._digesting.done()):
            if self._digesting is not None:
                self._digesting.result()  # raises what went wrong
            self._digest_at = buffer.received + DIGEST_BYTES
            self._digesting = self._fetcher.thread.begin(buffer.digest)
