"""A peer with an identity of its own, on the run's DHT and links, that asks nobody what it may send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from understudy.node.admission.door import Door
from understudy.node.dht import hivemind_dht as boundary
from understudy.node.dht.config import SwarmConfig
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.p2p.addresses import JoinString, parse_join
from understudy.node.p2p.identity import Identity
from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import PROTOCOL_VERSION
from understudy.protocol.wire.frames import encode_frame
from understudy.protocol.wire.messages import Hello

STORES_PER_CALL = 40
"""Records of up to 32 KiB: a call stays below hivemind's 2 MiB."""
SMALL_STORES_PER_CALL = 400


class Entry(NamedTuple):
    """A record as a stranger's own program would store it."""

    key: str
    """Below the run's prefix, or anything that begins with a slash."""
    subkey: str
    value: bytes
    expiration: float


class Intruder:
    """Stores what it likes with whom it likes, and opens what streams it likes."""

    def __init__(self, p2p: P2PNode, join: JoinString) -> None:
        self.p2p, self.join = p2p, join
        self.hello = encode_frame(Hello(PROTOCOL_VERSION, join.digest))

    @classmethod
    @asynccontextmanager
    async def at(cls, join: str, identity: Identity) -> AsyncIterator[Intruder]:
        parsed = parse_join(join)
        config = SwarmConfig(("/ip4/127.0.0.1/tcp/0",), initial_peers=parsed.addresses, door=Door.for_guest(parsed))
        async with P2PNode.open(config, identity) as p2p:
            yield cls(p2p, parsed)

    @property
    def _node(self) -> Any:
        return self.p2p._dht.node

    def _signed(self, entry: Entry) -> tuple[Any, bytes, bytes]:
        """hivemind's key, subkey and value of the entry, without any check of ours."""
        name = entry.key if entry.key.startswith("/") else f"{self.join.run_id}/{entry.key}"
        key, validator = type(self._node.node_id).generate(name), self.p2p._dht.validator
        subkey = validator.tagged(entry.subkey)
        packed = msgspec.msgpack.encode(self.p2p._dht.guard.sealed(entry.value))
        record = boundary.DHTRecord(key.to_bytes(), msgspec.msgpack.encode(subkey), packed, entry.expiration)
        return key, subkey, validator.sign_value(record)

    def peers(self) -> list[Any]:
        """hivemind's names of the DHT's peers that this one knows."""
        return [peer for peer in self._node.protocol.routing_table.peer_id_to_uid if peer != self._node.peer_id]

    async def store(self, entries: Sequence[Entry], victims: Sequence[Any] = ()) -> list[bool]:
        """With each of the victims, all peers if none is named; what they said."""
        signed = [(self._signed(entry), entry.expiration) for entry in entries]
        is_large = any(len(entry.value) > 5000 for entry in entries)
        size, said = STORES_PER_CALL if is_large else SMALL_STORES_PER_CALL, []
        for start in range(0, len(signed), size):
            part = signed[start : start + size]
            keys, subkeys, values = zip(*(entry for entry, _ in part), strict=True)
            arguments = (keys, values, [expiration for _, expiration in part], subkeys)
            calls = (self._node.protocol.call_store(peer, *arguments) for peer in victims or self.peers())
            said += [answer for answers in await asyncio.gather(*calls) for answer in answers or [False]]
        return said

    async def open(self, victim: PeerId, kind: str = "link") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        protocol = f"/understudy/{PROTOCOL_VERSION}/{self.join.run_id}/{kind}"
        return await self.p2p.open_stream(victim, protocol, 5.0)

    async def send(self, victim: PeerId, data: bytes) -> None:
        """On a stream of its own, until the victim closes it."""
        reader, writer = await self.open(victim)
        with suppress(OSError, TimeoutError):
            writer.write(data)
            async with asyncio.timeout(5.0):
                await reader.read()
        writer.transport.abort()


def identity_before(peers: Sequence[str], folder: Path) -> Identity:
    """One that comes before all of these where they are sorted."""
    for number in range(200):
        identity = Identity.load_or_create(folder / f"low-{number}.key")
        if identity.peer_id < min(peers):
            return identity
    raise AssertionError("no such identity was drawn")
