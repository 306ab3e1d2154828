"""The boundary to hivemind: its connection to p2pd and its DHT node. Nobody else imports hivemind.
Every method has a deadline and raises errors of `protocol.errors` only.

What is wrapped, and why (hivemind 1.1.12):

- p2pd is started by node/p2p/daemon.py, not by ``P2P.create``; hivemind connects to it.
- Streams go through node/p2p/streams.py, which speaks with p2pd itself over its control socket.
- The DHT refuses records that do not carry their owner's key, on every honest peer: an unsigned
  plain value with a later expiration would otherwise shut a key for everybody.
- Its package is entered without its ``__init__``, which would import its averager, optimizer and layers, and scipy
  with them: a fifth of the processor time that a node takes to start.
- Lookups are our own (node/dht/lookup.py): they ask every peer they know of and never answer from a cache,
  because a stale answer here means two owners of one stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

from understudy.node.dht.bounds import Shelf, bound_storage
from understudy.node.dht.guard import SEAL_BYTES_MAX, Guard
from understudy.node.dht.lookup import Entries, look_up
from understudy.node.dht.reconnect import Reconnector
from understudy.node.dht.signing import (
    RECORD_VALUE_BYTES_MAX,
    SIGNATURE_BYTES_MAX,
    SUBKEY_BYTES_MAX,
    StoredRecord,
    is_owned,
    owned_records,
)
from understudy.node.dht.store import store_record, wrap_calls
from understudy.node.p2p.daemon import Daemon
from understudy.node.p2p.identity import Identity
from understudy.protocol.errors import ClockSkewError, LocalProtocolError, NetworkError
from understudy.protocol.ids import PeerId

_hivemind = find_spec("hivemind")
if _hivemind is not None:
    sys.modules.setdefault("hivemind", module_from_spec(_hivemind))

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # hivemind's and torch's own deprecations
    from hivemind.dht.crypto import RSASignatureValidator
    from hivemind.dht.node import DHTNode
    from hivemind.dht.validation import DHTRecord
    from hivemind.p2p import P2P
    from hivemind.p2p.p2p_daemon_bindings.control import P2PDaemonError
    from hivemind.proto import dht_pb2
    from hivemind.utils import get_dht_time
    from hivemind.utils.crypto import RSAPrivateKey
    from hivemind.utils.logging import use_hivemind_log_handler
    from hivemind.utils.multiaddr import Multiaddr

__all__ = ["P2PD", "HivemindDHT", "dht_time", "quiet_libraries"]

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
CLOCK_OFFSET_MAX_S = 3.0
"""hivemind refuses records of peers whose clocks are further apart."""

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

    def __init__(self, key: _IdentityKey, guard: Guard | None = None) -> None:
        super().__init__(key)
        self._guard, self.shelf = guard or Guard(None), Shelf()
        self.validate = lru_cache(JUDGED_MAX)(self._judge)

    def _judge(self, record: DHTRecord) -> bool:
        if not math.isfinite(record.expiration_time) or not is_owned(record.subkey):
            return False
        room = self.shelf.value_bytes_max(record.key)
        is_long = len(record.subkey) > SUBKEY_BYTES_MAX + SIGNATURE_BYTES_MAX
        if room < 0 or is_long or len(record.value) > room + SEAL_BYTES_MAX + SIGNATURE_BYTES_MAX:
            return False
        try:
            return super().validate(record) and self._guard.admits(record.subkey, self.strip_value(record))
        except ValueError:  # the key in the tag is not a key
            return False

    def opened(self, entries: Entries) -> Entries:
        """What was signed, without the signatures; a value that is not bytes is left out."""
        opened: Entries = {}
        for subkey, (value, expiration) in entries.items():
            content = self._guard.opened(subkey, self.strip_value(DHTRecord(b"", subkey, value, expiration)))
            if content is not None:
                opened[subkey] = content, expiration
        return opened

    def tagged(self, subkey: str) -> bytes:
        return subkey.encode() + bytes(self.local_public_key)


class HivemindDHT:
    """hivemind's two objects: its connection to p2pd and its DHT node. Opened by `join`; end it with `close`."""

    def __init__(
        self, identity: Identity, keys: Mapping[str, int], guard: Guard, *, is_reader: bool, is_client: bool
    ) -> None:
        """``keys``: see `bound_storage`. ``is_reader``: it stores nothing; ``is_client``: others do not ask it."""
        self._keys, self._is_reader, self._is_client = keys, is_reader, is_client or is_reader
        self.guard, self.validator = guard, _OwnedRecordsOnly(_IdentityKey(identity), guard)
        self._connecting: asyncio.Task[Any] | None = None
        self.connection: Any = None
        """hivemind's P2P."""
        self.node: Any = None
        """hivemind's DHTNode."""

    async def join(self, daemon: Daemon, initial_peers: Sequence[str]) -> tuple[str, ...]:
        """Connect to p2pd and join the DHT of these peers, or found one: the addresses to be dialled at.

        Raises `NetworkError`.
        """
        with _as_network_error("the seed was reached but does not answer: try again, it may be busy"):
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                await self._connect(daemon)
                addresses = await self.addresses()
                self.node = await self._create_node(initial_peers)
                _check_clock(await self.clock_offsets())
        self.node.protocol.wait_timeout = RPC_TIMEOUT_S
        bound_storage(self.node, self.validator.shelf, self._keys, dht_time)
        wrap_calls(self.node)
        return addresses

    async def _connect(self, daemon: Daemon) -> None:
        """A task of its own, which `close` waits for: hivemind, when cancelled, does not close what it has opened."""
        self._connecting = asyncio.create_task(P2P.replicate(Multiaddr(f"/unix{daemon.control_path}")))
        self.connection = await asyncio.shield(self._connecting)
        self.guard.stand_at(self.connection, dht_pb2)
        control = self.connection._client.control
        for task in (control._read_task, control._write_task):
            task.add_done_callback(lambda task: self._connection_ended(task, daemon))

    def _connection_ended(self, task: asyncio.Task[Any], daemon: Daemon) -> None:
        """hivemind never looks how the tasks of its connection to p2pd end, nor notices that they did.

        p2pd may have exited, as it does when the connection closes: its exit status says more, and comes at once.
        """
        if task.cancelled():  # by `close`
            return
        reason = task.exception() or "it was closed"
        error = NetworkError(f"the connection to the libp2p daemon broke ({reason}): start the node again")
        asyncio.get_running_loop().call_later(EXIT_NOTICED_S, daemon.fail, error)

    async def _create_node(self, initial_peers: Sequence[str]) -> Any:
        """Not strict: hivemind's own check of who can be reached gives a peer one second to call back, and a busy seed
        takes longer. How this peer is reached is found out by dial-backs (node/reach), the clock is checked by `join`.
        """
        return await DHTNode.create(
            p2p=self.connection,
            initial_peers=list(initial_peers),
            strict=False,
            client_mode=self._is_client,
            num_replicas=REPLICAS,
            num_workers=STORE_WORKERS,
            wait_timeout=JOIN_RPC_TIMEOUT_S,
            cache_locally=False,
            cache_on_store=False,
            cache_nearest=0,
            cache_refresh_before_expiry=0,
            reuse_get_requests=False,
            record_validator=self.validator,
        )

    async def close(self) -> None:
        """Take leave of the DHT and of libp2p, whatever state `join` got to."""
        with contextlib.suppress(TimeoutError, OSError, P2PDaemonError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                if self._connecting is not None and not self._connecting.done():
                    self.connection = await self._connecting
                if self.node is not None:
                    await self.node.shutdown()
                if self.connection is not None:
                    await self.connection.shutdown()

    def reconnector(self) -> Reconnector:
        """Who meets this DHT's peers again that fell silent."""
        return Reconnector(self.node)

    async def store(self, key: str, subkey: str, value: bytes, expiration: float) -> bool:
        """As `P2PNode.store` says. Raises `NetworkError`; `LocalProtocolError` for what no peer would take."""
        if self._is_reader:
            raise LocalProtocolError(f"record {key} was to be stored by a reader")
        if len(value) > RECORD_VALUE_BYTES_MAX or len(subkey.encode()) > SUBKEY_BYTES_MAX:
            raise LocalProtocolError(f"record {key} is too large: {len(value)} bytes, subkey {subkey!r}")
        owned_subkey = self.validator.tagged(subkey)
        with _as_network_error(f"cannot publish {key}: no answer from the DHT"):
            async with asyncio.timeout(DHT_TIMEOUT_S):
                return await store_record(self.node, key, owned_subkey, self.guard.sealed(value), float(expiration))

    async def get_many(self, keys: Collection[str]) -> dict[str, list[StoredRecord]]:
        """Of each key all signed records that have not expired. Raises `NetworkError`."""
        with _as_network_error("cannot read from the DHT: no answer"):
            async with asyncio.timeout(DHT_TIMEOUT_S):
                found = await look_up(self.node, keys)
        return {key: owned_records(self.validator.opened(entries), dht_time()) for key, entries in found.items()}

    async def clock_offsets(self) -> list[float]:
        """Seconds by which this machine's clock is ahead of that of each peer of the DHT that answers."""
        protocol = self.node.protocol

        async def offset(peer: Any) -> float:
            request, asked = dht_pb2.PingRequest(peer=protocol.node_info), get_dht_time()
            answer = await protocol.get_stub(peer).rpc_ping(request, timeout=RPC_TIMEOUT_S)
            return float(asked + get_dht_time()) / 2 - float(answer.dht_time)

        async with asyncio.timeout(DHT_TIMEOUT_S):
            peers = list(protocol.routing_table.peer_id_to_uid)[:PEERS_ASKED_MAX]
            answers = await asyncio.gather(*map(offset, peers), return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, float)]

    async def addresses(self) -> tuple[str, ...]:
        """Where libp2p says that this peer can be dialled, each with /p2p/<PeerID>. Raises `NetworkError`."""
        with _as_network_error("the libp2p daemon does not answer"):
            async with asyncio.timeout(DHT_TIMEOUT_S):
                return tuple(map(str, await self.connection.get_visible_maddrs(latest=True)))

    async def connections(self) -> dict[PeerId, tuple[str, ...]]:
        """The peers that libp2p is connected to, and at which addresses. Raises `NetworkError`."""
        with _as_network_error("the libp2p daemon does not answer"):
            async with asyncio.timeout(DHT_TIMEOUT_S):
                found = await self.connection.list_peers()
        merged: dict[PeerId, tuple[str, ...]] = {}
        for info in found:  # one for each connection: a peer may have a relayed one and a direct one
            peer = PeerId(str(info.peer_id))
            merged[peer] = (*merged.get(peer, ()), *map(str, info.addrs))
        return merged


@contextlib.contextmanager
def _as_network_error(message: str) -> Iterator[None]:
    """Translate what hivemind lets through when p2pd or a peer does not answer."""
    try:
        yield
    except TimeoutError as error:
        raise NetworkError(message) from error
    except (P2PDaemonError, OSError, EOFError, RuntimeError) as error:
        raise NetworkError(f"{message} ({error})") from error


def _check_clock(offsets: Sequence[float]) -> None:
    """Raises `ClockSkewError` if this machine's clock is ahead of, or behind, that of each peer that was asked."""
    seconds = min(map(abs, offsets), default=0.0)
    if seconds > CLOCK_OFFSET_MAX_S:
        raise ClockSkewError(
            f"this machine's clock differs from the swarm's by {seconds:.1f} s: set the clock (for example with NTP) "
            "and start again"
        )
