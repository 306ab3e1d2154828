"""Who is not invited gets nothing, with real peers in one process: p2pd, the DHT and streams of an invited run."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from understudy.bootstrap.founding import keep_founding
from understudy.bootstrap.inviting import Founded, open_door
from understudy.bootstrap.seed import SeedPlan, serve_seed
from understudy.node.admission.door import Door
from understudy.node.dht.config import SwarmConfig, guest_config, reader_config
from understudy.node.dht.hivemind_dht import dht_time
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.joining import obtain_manifest
from understudy.node.links.framing import read_message, write_frame
from understudy.node.links.transfer import fetch_protocol
from understudy.node.p2p.addresses import JoinString
from understudy.node.p2p.identity import Identity
from understudy.protocol.errors import NetworkError, PeerRefusedError, SettingsError
from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import PROTOCOL_VERSION, RunManifest, TimingSettings
from understudy.protocol.wire.messages import FetchEnd, FetchRequest
from understudy.protocol.wire.records import MANIFEST_KEY

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
TEST_TIMEOUT_S = 240.0
OUT_WITHIN_S = 10.0
"""What is promised of a revoked peer."""
RUN = RunManifest(name="guarded", timing=TimingSettings(record_lifetime_s=60.0))
OTHER = RunManifest(name="guarded", founding_nonce="another", timing=TimingSettings(record_lifetime_s=60.0))


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await main

    uvloop.run(bounded())


def link_protocol(manifest: RunManifest) -> str:
    return f"/understudy/{PROTOCOL_VERSION}/{manifest.run_id()}/link"


class Served:
    """A seed with streams of the run, and what was said on them."""

    def __init__(self, folder: Path, founder: Identity, manifest: RunManifest) -> None:
        self.folder, self.founder, self.manifest = folder, founder, manifest
        self.join: JoinString

    @property
    def founded(self) -> Founded:
        return Founded(self.folder, self.founder)

    def invited(self, **wish: Any) -> JoinString:
        wish = {"label": f"guest-{time.monotonic_ns()}", "role": "volunteer", "expires_at": 0} | wish
        return self.founded.invite(**wish)


@asynccontextmanager
async def seed(folder: Path, manifest: RunManifest = RUN) -> AsyncIterator[Served]:
    """A run's seed, as `bootstrap` serves it."""
    os.makedirs(folder, exist_ok=True)
    served = Served(folder, Identity.load_or_create(folder / "founder.key"), manifest)
    announced: asyncio.Future[JoinString] = asyncio.get_running_loop().create_future()

    def announce(join: JoinString) -> None:
        keep_founding(folder, manifest, join)
        announced.set_result(join)

    is_stopped = asyncio.Event()
    plan = SeedPlan(announce, None, open_door(manifest, served.founder, folder))
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(serve_seed(manifest, served.founder, SwarmConfig(LOOPBACK), plan, is_stopped))
        await asyncio.wait({serving, announced}, return_when=asyncio.FIRST_COMPLETED)
        served.join = announced.result()
        try:
            yield served
        finally:
            is_stopped.set()


