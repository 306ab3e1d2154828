"""Links: how messages get to peers.

A link is a one-way stream that its sender opens. To each peer there is one for *control*, so that a heartbeat
never queues behind a tensor, and there are `DATA_LINKS` that take activations and gradients in turn. A link that
breaks is re-dialled at once: a refusal means that the peer is gone, and the core is told. What was
queued on a link that cannot be opened is lost; the protocol heals that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from understudy.node.framing import read_link_frame, read_message, write_frame
from understudy.protocol.errors import NetworkError, PeerRefusedError, RemoteProtocolError
from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import PROTOCOL_VERSION
from understudy.protocol.messages import AnyMessage, Backward, Forward, Hello, TensorHeader

logger = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 4.0
HELLO_TIMEOUT_S = 5.0
WRITE_TIMEOUT_S = 120.0
"""A frame that the peer does not take in for this long: the link is dead, whatever TCP thinks."""
IDLE_TIMEOUT_S = 60.0
"""A link without traffic is closed by its sender; its receiver waits twice as long."""
DATA_LINKS = 4
"""libp2p lets a stream have 256 KiB on its way until the reader's word is back, which waits behind other tensors where
a line is slow: with one stream to a peer, lines of 100 Mbit/s were idle for a fifth of a step (docs/experiments.md)."""
QUEUE_MESSAGES_MAX = 4096
"""Messages queued to one peer at most; the oldest is dropped beyond it."""


class Streams(Protocol):
    """What links need of the swarm (node/swarm.py)."""

    async def open_stream(
        self, peer: PeerId, protocol: str, timeout_s: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]: ...


@dataclass(frozen=True, slots=True)
class LinkRules:
    """What both ends of a link must agree on."""

    run_id: str
    manifest_digest: str
    activation: TensorHeader

    @property
    def protocol(self) -> str:
        return f"/understudy/{PROTOCOL_VERSION}/{self.run_id}/link"


Deliver = Callable[[PeerId, AnyMessage, Tensor | None], None]
Gone = Callable[[PeerId], None]


class OutLink:
    """The sending side of one link: a queue and the task that empties it."""

    def __init__(self, peer: PeerId, streams: Streams, rules: LinkRules, on_gone: Gone) -> None:
        self.peer = peer
        self._streams, self._rules, self._on_gone = streams, rules, on_gone
        self._queue: deque[tuple[AnyMessage, Tensor | None]] = deque(maxlen=QUEUE_MESSAGES_MAX)
        self._is_filled = asyncio.Event()
        self._is_broken = False
        self.is_idle = asyncio.Event()
        self.is_idle.set()

    def put(self, message: AnyMessage, tensor: Tensor | None) -> None:
        self._queue.append((message, tensor))
        self._is_filled.set()
        self.is_idle.clear()

    async def run(self) -> None:
        """Send what is queued until the link has been idle for long, or cannot be opened."""
        try:
            while await self._serve_one_stream():
                pass
        except PeerRefusedError as error:
            logger.debug("link to %s: %s", self.peer, error)
            self._on_gone(self.peer)
        except NetworkError as error:
            logger.debug("link to %s: %s", self.peer, error)
        finally:
            self._queue.clear()
            self.is_idle.set()

    async def _serve_one_stream(self) -> bool:
        """Open a stream and use it until it breaks (True: open another) or idles out (False)."""
        reader, writer = await self._streams.open_stream(self.peer, self._rules.protocol, OPEN_TIMEOUT_S)
        self._is_broken = False
        try:
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self._watch(reader))
                is_to_reopen = await self._use(writer)
                watch.cancel()
            return is_to_reopen
        finally:
            writer.close()

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """The other side never writes: whatever the reader says means that the stream is over."""
        with contextlib.suppress(OSError):
            await reader.read(1)
        self._is_broken = True
        self._is_filled.set()

    async def _use(self, writer: asyncio.StreamWriter) -> bool:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                await write_frame(writer, Hello(PROTOCOL_VERSION, self._rules.manifest_digest))
            while not self._is_broken:
                if not self._queue and not await self._wait_for_work():
                    return False
                await self._send_queued(writer)
        except (OSError, TimeoutError) as error:
            logger.debug("link to %s broke: %s", self.peer, error)
        return True

    async def _wait_for_work(self) -> bool:
        """False: nothing came for so long that the link is not needed."""
        self._is_filled.clear()
        self.is_idle.set()
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                await self._is_filled.wait()
        except TimeoutError:
            return False
        return True

    async def _send_queued(self, writer: asyncio.StreamWriter) -> None:
        """A message leaves the queue once it is written: one that broke with the stream is sent again."""
        while self._queue and not self._is_broken:
            message, tensor = self._queue[0]
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await write_frame(writer, message, tensor)
            if self._queue:
                self._queue.popleft()


class Network:
    """All links of a node."""

    def __init__(self, streams: Streams, rules: LinkRules, deliver: Deliver, on_gone: Gone) -> None:
        self._streams, self._rules = streams, rules
        self._deliver, self._on_gone = deliver, on_gone
        self._tasks: asyncio.TaskGroup | None = None
        self._links: dict[tuple[PeerId, int], tuple[OutLink, asyncio.Task[None]]] = {}
        """By peer and number; 0 is control."""
        self._tensors_sent: Counter[PeerId] = Counter()
        self._last_closed: PeerId | None = None

    @property
    def protocol(self) -> str:
        """The stream protocol that `receive` must be served under."""
        return self._rules.protocol

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """From now on links run as tasks of this group."""
        self._tasks = tasks

    def send(self, peer: PeerId, message: AnyMessage, tensor: Tensor | None) -> None:
        """Queue a message; the link is opened if need be."""
        if self._tasks is None:
            return
        key = (peer, self._number(peer, message))
        link, task = self._links.get(key, (None, None))
        if link is None or task is None or task.done():
            link = OutLink(peer, self._streams, self._rules, self._on_gone)
            link.put(message, tensor)
            self._links[key] = (link, self._tasks.create_task(link.run(), name=f"link {peer[-8:]}"))
        else:
            link.put(message, tensor)

    def _number(self, peer: PeerId, message: AnyMessage) -> int:
        """Of the link that the message takes."""
        if not isinstance(message, Forward | Backward):
            return 0
        self._tensors_sent[peer] += 1
        return 1 + self._tensors_sent[peer] % DATA_LINKS

    def close(self, peer: PeerId) -> None:
        """Close the links to a peer and drop what is queued for it.

        If that follows from what the peer just said, the stream that it said it on ends too.
        """
        self._last_closed = peer
        for key in [key for key in self._links if key[0] == peer]:
            self._links.pop(key)[1].cancel()
        self._tensors_sent.pop(peer, None)

    async def flush(self, timeout_s: float) -> None:
        """Wait until everything queued is sent, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for link, _ in list(self._links.values()):
                    await link.is_idle.wait()

    def stop(self) -> None:
        for _, task in self._links.values():
            task.cancel()
        self._links.clear()
        self._tasks = None

    async def receive(self, peer: PeerId, reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        """The receiving side of one link: check the hello, then deliver until the stream ends.

        A peer that breaks a rule loses this stream, nothing else.
        """
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                self._check_hello(await read_message(reader))
            while True:
                async with asyncio.timeout(2 * IDLE_TIMEOUT_S):
                    frame = await read_link_frame(reader, self._rules.activation, WRITE_TIMEOUT_S)
                if frame is None:
                    return
                self._last_closed = None
                self._deliver(peer, *frame)
                if self._last_closed == peer:
                    return
        except RemoteProtocolError as error:
            logger.warning("peer %s broke the protocol, its link is closed: %s", peer, error)
        except (NetworkError, TimeoutError, OSError) as error:
            logger.debug("link from %s ended: %s", peer, error)

    def _check_hello(self, hello: AnyMessage | None) -> None:
        if hello is None:
            raise NetworkError("it ended before its hello")
        if not isinstance(hello, Hello):
            raise RemoteProtocolError("a link did not begin with a hello")
        if hello.protocol_version != PROTOCOL_VERSION:
            raise RemoteProtocolError(
                f"it speaks protocol version {hello.protocol_version}, this node {PROTOCOL_VERSION}"
            )
        if hello.manifest_digest != self._rules.manifest_digest:
            raise RemoteProtocolError("it is of another run: its manifest has another digest")
