"""Moving a stage's weights: a donor serves its snapshot, a claimant fetches and verifies it.

One stream per fetch: request, header with the specs, raw bytes, explicit end. A stream that breaks is
opened again from where it stopped; a donor that refuses or stays silent is given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from understudy.node.compute.parts import check_part, header_bytes_max
from understudy.node.compute.thread import ComputeThread
from understudy.node.compute.weights import WeightsSnapshot
from understudy.node.compute.weights_buffer import WeightsBuffer
from understudy.node.links.framing import read_message, read_some, write_frame
from understudy.node.links.link import OPEN_TIMEOUT_S, LinkRules, Streams
from understudy.protocol.actions import Fetch
from understudy.protocol.errors import NetworkError, PeerRefusedError, RemoteProtocolError, WeightsError
from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import PROTOCOL_VERSION, ModelSettings
from understudy.protocol.wire.messages import FetchEnd, FetchHeader, FetchRefused, FetchRequest

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
DIGEST_BYTES = 4 << 20
"""What came is digested in pieces of at least this size while more comes."""
SILENCE_TIMEOUT_S = 8.0
"""No byte for this long: the donor is gone or stuck."""
SLOWEST_BYTES_PER_S = 32 * 1024
"""A donor that sends less than this on average is given up, however regularly a byte of it comes."""
TRIES_MAX = 4
"""Streams in a row that brought nearly nothing, after which a donor is given up."""
STREAMS_MAX = 32
"""Opened for one donation at most. A link that climbs from the relay breaks all streams once or twice."""

MayFetch = Callable[[PeerId, FetchRequest], bool]


def fetch_protocol(run_id: str) -> str:
    """The stream protocol of fetches of this run."""
    return f"/understudy/{PROTOCOL_VERSION}/{run_id}/fetch"


class WeightsServer:
    """Serves held snapshots to whom the core recognises."""

    def __init__(self, may_fetch: MayFetch, held: Callable[[str], WeightsSnapshot | None]) -> None:
        self._may_fetch, self._held = may_fetch, held

    async def serve(self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One fetch. Ends early when the claimant loses its recognition meanwhile."""
        try:
            async with asyncio.timeout(SILENCE_TIMEOUT_S):
                request = await read_message(reader)
            if not isinstance(request, FetchRequest):
                raise RemoteProtocolError("a fetch did not begin with a request")
            await self._answer(peer, request, writer)
        except (RemoteProtocolError, NetworkError, TimeoutError, OSError) as error:
            logger.debug("fetch by %s ended: %s", peer, error)

    async def _answer(self, peer: PeerId, request: FetchRequest, writer: asyncio.StreamWriter) -> None:
        held = self._held(request.digest)
        if held is None or not self._may_fetch(peer, request) or request.offset > held.payload_bytes:
            async with asyncio.timeout(SILENCE_TIMEOUT_S):
                await write_frame(writer, FetchRefused("you are not the claimant, or these weights are outdated"))
            return
        async with asyncio.timeout(SILENCE_TIMEOUT_S):
            await write_frame(writer, FetchHeader(held.specs, held.payload_bytes))
        for chunk in held.chunks(request.offset, CHUNK_BYTES):
            if not self._may_fetch(peer, request):
                return
            async with asyncio.timeout(SILENCE_TIMEOUT_S):
                writer.write(chunk)
                await writer.drain()
        async with asyncio.timeout(SILENCE_TIMEOUT_S):
            await write_frame(writer, FetchEnd())


class Fetcher:
    """Fetches donations for the claims of this node, or whole stages for an export."""

    def __init__(self, streams: Streams, rules: LinkRules, model: ModelSettings, thread: ComputeThread) -> None:
        self.streams, self.protocol = streams, fetch_protocol(rules.run_id)
        self.model = model
        self.on_bytes: Callable[[Fetch, int], None] = lambda fetch, count: None
        """Told of bytes as they come."""
        self.thread = thread

    async def fetch(self, fetch: Fetch) -> WeightsSnapshot:
        """The donor's verified weights. Raises an `UnderstudyError` that says why they will not come."""
        transfer = _Transfer(self, fetch)
        await transfer.run()
        snapshot: WeightsSnapshot = await self.thread.call(transfer.freeze)
        if snapshot.digest != fetch.digest:
            raise WeightsError("the donor sent other weights than it offered")
        return snapshot


class _Transfer:
    """One donation on its way, over as many streams as it takes."""

    def __init__(self, fetcher: Fetcher, fetch: Fetch) -> None:
        self._fetcher, self._fetch = fetcher, fetch
        self._header_bytes_max = header_bytes_max(fetch.part, fetcher.model, fetch.claim[0])
        self._buffer: WeightsBuffer | None = None
        self._digesting: asyncio.Future[Any] | None = None
        self._digest_at = DIGEST_BYTES

    def freeze(self) -> WeightsSnapshot:
        """Verify every tensor's digest, of which most are computed already. For the compute thread."""
        if self._buffer is None:
            raise WeightsError("no weights came")
        return self._buffer.freeze()

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
                await write_frame(writer, FetchRequest(*self._fetch.claim, self._fetch.digest, self._received))
                self._prepare(await read_message(reader, self._header_bytes_max))
            await self._fill(reader)
        finally:
            writer.close()

    def _prepare(self, header: object) -> None:
        """Make room for what the donor announces, if it is what our stage needs."""
        if header is None:
            raise NetworkError("the donor ended the stream")
        if isinstance(header, FetchRefused):
            raise RemoteProtocolError(f"the donor refused: {header.reason}")
        if not isinstance(header, FetchHeader):
            raise RemoteProtocolError("the donor answered with something else than weights")
        if self._buffer is None:
            check_part(header.specs, self._fetch.part, self._fetcher.model, self._fetch.claim[0])
            self._buffer = WeightsBuffer(header.specs)
        elif self._buffer.specs != header.specs:
            raise RemoteProtocolError("the donor changed its weights during the transfer")

    async def _fill(self, reader: asyncio.StreamReader) -> None:
        buffer = self._buffer
        assert buffer is not None
        missing = sum(spec.payload_bytes for spec in buffer.specs) - buffer.received
        async with asyncio.timeout(SILENCE_TIMEOUT_S + missing / SLOWEST_BYTES_PER_S):
            while not buffer.is_complete:
                async with asyncio.timeout(SILENCE_TIMEOUT_S):
                    count = await read_some(reader, buffer.writable())
                buffer.advance(count)
                self._digest_along(buffer)
                self._fetcher.on_bytes(self._fetch, count)
        async with asyncio.timeout(SILENCE_TIMEOUT_S):
            end = await read_message(reader)
        if end is None:
            raise NetworkError("the stream was cut off before its end marker")
        if not isinstance(end, FetchEnd):
            raise RemoteProtocolError("the donor did not end the transfer with its end marker")

    def _digest_along(self, buffer: WeightsBuffer) -> None:
        """Let the compute thread digest what came, a piece at a time, instead of all of it at the end."""
        if buffer.received >= self._digest_at and (self._digesting is None or self._digesting.done()):
            if self._digesting is not None:
                self._digesting.result()  # raises what went wrong
            self._digest_at = buffer.received + DIGEST_BYTES
            self._digesting = self._fetcher.thread.begin(buffer.digest)
