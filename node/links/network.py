"""Links: how messages get to peers.

A link is a one-way stream that its sender opens (node/links/link.py). To each peer there is one for *control*, so that
a heartbeat never queues behind a tensor, and there are `DATA_LINKS` that take activations and gradients in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter

from torch import Tensor

from understudy.node.links.framing import read_link_frame, read_message
from understudy.node.links.link import HELLO_TIMEOUT_S, IDLE_TIMEOUT_S, LinkRules, Listener, OutLink, Streams
from understudy.protocol.errors import NetworkError, RemoteProtocolError
from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import PROTOCOL_VERSION
from understudy.protocol.wire.messages import (
    AnyMessage,
    Backward,
    Filler,
    Forward,
    Hello,
    LeaseRelease,
    LeaseRequest,
)
from understudy.protocol.wire.rates import Budgets, Quiet, TokenBucket

logger = logging.getLogger(__name__)

DATA_LINKS = 4
"""libp2p lets a stream have 256 KiB on its way until the reader's word is back, which waits behind other tensors where
a line is slow: with one stream to a peer, lines of 100 Mbit/s were idle for a fifth of a step (docs/experiments.md)."""
WARM_EVERY_S = 0.15
"""TCP that paused for longer than its retransmission timeout, which is a round trip and 0.2 s at least, begins again
with ten packets. On lines of 100 Mbit/s and 100 ms a pipeline of plain sockets took 14.8 s a step so, and 6.6 s where
a few bytes went in every pause (docs/performance.md)."""
WARM_FOR_S = 10.0
"""After its last tensor a line is left to cool."""
OBSERVERS_SAY = (LeaseRequest, LeaseRelease)
"""All that whoever may only look has to say to the owners of stages."""
MESSAGES_PER_S, MESSAGES_BURST = 100.0, 500
"""What is taken from one peer on all of its streams; more is not read until later."""
OWNER_MESSAGES_PER_S, OWNER_MESSAGES_BURST = 2000.0, 4000
"""What is taken besides from a peer that owns a stage: its tensors are as many as it has microbatches."""


class Network:
    """All links of a node."""

    def __init__(self, streams: Streams, rules: LinkRules, listener: Listener) -> None:
        self._streams, self._rules, self._listener = streams, rules, listener
        self._tasks: asyncio.TaskGroup | None = None
        self._links: dict[tuple[PeerId, int], tuple[OutLink, asyncio.Task[None]]] = {}
        """By peer and number; 0 is control."""
        self._tensors_sent: Counter[PeerId] = Counter()
        self._tensor_at: dict[PeerId, float] = {}
        self._last_closed: PeerId | None = None
        self._budgets = Budgets(MESSAGES_PER_S, MESSAGES_BURST)
        self._owner_budgets = Budgets(OWNER_MESSAGES_PER_S, OWNER_MESSAGES_BURST)
        self._quiet = Quiet()

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
            link = self._open(key)
        link.put(message, tensor)

    def _open(self, key: tuple[PeerId, int]) -> OutLink:
        assert self._tasks is not None
        link = OutLink(key[0], self._streams, self._rules, self._listener)
        task = self._tasks.create_task(link.run(), name=f"link {link.peer[-8:]}")
        task.add_done_callback(lambda _: link.end())
        self._links[key] = (link, task)
        return link

    def _number(self, peer: PeerId, message: AnyMessage) -> int:
        """Of the link that the message takes."""
        if not isinstance(message, Forward | Backward):
            return 0
        self._tensors_sent[peer] += 1
        self._tensor_at[peer] = asyncio.get_running_loop().time()
        return 1 + self._tensors_sent[peer] % DATA_LINKS

    async def keep_warm(self) -> None:
        """In pauses between tensors send a few bytes, so that the next one finds its line as fast as the last left it.

        Never returns.
        """
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WARM_EVERY_S)
            now = loop.time()
            self._tensor_at = {peer: at for peer, at in self._tensor_at.items() if now - at < WARM_FOR_S}
            for peer in [peer for peer, at in self._tensor_at.items() if now - at >= WARM_EVERY_S]:
                self._fill(peer)

    def _fill(self, peer: PeerId) -> None:
        """A pause is no reason to dial, and a link that has something to send does not pause."""
        link, task = self._links.get((peer, 0), (None, None))
        if link is not None and task is not None and not task.done() and link.is_idle.is_set():
            link.put(Filler(), None)

    def linked(self) -> frozenset[PeerId]:
        """The peers that we have an open link to."""
        return frozenset(peer for (peer, _), (_, task) in self._links.items() if not task.done())

    def reopen(self, peer: PeerId) -> None:
        """Open the streams to a peer again, each when its message is out: there is a better connection by now."""
        for (other, _), (link, _) in self._links.items():
            if other == peer:
                link.reopen()

    def close(self, peer: PeerId) -> None:
        """Close the links to a peer and drop what is queued for it.

        If that follows from what the peer just said, the stream that it said it on ends too.
        """
        self._last_closed = peer
        for key in [key for key in self._links if key[0] == peer]:
            self._links.pop(key)[1].cancel()
        self._tensors_sent.pop(peer, None)
        self._tensor_at.pop(peer, None)

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

        A peer that breaks a rule loses this stream, nothing else. Who says too much waits: what it sends is not read.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello = self._checked(await read_message(reader))
            self._listener.on_contact(peer, hello.contact)
            heard = OBSERVERS_SAY if self._listener.is_observer(peer) else None
            budget = self._budgets.of(peer, loop.time())
            while True:
                frame = await read_link_frame(reader, self._rules.activation, 2 * IDLE_TIMEOUT_S)
                if frame is None:
                    return
                if not budget.may_take(now := loop.time()):
                    await self._wait(peer, budget, now)
                if isinstance(frame[0], Filler):
                    continue
                if heard is not None and not isinstance(frame[0], heard):
                    raise RemoteProtocolError(f"an observer sent a {type(frame[0]).__name__}")
                self._last_closed = None
                self._listener.deliver(peer, *frame)
                if self._last_closed == peer:
                    return
        except RemoteProtocolError as error:
            self._complain(peer, error, loop.time())
        except (NetworkError, TimeoutError, OSError) as error:
            logger.debug("link from %s ended: %s", peer, error)

    async def _wait(self, peer: PeerId, budget: TokenBucket, now: float) -> None:
        """Read on when the peer may say more. An owner of a stage may say much."""
        larger = self._owner_budgets.of(peer, now) if self._listener.is_owner(peer) else budget
        wait_s = larger.take(now)
        if wait_s:
            await asyncio.sleep(wait_s)

    def _complain(self, peer: PeerId, error: RemoteProtocolError, now: float) -> None:
        """Once in a while: a peer must not fill our disk with what we say of it."""
        unsaid = self._quiet.admit(peer, "protocol", now)
        if unsaid is not None:
            more = f" ({unsaid} such lines before this one were left out)" if unsaid else ""
            logger.warning("peer %s broke the protocol, its link is closed: %s%s", peer, error, more)

    def _checked(self, hello: AnyMessage | None) -> Hello:
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
        return hello