class Peer:
    """A peer that serves the run's streams, as a node does: an echo for its links, weights of ten bytes."""

    def __init__(self, p2p: P2PNode) -> None:
        self.p2p, self.said = p2p, b""
        self.talked_to: list[PeerId] = []

    async def serve(self, manifest: RunManifest) -> None:
        await self.p2p.serve_streams(link_protocol(manifest), self._listen)
        await self.p2p.serve_streams(fetch_protocol(manifest.run_id()), self._give)

    async def _listen(self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.talked_to.append(peer)
        while chunk := await reader.read(65536):
            self.said += chunk
            writer.write(b"an activation")

    async def _give(self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.talked_to.append(peer)
        assert isinstance(await read_message(reader), FetchRequest)
        await write_frame(writer, FetchEnd())


@asynccontextmanager
async def member(folder: Path, name: str, join: JoinString, manifest: RunManifest = RUN) -> AsyncIterator[Peer]:
    """Whoever has a join string, with nothing else."""
    config = SwarmConfig(LOOPBACK, initial_peers=join.addresses, door=Door.for_guest(join))
    async with P2PNode.open(config, Identity.load_or_create(folder / f"{name}.key")) as p2p:
        peer = Peer(p2p)
        await peer.serve(manifest)
        yield peer


@asynccontextmanager
async def stranger(folder: Path, door: Door | None, *victims: Peer, at: JoinString) -> AsyncIterator[P2PNode]:
    """A peer with a DHT of its own, which connects to these addresses and asks whatever it likes."""
    config = SwarmConfig(LOOPBACK, door=door)
    async with P2PNode.open(config, Identity.load_or_create(folder / "stranger.key")) as p2p:
        for address in (*at.addresses, *(address for victim in victims for address in victim.p2p.addresses)):
            peer = PeerId(address.rpartition("/")[2])
            await p2p.connect(peer, (address,), 10.0)
        yield p2p


class Attack:
    """What a stranger tries, against one peer of the run."""

    def __init__(self, p2p: P2PNode, victim: PeerId, manifest: RunManifest) -> None:
        self.p2p, self.victim, self.manifest = p2p, victim, manifest
        self._protocol = p2p._dht.node.protocol
        self._peer = type(p2p._dht.node.peer_id).from_base58(victim)

    def key(self, name: str) -> Any:
        return type(self._protocol.node_id).generate(f"{self.manifest.run_id()}/{name}")

    async def reads_the_manifest(self) -> bool:
        found = await self._protocol.call_find(self._peer, [self.key(MANIFEST_KEY)])
        entry, _ = next(iter(found.values())) if found else (None, {})
        values = [value for _, (value, _) in entry.value.items()] if entry is not None else []
        return any(self.manifest.encode() in value for value in values)

    async def is_told_of_peers(self) -> bool:
        found = await self._protocol.call_find(self._peer, [self.key("spares")])
        return bool(found) and any(neighbours for _, neighbours in found.values())

    async def is_taken_in(self) -> bool:
        return await self._protocol.call_ping(self._peer) is not None

    async def stores(self, name: str = "spares") -> bool:
        """A record of its own, signed as it should be."""
        dht = self.p2p._dht
        record = dht.guard.sealed(b"a record"), dht_time() + 30.0
        packed = msgspec.msgpack.encode(record[0])
        subkey = dht.validator.tagged("stranger")
        packed_subkey = self._protocol.serializer.dumps(subkey)
        whole = _signed(dht.validator, self.key(name).to_bytes(), packed_subkey, packed, record[1])
        answer = await self._protocol.call_store(self._peer, [self.key(name)], [whole], record[1], subkeys=[subkey])
        return bool(answer and all(answer))

    async def gets_an_activation(self) -> bool:
        return await self._hears(link_protocol(self.manifest), lambda writer: writer.write(b"hello"), b"an activation")

    async def gets_weights(self) -> bool:
        with suppress(NetworkError, OSError, EOFError):
            reader, writer = await self.p2p.open_stream(self.victim, fetch_protocol(self.manifest.run_id()), 5.0)
            try:
                await write_frame(writer, FetchRequest(1, 1, "d" * 64, 0))
                async with asyncio.timeout(5.0):
                    return isinstance(await read_message(reader), FetchEnd)
            finally:
                writer.transport.abort()
        return False

    async def _hears(self, protocol: str, say: Callable[[asyncio.StreamWriter], None], answer: bytes) -> bool:
        with suppress(NetworkError, OSError, EOFError):
            reader, writer = await self.p2p.open_stream(self.victim, protocol, 5.0)
            try:
                say(writer)
                async with asyncio.timeout(5.0):
                    return await reader.readexactly(len(answer)) == answer
            finally:
                writer.transport.abort()
        return False

    async def outcomes(self) -> dict[str, bool]:
        return {
            "manifest": await self.reads_the_manifest(),
            "peers": await self.is_told_of_peers(),
            "taken in": await self.is_taken_in(),
            "stage": await self.stores("stage/1"),
            "activation": await self.gets_an_activation(),
            "weights": await self.gets_weights(),
        }


def _signed(validator: Any, key: bytes, subkey: bytes, value: bytes, expiration: float) -> bytes:
    from hivemind.dht.validation import DHTRecord

    return bytes(validator.sign_value(DHTRecord(key, subkey, value, expiration)))


async def attack(folder: Path, served: Served, door: Door | None) -> dict[str, bool]:
    """What a stranger behind this door gets of a member of the run, of which it knows no more than addresses."""
    join = served.join
    async with member(folder, "a", join, served.manifest) as a, stranger(folder, door, a, at=join) as p2p:
        if door is not None:
            door.enter(p2p.peer_id)
        found = await Attack(p2p, a.p2p.peer_id, served.manifest).outcomes()
        of_seed = Attack(p2p, served.founder.peer_id, served.manifest)
        found["manifest"] |= await of_seed.reads_the_manifest()
        found["taken in"] |= await of_seed.is_taken_in()
        assert (p2p.peer_id in a.talked_to) == (found["activation"] or found["weights"])
        return found


NOTHING = dict.fromkeys(("manifest", "peers", "taken in", "stage", "activation", "weights"), False)


# --- strangers -----------------------------------------------------------------------------------


def test_a_stranger_gets_nothing_of_an_invited_run_and_all_of_an_open_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with seed(tmp_path / "open", msgspec.structs.replace(RUN, admission="open")) as served:
            assert await attack(tmp_path, served, None) == dict.fromkeys(NOTHING, True)
        async with seed(tmp_path / "invited") as served:
            assert await attack(tmp_path, served, None) == NOTHING
            with pytest.raises(SettingsError, match="only who is invited"):
                async with P2PNode.open(reader_config(served.join.addresses), Identity.generate()):
                    pass

    run(main())


def test_a_membership_of_another_run_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with seed(tmp_path / "run") as served, seed(tmp_path / "other", OTHER) as other:
            door = Door.for_guest(replace(other.join, addresses=served.join.addresses))
            assert door is not None
            assert await attack(tmp_path, served, door) == NOTHING
            with pytest.raises(SettingsError, match="another run is there"):
                async with P2PNode.open(reader_config(served.join.addresses, door), Identity.generate()):
                    pass

    run(main())


class Thief(Door):
    """Shows the membership of another peer, and lets in everybody."""

    def enter(self, peer: PeerId) -> None:
        pass

    def objection_to(self, peer: PeerId, membership: bytes) -> Any:
        return ""


def test_the_membership_of_another_peer_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with seed(tmp_path / "run") as served:
            thief = Thief.for_guest(served.join)
            assert isinstance(thief, Thief)
            victim = Door.for_guest(served.join)
            assert victim is not None
            victim.enter(Identity.generate().peer_id)
            thief.shown = victim.shown
            assert await attack(tmp_path, served, thief) == NOTHING

    run(main())


# --- members -------------------------------------------------------------------------------------


def test_a_join_string_is_all_that_a_newcomer_needs(tmp_path: Path) -> None:
    """To find the manifest, be let in by whom it meets first, store and be read; observers store nothing."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            served = await stack.enter_async_context(seed(tmp_path / "run"))
            a = await stack.enter_async_context(member(tmp_path, "a", served.join))
            by_a = replace(served.invited(role="observer"), addresses=a.p2p.addresses)
            reader = await stack.enter_async_context(P2PNode.open(guest_config(by_a), Identity.generate()))
            for p2p in (a.p2p, reader):
                manifest, record = await obtain_manifest(p2p, served.join)
                assert (manifest, record.peer) == (RUN, served.founder.peer_id)
            key = f"{RUN.run_id()}/spares"
            assert await a.p2p.store(key, "", b"a record", dht_time() + 30.0)
            assert [found.value for found in await reader.get(key)] == [b"a record"]
            observer = await stack.enter_async_context(member(tmp_path, "o", served.invited(role="observer")))
            as_member = Attack(observer.p2p, a.p2p.peer_id, RUN)
            assert await as_member.outcomes() == NOTHING | {
                "manifest": True,
                "peers": True,
                "taken in": True,
                "activation": True,  # links are heard in part: tests/unit/node/test_network.py
                "weights": True,
            }
            assert a.p2p.is_observer(observer.p2p.peer_id)
            assert not observer.p2p.is_observer(a.p2p.peer_id)

    run(main())


def test_a_member_cannot_bring_in_the_records_of_a_stranger(tmp_path: Path) -> None:
    async def main() -> None:
        async with seed(tmp_path / "run") as served, member(tmp_path, "a", served.join) as a:
            protocol = a.p2p._dht.node.protocol
            key = type(protocol.node_id).generate("key")
            async with P2PNode.open(SwarmConfig(LOOPBACK), Identity.load_or_create(tmp_path / "s.key")) as p2p:
                validator = p2p._dht.validator
                subkey, expiration = validator.tagged("s"), dht_time() + 30.0
                for value in (b"a record", a.p2p._dht.guard.sealed(b"a record")):
                    packed_subkey, packed = protocol.serializer.dumps(subkey), msgspec.msgpack.encode(value)
                    whole = _signed(validator, key.to_bytes(), packed_subkey, packed, expiration)
                    peer = type(a.p2p._dht.node.peer_id).from_base58(served.founder.peer_id)
                    assert await protocol.call_store(peer, [key], [whole], expiration, subkeys=[subkey]) == [False]

    run(main())


# --- revoked -------------------------------------------------------------------------------------


def test_a_revoked_peer_is_out_in_time_and_knows_why(tmp_path: Path) -> None:
    """Its streams end, none opens in either direction, its records are not read, and it ends with the reason."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            served = await stack.enter_async_context(seed(tmp_path / "run"))
            a = await stack.enter_async_context(member(tmp_path, "a", served.join))
            bobs = served.invited(label="bob")
            b = await stack.enter_async_context(member(tmp_path, "b", bobs))
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            keeping = tasks.create_task(a.p2p.keep_door())
            key = f"{RUN.run_id()}/spares"
            assert await b.p2p.store(key, "", b"b's record", dht_time() + 60.0)
            assert await a.p2p.get(key)
            reader, writer = await b.p2p.open_stream(a.p2p.peer_id, link_protocol(RUN), 10.0)
            writer.write(b"hello")
            assert await reader.readexactly(13) == b"an activation"
            began = time.monotonic()
            served.founded.revoke("bob")
            assert await reader.read() == b""
            assert time.monotonic() - began < OUT_WITHIN_S
            writer.transport.abort()
            with pytest.raises(SettingsError, match="revoked"):
                await b.p2p.keep_door()
            with pytest.raises(PeerRefusedError, match="is out"):
                await a.p2p.open_stream(b.p2p.peer_id, link_protocol(RUN), 5.0)
            assert not await Attack(b.p2p, a.p2p.peer_id, RUN).gets_weights()
            assert await a.p2p.get(key) == []
            with pytest.raises(SettingsError, match="the founder revoked"):
                await stack.enter_async_context(member(tmp_path, "c", replace(served.join, ticket=bobs.ticket)))
            keeping.cancel()

    run(main())


def test_revoking_reaches_the_swarm_without_its_seed_and_outlasts_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        folder = tmp_path / "run"
        async with AsyncExitStack() as members:
            async with seed(folder) as served:
                a = await members.enter_async_context(member(tmp_path, "a", served.join))
                b = await members.enter_async_context(member(tmp_path, "b", served.invited(label="bob")))
                await b.p2p.store(f"{RUN.run_id()}/{MANIFEST_KEY}", "", b"", dht_time() + 30.0)
            revoked = served.founded.revoke(b.p2p.peer_id)
            founded = served.founded
            founded.join = replace(founded.join, addresses=a.p2p.addresses)
            assert await founded.tell(revoked) >= 1
            assert a.p2p._door is not None
            assert a.p2p._door.revoked == revoked
            older = served.founder.sign(msgspec.structs.replace(revoked, version=0).signed_bytes(RUN.digest()))
            a.p2p._door.adopt(msgspec.structs.replace(revoked, version=0, signature=older).encode())
            assert a.p2p._door.revoked == revoked
        async with seed(folder) as again:
            assert again.join.ticket == served.join.ticket
            with pytest.raises(SettingsError, match="the founder revoked"):
                async with member(tmp_path, "b", served.invited()):
                    raise AssertionError("let in")

    run(main())
