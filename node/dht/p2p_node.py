"""This peer on the network: its libp2p daemon, its place in the DHT, its byte streams. What everybody opens.

Every method has a deadline and raises errors of `protocol.errors` only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

import msgspec

from understudy.node.dht.config import SwarmConfig
from understudy.node.dht.guard import Guard
from understudy.node.dht.hivemind_dht import P2PD, HivemindDHT
from understudy.node.dht.reconnect import MEET_AGAIN_EVERY_S
from understudy.node.dht.signing import StoredRecord
from understudy.node.p2p.addresses import check_listen_port, endpoint_of, parse_multiaddr
from understudy.node.p2p.daemon import Daemon, sweep_stale_sockets
from understudy.node.p2p.dial import check_identity_is_free, find_reachable
from understudy.node.p2p.identity import Identity
from understudy.node.p2p.relay import start_daemon
from understudy.node.p2p.streams import StreamCallback, StreamHost, Way
from understudy.protocol.errors import LocalProtocolError, NetworkError, PeerRefusedError, SettingsError
from understudy.protocol.ids import PeerId
from understudy.protocol.reach.addresses import is_relayed, to_say, worth_dialling
from understudy.protocol.reach.contacts import CONTACTS_MAX, Contacts, Patience
from understudy.protocol.wire.contact import Contact, Reachability, is_private
from understudy.protocol.wire.records import run_keys

logger = logging.getLogger(__name__)

DAEMON_TIMEOUT_S = 30.0
RELAY_PATIENCE_S = 5.0
"""A relay that has room gives a place within 0.5 s of the daemon's start."""
RELAY_LOOK_EVERY_S = 0.1
OBSERVERS = 5
"""Public peers that a private one stays connected to. libp2p believes an address of its own from four observers on."""
CONNECT_TIMEOUT_S = 3.0
GREET_EVERY_S = 2.0
"""A peer that nobody calls, as one behind a router, hears of a new list within this time and a call."""


