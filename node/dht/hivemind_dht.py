"""The boundary to hivemind: one p2pd, one DHT node. Nobody else imports hivemind.

What is wrapped, and why (hivemind 1.1.12):

- p2pd is started by `node.daemon`, not by ``P2P.create``; hivemind connects to it.
- Streams go through node/p2p/streams.py, straight over p2pd's control socket.
- The DHT refuses records that do not carry their owner's key, on every honest peer: an unsigned
  plain value with a later expiration would otherwise shut a key for everybody.
- Its package is entered without its ``__init__``, which would import its averager, optimizer and layers, and scipy
  with them: a fifth of the processor time that a node takes to start.
- Lookups are our own (`node.lookup`): they ask every peer they know of and never answer from a cache,
  because a stale answer here means two owners of one stage.

Every method has a deadline and raises errors of `protocol.errors` only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

import msgspec

from understudy.node.dht import store as storing
from understudy.node.dht.config import SwarmConfig
from understudy.node.dht.lookup import Entries, look_up
from understudy.node.dht.reconnect import MEET_AGAIN_EVERY_S, Reconnector
from understudy.node.dht.signing import (
    RECORD_VALUE_BYTES_MAX,
    SIGNATURE_BYTES_MAX,
    SUBKEY_BYTES_MAX,
    StoredRecord,
    is_owned,
    owned_records,
)
from understudy.node.p2p.addresses import check_listen_port
from understudy.node.p2p.daemon import Daemon, sweep_stale_sockets
from understudy.node.p2p.dial import check_identity_is_free, find_reachable
from understudy.node.p2p.identity import Identity
from understudy.node.p2p.streams import StreamCallback, StreamHost
from understudy.protocol.errors import ClockSkewError, LocalProtocolError, NetworkError
from understudy.protocol.ids import PeerId

_hivemind = find_spec("hivemind")
if _hivemind is not None:
    sys.modules.setdefault("hivemind", module_from_spec(_hivemind))

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # hivemind's and torch's own deprecations
    from hivemind.dht.crypto import RSASignatureValidator
    from hivemind.dht.node import DHTNode
    from hivemind.dht.protocol import ValidationError
    from hivemind.dht.validation import DHTRecord
    from hivemind.p2p import P2P
    from hivemind.p2p.p2p_daemon_bindings.control import P2PDaemonError
    from hivemind.proto.dht_pb2 import PingRequest
    from hivemind.utils import get_dht_time
    from hivemind.utils.crypto import RSAPrivateKey
    from hivemind.utils.logging import use_hivemind_log_handler
    from hivemind.utils.multiaddr import Multiaddr

__all__ = ["P2PD", "P2PNode", "StoredRecord", "SwarmConfig", "dht_time", "quiet_libraries", "sweep_stale_sockets"]

DAEMON_TIMEOUT_S = 30.0
JOIN_TIMEOUT_S = 15.0
JOIN_RPC_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 3.0
EXIT_NOTICED_S = 1.0
"""Within this time of its last word we know that p2pd has exited, if it has."""
DHT_TIMEOUT_S = 5.0
RPC_TIMEOUT_S = 1.0
"""A peer of the DHT silent for this long is passed over, once: then it is on hivemind's blacklist."""
REPLICAS = 5
STORE_WORKERS = 16
"""Peers that are asked at a time who is nearest to a key."""
PEERS_ASKED_MAX = 16
"""Peers that are asked the time."""
KEYS_STORED_MAX = 4096
"""Keys this peer keeps for the DHT; the ones that expire first go first."""

dht_time: Callable[[], float] = get_dht_time


P2PD = Path(str(resources.files("hivemind.hivemind_cli"))) / "p2pd"


def quiet_libraries(*, is_verbose: bool) -> None:
    """The libraries' messages go to the root logger, and only when verbose."""
    use_hivemind_log_handler("nowhere")
    logging.getLogger("hivemind").setLevel(logging.INFO if is_verbose else logging.CRITICAL)
    logging.getLogger("multiaddr").setLevel(logging.WARNING)


