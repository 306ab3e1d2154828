"""One link: its queue, and the task that empties it into streams, one after the other.

A link that breaks is re-dialled at once: a refusal means that the peer is gone, and the core is told. What was queued
on a link that cannot be opened is lost. A control message is said again by the protocol when it matters; of a tensor
the core is told, or its microbatch would wait for its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from understudy.node.links.framing import write_frame
from understudy.protocol.errors import NetworkError, PeerRefusedError
from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import PROTOCOL_VERSION
from understudy.protocol.wire.contact import Contact
from understudy.protocol.wire.messages import AnyMessage, Backward, DataMessage, Forward, Hello
from understudy.protocol.wire.tensors import TensorHeader

logger = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 4.0
HELLO_TIMEOUT_S = 5.0
IDLE_TIMEOUT_S = 60.0
"""A link without traffic is closed by its sender; its receiver waits twice as long."""
QUEUE_MESSAGES_MAX = 4096
"""Messages queued to one peer at most; the oldest is dropped beyond it."""
TRIES_MAX = 3
"""Streams on which a message is written at most: one that is too much for the line must not be sent for ever."""
UNSURE_BYTES = 2 << 20
"""What was written last may be lost with its stream: so much may lie in buffers, ours, p2pd's and the system's."""
UNSURE_S = 10.0
"""What was written longer ago than this has left them."""


class Streams(Protocol):
    """What links need of a `P2PNode` (node/dht/p2p_node.py)."""

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
Undelivered = Callable[[PeerId, DataMessage, Tensor | None], None]
"""Told of a tensor that did not get there. Called while others act: it must not act itself."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told what happens on the links, and asked what we say of ourselves."""

    deliver: Deliver
    on_gone: Gone = lambda peer: None
    on_undelivered: Undelivered = lambda peer, message, tensor: None
    on_contact: Callable[[PeerId, Contact], None] = lambda peer, contact: None
    """Told where a peer says that it can be dialled."""
    on_failed: Callable[[PeerId, str], None] = lambda peer, reason: None
    """Told of a link that could not be opened, and why; its peer may live."""
    contact: Callable[[], Contact] = Contact
    """Where we can be dialled."""
    is_observer: Callable[[PeerId], bool] = lambda peer: False
    """Asked at the beginning of a link, whether its peer may only export."""
    is_owner: Callable[[PeerId], bool] = lambda peer: False
    """Whether the peer owns a stage, as far as we know."""


@dataclass(slots=True)
class Outgoing:
    """A message on its way out."""

    message: AnyMessage
    tensor: Tensor | None
    tries: int = 0
    written_at: float = 0.0

    @property
    def frame_bytes(self) -> int:
        """About."""
        return 0 if self.tensor is None else self.tensor.nbytes


class OutLink:
    """The sending side of one link: a queue and the task that empties it."""

    def __init__(self, peer: PeerId, streams: Streams, rules: LinkRules, listener: Listener) -> None:
        self.peer = peer
        self._streams, self._rules, self._listener = streams, rules, listener
        self._queue: deque[Outgoing] = deque()
        self._sending: Outgoing | None = None
        """Not in the queue any more: whatever happens to that, it is sent, or taken back."""
        self._unsure: deque[Outgoing] = deque()
        """Tensors that were written last."""
        self._loop = asyncio.get_running_loop()
        self._is_filled = asyncio.Event()
        self._is_broken = False
        self._is_outdated = False
        """There is a better connection to the peer than that of the stream."""
        self.is_idle = asyncio.Event()
        self.is_idle.set()

    def put(self, message: AnyMessage, tensor: Tensor | None) -> None:
        self._queue.append(Outgoing(message, tensor))
        if len(self._queue) > QUEUE_MESSAGES_MAX:
            self._lose(self._queue.popleft())
        self._is_filled.set()
        self.is_idle.clear()

    def reopen(self) -> None:
        """Go on with another stream: what is written already arrives on the present one."""
        self._is_outdated = True
        self._is_filled.set()

    async def run(self) -> None:
        """Send what is queued until the link has been idle for long, or cannot be opened."""
        try:
            while await self._serve_one_stream() or self._queue:  # something may have come while it was closed
                pass
        except PeerRefusedError as error:
            logger.debug("link to %s: %s", self.peer, error)
            self._listener.on_gone(self.peer)
        except NetworkError as error:
            logger.debug("link to %s: %s", self.peer, error)
            self._listener.on_failed(self.peer, str(error))

    def end(self) -> None:
        """Its task is over: what is queued is lost."""
        self._take_back()
        while self._queue:
            self._lose(self._queue.popleft())
        self.is_idle.set()

    def _lose(self, lost: Outgoing) -> None:
        if isinstance(lost.message, Forward | Backward):
            self._listener.on_undelivered(self.peer, lost.message, lost.tensor)

    def _take_back(self) -> None:
        """A stream ended: what may be lost with it is sent again, first of all. Who has it drops it as a repetition.

        What was written whole before, and too often now, is not called lost: it may be there.
        """
        now = self._loop.time()
        again = [entry for entry in self._unsure if now - entry.written_at < UNSURE_S and entry.tries < TRIES_MAX]
        if self._sending is not None and self._sending.tries < TRIES_MAX:
            again.append(self._sending)
        elif self._sending is not None:
            self._lose(self._sending)
        self._queue.extendleft(reversed(again))
        if again:
            self.is_idle.clear()
        self._unsure.clear()
        self._sending = None

    async def _serve_one_stream(self) -> bool:
        """Open a stream and use it until it breaks (True: open another) or idles out (False)."""
        self._is_outdated = False  # from now on: a better connection may come while the stream is opened
        reader, writer = await self._streams.open_stream(self.peer, self._rules.protocol, OPEN_TIMEOUT_S)
        self._is_broken = False
        try:
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self._watch(reader))
                is_to_reopen = await self._use(writer)
                watch.cancel()
            is_whole = self._is_outdated and not self._is_broken and self._sending is None
            if is_to_reopen and not is_whole:
                self._take_back()
            return is_to_reopen
        finally:
            writer.close()

    @property
    def _is_over(self) -> bool:
        return self._is_broken or self._is_outdated

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """The other side never writes: whatever the reader says means that the stream is over."""
        with contextlib.suppress(OSError):
            await reader.read(1)
        self._is_broken = True
        self._is_filled.set()

    async def _use(self, writer: asyncio.StreamWriter) -> bool:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                await write_frame(writer, self._hello())
            while not self._is_over:
                if not self._queue and not await self._wait_for_work():
                    return False
                await self._send_queued(writer)
        except (OSError, TimeoutError) as error:
            logger.debug("link to %s broke: %s", self.peer, error)
        return True

    def _hello(self) -> Hello:
        return Hello(PROTOCOL_VERSION, self._rules.manifest_digest, self._listener.contact())

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
        """A message that broke with the stream is sent again."""
        while self._queue and not self._is_over:
            self._sending = entry = self._queue.popleft()
            entry.tries += 1
            await write_frame(writer, entry.message, entry.tensor)
            self._sending = None
            if entry.tensor is not None:
                self._note_written(entry)

    def _note_written(self, entry: Outgoing) -> None:
        """Remember it as long as it may be lost with the stream: until enough bytes are written behind it."""
        entry.written_at = self._loop.time()
        self._unsure.append(entry)
        while sum(later.frame_bytes for later in itertools.islice(self._unsure, 1, None)) > UNSURE_BYTES:
            self._unsure.popleft()