class P2PNode:
    """This peer's presence in the swarm. Open it with ``async with P2PNode.open(...)``."""

    def __init__(self, identity: Identity, daemon: Daemon, config: SwarmConfig) -> None:
        self._daemon = daemon
        self._streams = StreamHost(daemon, config.door)
        keys = {f"{config.run_id}/{key}": limit for key, limit in run_keys().items()} if config.run_id else {}
        self._dht = HivemindDHT(
            identity, keys, Guard(config.door), is_reader=config.is_reader, is_client=config.is_dht_client
        )
        self._config, self._door = config, config.door
        self.identity = identity
        self.peer_id = identity.peer_id
        self.addresses: tuple[str, ...] = ()
        """Where other peers can dial this one, each with /p2p/<PeerID>. A private peer's change with its relays."""
        self.relays = False
        """Whether others can be reached through this peer: it was tried at the start."""
        self.reachability: Reachability = "punchable" if config.is_private else "public"
        """What we tell others of it: what was configured, until somebody knows better."""
        self.contacts = Contacts()
        """Where the others say that they can be dialled."""
        self._patience = Patience()
        self._said: dict[PeerId, Contact] = {}
        """Their last words as they came: most say the same again every few seconds."""

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
        daemon, relays = await start_daemon(config.daemon_settings(P2PD, identity, reachable), DAEMON_TIMEOUT_S)
        p2p = cls(identity, daemon, config)
        p2p.relays = relays
        try:
            p2p.addresses = await p2p._join(daemon, reachable)
            if config.is_private:
                await p2p._await_relay()
            yield p2p
        finally:
            await p2p._close()

    async def _join(self, daemon: Daemon, reachable: Sequence[str]) -> tuple[str, ...]:
        """As `HivemindDHT.join`; whoever was not let in hears why."""
        try:
            return await self._dht.join(daemon, reachable)
        except NetworkError as error:
            raise self._dht.guard.why_refused() or error from error

    async def _close(self) -> None:
        """Take leave of libp2p and end p2pd, whatever state the start got to."""
        try:
            await self._streams.close()
            await self._dht.close()
        finally:
            await self._daemon.stop()

    async def _await_relay(self) -> None:
        """Until a relay has a place for us, or says nothing: so that what we tell others first is of use."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELAY_PATIENCE_S):
                while not any(map(is_relayed, self.addresses)):
                    await asyncio.sleep(RELAY_LOOK_EVERY_S)
                    self.addresses = await self._dht.addresses()

    @property
    def is_local(self) -> bool:
        """It is known on this machine only: there is no router and no relay."""
        return self._config.is_local

    @property
    def contact(self) -> Contact:
        """Where we can be dialled, for others."""
        return Contact(to_say(self.addresses), self.relays, self.reachability)

    def note_contact(self, peer: PeerId, contact: Contact) -> None:
        """The peer says that it can be dialled there. What is no address of that peer is left out."""
        if self._said.get(peer) == contact:
            return
        self._said[peer] = contact
        if len(self._said) > CONTACTS_MAX:
            del self._said[next(iter(self._said))]
        its_own = tuple(address for address in contact.addresses if _is_of(peer, address))
        self.contacts.note(peer, msgspec.structs.replace(contact, addresses=its_own))

    def _way(self, peer: PeerId) -> Way:
        contact = self.contacts.of(peer)
        addresses = worth_dialling(contact.addresses, self.addresses)
        return Way(peer, addresses, is_private=is_private(contact.reachability))

    async def watch_daemon(self) -> None:
        """Run this as long as the node is open; never returns. Raises `NetworkError` when p2pd dies or hangs up,
        and `LocalProtocolError` when a stream's callback broke a rule of ours.

        Meanwhile it looks for DHT peers that fell silent, so that they find each other again.
        """
        reconnector = self._dht.reconnector()
        while True:
            await reconnector.meet_again()
            if self._config.is_private:
                await self._stay_reachable()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MEET_AGAIN_EVERY_S):
                    await self._daemon.watch()

    async def keep_door(self) -> None:
        """Run this as long as the node is open: let nobody stay who is out by now. Returns if the run is open.

        Lists of what was revoked come with the calls of the DHT; somebody is called every few seconds, so that one
        comes to whoever has nothing else to say, and whoever hears of a new one tells all it knows. Raises
        `SettingsError` when it is us who are out.
        """
        while (door := self._door) is not None:
            is_news = door.has_news.is_set()
            door.has_news.clear()
            if (why := door.why_out()) is not None:
                raise why
            await asyncio.gather(*map(self._put_out, door.outcasts()))
            await self.greet(everybody=is_news)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GREET_EVERY_S):
                    await door.has_news.wait()

    async def greet(self, *, everybody: bool) -> int:
        """Call the peers of the DHT, or any one: how many know our list of what was revoked afterwards."""
        return await self._dht.guard.greet(self._dht.node, everybody=everybody)

    async def _put_out(self, peer: PeerId) -> None:
        """It may connect again, and speak with p2pd; every stream and call is refused. Told once."""
        logger.info("peer %s is out: its invite has expired or was revoked", peer)
        self._streams.end(peer)
        with contextlib.suppress(NetworkError):
            await self._streams.disconnect(peer, CONNECT_TIMEOUT_S)

    def is_observer(self, peer: PeerId) -> bool:
        """Whether this peer may only look."""
        return self._door is not None and self._door.is_observer(peer)

    async def _stay_reachable(self) -> None:
        """Note which relays have a place for us, and stay connected to some public peers. Raises nothing of theirs.

        libp2p believes an address of ours once so many peers saw us under it, and punches only then.
        """
        try:
            self.addresses = await self._dht.addresses()
            connected = await self._dht.connections()
        except NetworkError:
            return  # the watch on the daemon says it, if it is more than a moment
        known = [peer for peer in self.contacts.public() if peer != self.peer_id]
        missing = self._patience.due([peer for peer in known if peer not in connected], time.monotonic())
        wanted = missing[: max(0, OBSERVERS - sum(peer in connected for peer in known))]
        await asyncio.gather(*map(self._meet, wanted))

    async def _meet(self, peer: PeerId) -> None:
        try:
            await self.connect(peer, self._way(peer).addresses, CONNECT_TIMEOUT_S)
        except NetworkError:
            self._patience.failed(peer, time.monotonic())

    async def store(self, key: str, subkey: str, value: bytes, expiration: float) -> bool:
        """Sign and publish a record until ``expiration`` (DHT time, unix seconds).

        False: nobody took it: a record of ours with the same or a later expiration is
        there already. Every update needs a later expiration than the one before it.
        Raises `NetworkError`.
        """
        return await self._dht.store(key, subkey, value, expiration)

    async def get(self, key: str) -> list[StoredRecord]:
        """All signed records of a key that have not expired. Raises `NetworkError`."""
        return (await self.get_many([key]))[key]

    async def get_many(self, keys: Collection[str]) -> dict[str, list[StoredRecord]]:
        """Like `get`, for several keys with one walk through the DHT."""
        return await self._dht.get_many(keys)

    async def clock_offsets(self) -> list[float]:
        """Seconds by which this machine's clock is ahead of that of each peer of the DHT that answers."""
        return await self._dht.clock_offsets()

    async def connections(self) -> dict[PeerId, tuple[str, ...]]:
        """The peers that libp2p is connected to, and at which addresses. Raises `NetworkError`."""
        return await self._dht.connections()

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
        if self._door is not None and self._door.is_out(peer):
            raise PeerRefusedError(f"peer {peer} is out: its invite has expired or was revoked")
        return await self._streams.open(self._way(peer), protocol, timeout_s)

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> None:
        """Dial a peer; without addresses, libp2p looks them up among the peers it knows."""
        await self._streams.connect(peer, addresses, timeout_s)

    async def redial(self, peer: PeerId) -> None:
        """Make the connection to a peer anew, directly if that can be. Raises `NetworkError` if there is none then."""
        await self._streams.disconnect(peer, CONNECT_TIMEOUT_S)
        await self.connect(peer, self._way(peer).addresses, CONNECT_TIMEOUT_S)

    async def serve_streams(self, protocol: str, callback: StreamCallback) -> None:
        """From now on run ``callback(remote peer, reader, writer)`` for each incoming stream.

        The PeerID is authenticated. The stream is closed when the callback returns or raises; an
        error of ours, a reset or an early end costs only the stream.
        """
        await self._streams.serve(protocol, callback)


def _is_of(peer: PeerId, address: str) -> bool:
    """Whether this is an address at which that peer, and no other, would answer."""
    if not address.endswith(f"/p2p/{peer}"):  # most of what is wrong, without the cost of parsing it
        return False
    try:
        endpoint_of(parse_multiaddr(address, needs_peer_id=True))
    except SettingsError:
        return False
    return True