class _IdentityKey(RSAPrivateKey):  # type: ignore[misc]
    """The identity's key where hivemind would make up one per process."""

    def __init__(self, identity: Identity) -> None:
        self._private_key = identity.private_key


JUDGED_MAX = 512
"""Records whose signature is not verified again when they are read again; at most 17 MB of them."""


class _OwnedRecordsOnly(RSASignatureValidator):  # type: ignore[misc]
    """Refuses, on storing and on reading, every record that nobody signed or that is oversized.

    It must depend on nothing but the record: an answer with one refused record is dropped whole. So a record that
    comes again, and every read brings the same ones from several peers, need not be verified again.
    """

    def __init__(self, key: _IdentityKey) -> None:
        super().__init__(key)
        self.validate = lru_cache(JUDGED_MAX)(self._judge)

    def _judge(self, record: DHTRecord) -> bool:
        if not math.isfinite(record.expiration_time) or not is_owned(record.subkey):
            return False
        if len(record.value) > RECORD_VALUE_BYTES_MAX + SIGNATURE_BYTES_MAX:
            return False
        if len(record.subkey) > SUBKEY_BYTES_MAX + SIGNATURE_BYTES_MAX:
            return False
        try:
            return bool(super().validate(record))
        except ValueError:  # the key in the tag is not a key
            return False

    def opened(self, entries: Entries) -> Entries:
        """What was signed, without the signatures; a value that is not bytes is left out."""
        opened: Entries = {}
        for subkey, (value, expiration) in entries.items():
            packed = self.strip_value(DHTRecord(b"", subkey, value, expiration))
            with contextlib.suppress(msgspec.DecodeError):
                opened[subkey] = msgspec.msgpack.decode(packed, type=bytes), expiration
        return opened

    def tagged(self, subkey: str) -> bytes:
        return subkey.encode() + bytes(self.local_public_key)


