"""Raw byte streams between peers, and what a failed one says about the peer.

libp2p opens a stream to a connected peer without a round trip, so "opened" proves nothing. Here
the serving *process* writes one byte before anything else, and `StreamHost.open` waits for it: a
stream that is open was accepted by a peer that is running.

A stream whose remote process dies later just ends. Put lengths and an explicit end marker into
whatever is sent, and treat an early end as a failure. Never half-close (``write_eof``): p2pd then
drops what is still coming back (measured: 32 KiB of 300 KiB arrived). Writing and then closing
delivers everything.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.node.p2p.addresses import is_loopback
from understudy.node.p2p.control import (
    STREAM_BUFFER_BYTES,
    DaemonRefusal,
    ask,
    connect_request,
    disconnect_request,
    open_request,
    read_stream_info,
    serve_request,
)
from understudy.node.p2p.daemon import SOCKET_FOLDER, Daemon
from understudy.node.p2p.dial import dial
from understudy.node.p2p.handshake import Gate, check, check_served, show
from understudy.node.p2p.zero_copy import start_unix_streams
from understudy.protocol.errors import (
    LocalProtocolError,
    NetworkError,
    PeerRefusedError,
    RemoteProtocolError,
    SettingsError,
)
from understudy.protocol.ids import PeerId
from understudy.protocol.wire.rates import Budgets, Quiet

logger = logging.getLogger(__name__)

ACCEPTED = b"\x55"
"""What the serving process writes first on every stream."""
STREAMS_PER_PEER_MAX = 64
STREAMS_PER_S, STREAMS_BURST = 50.0, 256
"""Streams that one peer may open to us; more are closed at once. To accept one costs about a millisecond."""
CONTROL_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0
OPEN_TRIES = 3
OPEN_AGAIN_AFTER_S = 0.03
"""The remote p2pd outlives its process by milliseconds; by then it refuses."""

StreamCallback = Callable[[PeerId, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_DIALLED = re.compile(r"^\s*\* \[(\S+)\] (.*)$", re.MULTILINE)
"""One line of p2pd's dial error: address and reason."""
_BROKE = "connection failed"
"""p2pd had a connection, and lost it while the stream was being opened: that says nothing about the peer yet."""
_GONE = ("connection refused", "connection reset", "no such file")
_UNROUTABLE = ("no route to host", "network is unreachable", "cannot assign requested address")


@dataclass(frozen=True, slots=True)
class Way:
    """A peer, and what we know of how to get to it."""

    peer: PeerId
    addresses: tuple[str, ...] = ()
    """Dialled unless there is a connection already. None: libp2p asks the peers that it knows."""
    is_private: bool = False
    """Nobody can dial it directly: who refuses a connection at its addresses is somebody else."""