class P2PNode:
    """This peer's presence in the swarm. Open it with ``async with P2PNode.open(...)``."""

    def __init__(self, identity: Identity, daemon: Daemon, *, is_reader: bool = False) -> None:
        self._is_reader = is_reader
        self._validator = _OwnedRecordsOnly(_IdentityKey(identity))
        self._daemon = daemon
        self._streams = StreamHost(daemon)
        self._connecting: asyncio.Task[Any] | None = None
        self._p2p: Any = None
        self._dht: Any = None
        self.peer_id = identity.peer_id
        self.addresses: tuple[str, ...] = ()
        """Where other peers can dial this one, each with /p2p/<PeerID>."""

    @classmethod
    @asynccontextmanager
    async def open(cls, config: SwarmConfig, identity: Identity) -> AsyncIterator[P2PNode]:
        """Join the swarm of ``config.initial_peers``, or found one. Leaves nothing behind at exit.

        Raises `SettingsError` and `NetworkError`, each saying what to do.
        """
        if identity.path is None and not config.is_reader:
            raise LocalProtocolError("p2pd reads the identity from a file: use Identity.load_or_create")
        sweep_stale_sockets()
        for address in config.host_maddrs:
            check_listen_port(address)
        reachable = await find_reachable(config.initial_peers, config.join_patience_s)
        if reachable and not identity.is_new:
            await check_identity_is_free(P2PD, identity, reachable)
        daemon = await Daemon.start(config.daemon_settings(P2PD, identity, reachable), DAEMON_TIMEOUT_S)
        p2p = cls(identity, daemon, is_reader=config.is_reader)
        try:
            await p2p._join(reachable)
            yield p2p
        finally:
            await p2p._close()

    async def _join(self, initial_peers: Sequence[str]) -> None:
        try:
            with _as_network_error("the seed was reached but does not answer: try again, it may be busy"):
                async with asyncio.timeout(JOIN_TIMEOUT_S):
                    await self._connect()
                    self.addresses = tuple(str(address) for address in await self._p2p.get_visible_maddrs())
                    self._dht = await self._create_dht(initial_peers)
        except ValidationError as error:
            raise _validation_error(str(error)) from error
        self._dht.protocol.wait_timeout = RPC_TIMEOUT_S
        self._dht.protocol.storage.maxsize = KEYS_STORED_MAX
        storing.wrap_calls(self._dht)

    async def _connect(self) -> None:
        """A task of its own, which `_close` waits for: hivemind, when cancelled, does not close what it has opened."""
        self._connecting = asyncio.create_task(P2P.replicate(Multiaddr(f"/unix{self._daemon.control_path}")))
        self._p2p = await asyncio.shield(self._connecting)
        control = self._p2p._client.control
        for task in (control._read_task, control._write_task):
            task.add_done_callback(self._connection_ended)

    def _connection_ended(self, task: asyncio.Task[Any]) -> None:
        """hivemind never looks how the tasks of its connection to p2pd end, nor notices that they did.

        p2pd may have exited, as it does when the connection closes: its exit status says more, and comes at once.
        """
        if task.cancelled():  # by `_close`
            return
        reason = task.exception() or "it was closed"
        error = NetworkError(f"the connection to the libp2p daemon broke ({reason}): start the node again")
        asyncio.get_running_loop().call_later(EXIT_NOTICED_S, self._daemon.fail, error)

    async def _create_dht(self, initial_peers: Sequence[str]) -> Any:
        return await DHTNode.create(
            p2p=self._p2p,
            initial_peers=list(initial_peers),
            client_mode=self._is_reader,
            num_replicas=REPLICAS,
            num_workers=STORE_WORKERS,
            wait_timeout=JOIN_RPC_TIMEOUT_S,
            cache_locally=False,
            cache_on_store=False,
            cache_nearest=0,
            cache_refresh_before_expiry=0,
            reuse_get_requests=False,
            record_validator=self._validator,
        )

    async def _close(self) -> None:
        """Take leave of libp2p and end p2pd, whatever state the start got to."""
        try:
            await self._streams.close()
            with contextlib.suppress(TimeoutError, OSError, P2PDaemonError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    if self._connecting is not None and not self._connecting.done():
                        self._p2p = await self._connecting
                    if self._dht is not None:
                        await self._dht.shutdown()
                    if self._p2p is not None:
                        await self._p2p.shutdown()
        finally:
            await self._daemon.stop()

    async def watch_daemon(self) -> None:
        """Run this as long as the swarm is open; never returns. Raises `NetworkError` when p2pd dies or hangs up,
        and `LocalProtocolError` when a stream's callback broke a rule of ours.

        Meanwhile it looks for DHT peers that fell silent, so that they find each other again.
        """
        reconnector = Reconnector(self._dht)
        while True:
            await reconnector.meet_again()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MEET_AGAIN_EVERY_S):
                    await self._daemon.watch()

    async def store(self, key: str, subkey: str, value: bytes, expiration: float) -> bool:
        """Sign and publish a record until ``expiration`` (DHT time, unix seconds).

        False: nobody took it: a record of ours with the same or a later expiration is
        there already. Every update needs a later expiration than the one before it.
        Raises `NetworkError`.
        """
        if self._is_reader:
            raise LocalProtocolError(f"record {key} was to be stored by a reader")
        if len(value) > RECORD_VALUE_BYTES_MAX or len(subkey.encode()) > SUBKEY_BYTES_MAX:
            raise LocalProtocolError(f"record {key} is too large: {len(value)} bytes, subkey {subkey!r}")
        owned_subkey = self._validator.tagged(subkey)
        with _as_network_error(f"cannot publish {key}: no answer from the DHT"):
            async with asyncio.timeout(DHT_TIMEOUT_S):
                return await storing.store(self._dht, key, owned_subkey, value, float(expiration))

    async def get(self, key: str) -> list[StoredRecord]:
        """All signed records of a key that have not expired. Raises `NetworkError`."""
        return (await self.get_many([key]))[key]

    async def get_many(self, keys: Collection[str]) -> dict[str, list[StoredRecord]]:
        """Like `get`, for several keys with one walk through the DHT."""
        with _as_network_error("cannot read from the DHT: no answer"):
            async with asyncio.timeout(DHT_TIMEOUT_S):
                found = await look_up(self._dht, keys)
        now = dht_time()
        return {key: owned_records(self._validator.opened(entries), now) for key, entries in found.items()}

    async def clock_offsets(self) -> list[float]:
        """Seconds by which this machine's clock is ahead of that of each peer of the DHT that answers."""
        protocol = self._dht.protocol

        async def offset(peer: Any) -> float:
            asked = get_dht_time()
            answer = await protocol.get_stub(peer).rpc_ping(PingRequest(peer=protocol.node_info), timeout=RPC_TIMEOUT_S)
            return float(asked + get_dht_time()) / 2 - float(answer.dht_time)

        peers = list(protocol.routing_table.peer_id_to_uid)[:PEERS_ASKED_MAX]
        async with asyncio.timeout(DHT_TIMEOUT_S):
            answers = await asyncio.gather(*map(offset, peers), return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, float)]

    async def connections(self) -> dict[PeerId, tuple[str, ...]]:
        """The peers that libp2p is connected to, and at which addresses. Raises `NetworkError`."""
        with _as_network_error("the libp2p daemon does not answer"):
            async with asyncio.timeout(DHT_TIMEOUT_S):
                found = await self._p2p.list_peers()
        return {PeerId(str(info.peer_id)): tuple(map(str, info.addrs)) for info in found}

    async def open_stream(
        self, peer: PeerId, protocol: str, timeout_s: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A byte stream to the peer's callback for ``protocol``, accepted by its running process.

        `PeerRefusedError`: the peer is gone. `NetworkError`: nobody knows, it may be slow.
        Measured on loopback, two busy cores, seen from a peer with a stream open:

        - remote process SIGKILLed: our reader ends (EOF, no exception) after 5 to 35 ms, its p2pd
          is gone after 30 to 40 ms, opening again is refused within 2 ms (at once after the kill:
          within 70 ms). So an early end of a stream is the signal: open again, refused is dead.
        - its p2pd SIGKILLed: the same, EOF after 5 ms.
        - remote process stopped (SIGSTOP), or its whole machine: reads stay silent, and opening is
          silent until ``timeout_s``: `NetworkError`, never refused. 5 ms after SIGCONT it opens.
        - a peer known only by its PeerID, of which only a common peer was dialled: 2 to 6 ms; the
          same after the seed died, 18 ms. libp2p's own routing finds the address.
        - a peer that restarted on its old port and identity right after a refusal: 12 ms.
        """
        return await self._streams.open(peer, protocol, timeout_s)

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> None:
        """Dial a peer; without addresses, libp2p looks them up among the peers it knows."""
        await self._streams.connect(peer, addresses, timeout_s)

    async def serve_streams(self, protocol: str, callback: StreamCallback) -> None:
        """From now on run ``callback(remote peer, reader, writer)`` for each incoming stream.

        The PeerID is authenticated. The stream is closed when the callback returns or raises; an
        error of ours, a reset or an early end costs only the stream.
        """
        await self._streams.serve(protocol, callback)


@contextlib.contextmanager
def _as_network_error(message: str) -> Iterator[None]:
    """Translate what hivemind lets through when p2pd or a peer does not answer."""
    try:
        yield
    except TimeoutError as error:
        raise NetworkError(message) from error
    except (P2PDaemonError, OSError, EOFError, RuntimeError) as error:
        raise NetworkError(f"{message} ({error})") from error


def _validation_error(reason: str) -> NetworkError:
    clocks = re.search(r"local: ([0-9.]+), peer: ([0-9.]+)", reason)
    if clocks is None:
        return NetworkError(
            "the swarm cannot reach this machine: open the listening port in the firewall, "
            f"or give the public address with --announce-maddr ({reason})"
        )
    seconds = abs(float(clocks[1]) - float(clocks[2]))
    return ClockSkewError(
        f"this machine's clock differs from the swarm's by {seconds:.1f} s: set the clock (for example with NTP) "
        "and start again"
    )