class StreamHost:
    """Opens streams to peers and serves the streams that peers open to us."""

    def __init__(self, daemon: Daemon, gate: Gate | None = None) -> None:
        """``gate``: who may open streams of the run, and serve them; None: anybody."""
        self._gate = gate
        self._control_path = daemon.control_path
        self._fail = daemon.fail
        self._listen_path = SOCKET_FOLDER / f"hivemind-streams-{secrets.token_urlsafe(8)}.sock"
        self._server: asyncio.AbstractServer | None = None
        self._callbacks: dict[str, StreamCallback] = {}
        self._serving: dict[asyncio.Task[Any], PeerId] = {}
        self._opened, self._quiet = Budgets(STREAMS_PER_S, STREAMS_BURST), Quiet()

    async def open(
        self, way: Way, protocol: str, timeout_s: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """See `P2PNode.open_stream` (node/dht/p2p_node.py)."""
        peer = way.peer
        requests = [open_request(peer, protocol, timeout_s)]
        if way.addresses:
            requests.insert(0, connect_request(peer, way.addresses, timeout_s))
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(OPEN_TRIES):
                    ends = await self._try_to_open(way, requests, self._gate_of(protocol))
                    if ends is not None:
                        return ends
                    await asyncio.sleep(OPEN_AGAIN_AFTER_S)
        except TimeoutError as error:
            raise NetworkError(f"peer {peer} did not answer within {timeout_s:g} s") from error
        raise NetworkError(
            f"peer {peer} closes every stream at once: it is shutting down, has too many of ours, or does not let us in"
        )

    def _gate_of(self, protocol: str) -> Gate | None:
        return self._gate if self._gate is not None and self._gate.guards(protocol) else None

    async def _try_to_open(
        self, way: Way, requests: Sequence[bytes], gate: Gate | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """None: the peer closed the stream at once, or the connection broke under it. The next try dials anew."""
        *before, request = requests
        try:
            for dial_first in before:
                _, done = await ask(self._control_path, dial_first)
                done.close()
            reader, writer = await ask(self._control_path, request)
        except DaemonRefusal as refusal:
            if str(refusal) == _BROKE:
                return None
            raise await explain(way.peer, str(refusal), may_be_gone=not way.is_private) from refusal
        if gate is not None:
            show(writer, gate)
        if not await _is_accepted(reader, writer):
            return None
        if gate is not None:
            await check_served(way.peer, reader, writer, gate)
        return reader, writer

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> None:
        """See `P2PNode.connect` (node/dht/p2p_node.py)."""
        try:
            async with asyncio.timeout(timeout_s):
                _, writer = await self._ask(peer, connect_request(peer, addresses, timeout_s))
        except TimeoutError as error:
            raise NetworkError(f"peer {peer} could not be reached within {timeout_s:g} s") from error
        writer.close()

    async def disconnect(self, peer: PeerId, timeout_s: float) -> None:
        """End every connection to the peer, with the streams on it. Raises `NetworkError`."""
        try:
            async with asyncio.timeout(timeout_s):
                _, writer = await self._ask(peer, disconnect_request(peer))
        except TimeoutError as error:
            raise NetworkError(f"libp2p did not end the connection to {peer} within {timeout_s:g} s") from error
        writer.close()

    def end(self, peer: PeerId) -> None:
        """End the streams that the peer opened to us."""
        for task in [task for task, other in self._serving.items() if other == peer]:
            task.cancel()

    async def serve(self, protocol: str, callback: StreamCallback) -> None:
        """See `P2PNode.serve_streams` (node/dht/p2p_node.py)."""
        if protocol in self._callbacks:
            raise LocalProtocolError(f"protocol {protocol} is served already")
        self._callbacks[protocol] = callback
        try:
            async with asyncio.timeout(CONTROL_TIMEOUT_S):
                if self._server is None:
                    self._server = await start_unix_streams(self._accept, self._listen_path, STREAM_BUFFER_BYTES)
                _, writer = await ask(self._control_path, serve_request(self._listen_path, protocol))
        except (TimeoutError, DaemonRefusal) as error:
            raise NetworkError("the libp2p daemon does not accept streams: start the node again") from error
        writer.close()

    async def close(self) -> None:
        """Stop accepting, end all served streams, remove the socket."""
        try:
            if self._server is not None:
                self._server.close()
            for task in self._serving:
                task.cancel()
            if self._serving:
                await asyncio.wait(list(self._serving), timeout=CLOSE_TIMEOUT_S)
        finally:
            self._listen_path.unlink(missing_ok=True)

    async def _ask(self, peer: PeerId, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await ask(self._control_path, request)
        except DaemonRefusal as refusal:
            raise await explain(peer, str(refusal)) from refusal

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One incoming stream, in the task that asyncio's server made for it: its boundary.

        A rule that we broke ourselves ends whoever watches the daemon; any other bug costs the stream, or a peer could
        end us with what our decoding did not expect.
        """
        task = asyncio.current_task()
        if task is None:
            raise LocalProtocolError("a stream was accepted outside of a task")
        try:
            async with asyncio.timeout(CONTROL_TIMEOUT_S):
                stream = await read_stream_info(reader)
            self._serving[task] = stream.peer
            if Counter(self._serving.values())[stream.peer] > STREAMS_PER_PEER_MAX:
                raise NetworkError(f"peer {stream.peer} has more than {STREAMS_PER_PEER_MAX} streams open")
            if not self._opened.of(stream.peer, now := asyncio.get_running_loop().time()).may_take(now):
                raise NetworkError(f"peer {stream.peer} opens more than {STREAMS_PER_S:g} streams a second")
            if (gate := self._gate_of(stream.protocol)) is not None:
                async with asyncio.timeout(CONTROL_TIMEOUT_S):
                    await check(reader, stream.peer, gate)
            writer.write(ACCEPTED)
            if gate is not None:
                show(writer, gate)
            await self._callbacks[stream.protocol](stream.peer, reader, writer)
        except (NetworkError, RemoteProtocolError, OSError, EOFError) as error:
            logger.debug("a stream ended: %s", error)
        except asyncio.CancelledError:
            writer.transport.abort()  # only `close` and `end` cancel, and nobody else waits for this task
        except LocalProtocolError as error:
            self._fail(error)
        except Exception:
            if self._quiet.admit(self._serving.get(task, ""), "bug", asyncio.get_running_loop().time()) is not None:
                logger.exception("the callback of a stream failed; the stream is closed")
        finally:
            self._serving.pop(task, None)
            writer.close()


async def _is_accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Wait for the peer's first byte; closes the stream unless it came."""
    is_accepted = False
    try:
        is_accepted = await reader.read(1) == ACCEPTED
    except OSError:
        pass  # reset: the same as an early end
    finally:
        if not is_accepted:
            writer.transport.abort()
    return is_accepted


async def explain(peer: PeerId, reason: str, *, may_be_gone: bool = True) -> NetworkError:
    """What p2pd's refusal to dial means: is the peer gone, or can it not be reached from here?

    Gone means that its machine said so: an address of it was refused, and no address was silent. ``may_be_gone`` False:
    nobody dials its machine, so whoever refuses is another one.
    After a failed dial p2pd only says "dial backoff" for 5 s, so those addresses are dialled here.
    """
    if "protocols not supported" in reason:
        return PeerRefusedError(f"peer {peer} is there, but does not serve this protocol")
    outcomes: dict[str, str] = dict(_DIALLED.findall(reason))
    for address, text in outcomes.items():
        if "backoff" in text:
            outcomes[address] = await _dial_again(address)
    if may_be_gone and _is_gone(outcomes):
        return PeerRefusedError(f"peer {peer} is gone: its machine refuses the connection")
    if "not found" in reason or "no addresses" in reason or "no good addresses" in reason:
        return NetworkError(f"no address of peer {peer} is known: it has left, or its neighbours have")
    told = "; ".join(f"{address}: {text}" for address, text in outcomes.items()) or reason.replace("\n", " ")
    return NetworkError(f"peer {peer} cannot be reached: {told}")


async def _dial_again(address: str) -> str:
    try:
        return await dial(address) or "libp2p waits before it dials again"
    except SettingsError:
        return "libp2p waits before it dials again"


def _is_here(address: str) -> bool:
    """On this machine; not so what is no address of a machine, as peers may say anything."""
    try:
        return is_loopback(address)
    except SettingsError:
        return False


def _is_gone(outcomes: dict[str, str]) -> bool:
    """A peer elsewhere also lists its loopback address, where a refusal means nothing."""
    elsewhere = {address: text for address, text in outcomes.items() if not _is_here(address)}
    answers = [text for text in (elsewhere or outcomes).values() if not any(sign in text for sign in _UNROUTABLE)]
    return bool(answers) and all(any(sign in text for sign in _GONE) for text in answers)
