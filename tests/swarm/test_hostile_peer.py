"""A peer of the run's own DHT sends whatever bytes it likes: it loses its streams, the swarm goes on.

A peer that speaks the protocol well and lies: tests/hostile/test_authority.py.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import uvloop

from tests.swarm.nursery import Nursery
from tests.swarm.processes import Brood
from tests.swarm.small_run import small_run
from understudy.node.admission.door import Door
from understudy.node.dht.config import SwarmConfig
from understudy.node.dht.hivemind_dht import dht_time
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.p2p.addresses import JoinString, parse_join
from understudy.node.p2p.identity import Identity
from understudy.protocol.errors import NetworkError
from understudy.protocol.ids import Attempt, PeerId
from understudy.protocol.manifest import PROTOCOL_VERSION
from understudy.protocol.wire.frames import PREFIX, decode_frame, encode_frame
from understudy.protocol.wire.messages import (
    Announce,
    AnyMessage,
    Backward,
    Claim,
    Commit,
    CommitAck,
    Fenced,
    FetchEnd,
    FetchRefused,
    FetchRequest,
    Forward,
    Grant,
    Heartbeat,
    Hello,
    Lost,
    Refusal,
    Withdraw,
)
from understudy.protocol.wire.records import (
    ManifestRecord,
    OfferRecord,
    ProgressRecord,
    SpareRecord,
    StageRecord,
    encode_record,
)
from understudy.protocol.wire.tensors import TensorHeader

SEED = 20250614
ATTACK_TIMEOUT_S = 120.0
START_TIMEOUT_S = 60.0
CLOSED_TIMEOUT_S = 5.0
END_TIMEOUT_S = 40.0
"""A node's own deadlines for its goodbye, its streams, the DHT and the daemon add up to 18 s."""
GROWTH_BYTES_MAX = 96 << 20
"""Of a node's memory during all of the attacks; a single frame taken at its word would be gigabytes."""
STREAMS = 200
STREAMS_MAX = 64
HALF_OPEN = 24

RUN = small_run("besieged", 6.0, 12.0, more='[wire]\ndtype = "float32"')
ACTIVATION = TensorHeader("float32", (2, 32, 32))
STAGES = (0, 1, 2)
FIRST = Attempt(1, 0)
HEARTBEAT = encode_frame(Heartbeat(1, 1, "serving", 1))


class Hostile:
    """A peer with an identity of its own and no manners."""

    def __init__(self, p2p: P2PNode, join: JoinString) -> None:
        self.p2p = p2p
        self.hello = encode_frame(Hello(PROTOCOL_VERSION, join.digest))
        self.run_id, self.digest = join.run_id, join.digest
        self._prefix = f"/understudy/{PROTOCOL_VERSION}/{join.run_id}"

    async def open(self, victim: PeerId, kind: str = "link") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await self.p2p.open_stream(victim, f"{self._prefix}/{kind}", 5.0)

    async def is_closed_after(self, victim: PeerId, data: bytes, kind: str = "link") -> bool:
        """Send and wait: whether the victim ends the stream without an answer."""
        reader, writer = await self.open(victim, kind)
        try:
            writer.write(data)
            async with asyncio.timeout(CLOSED_TIMEOUT_S):
                return await reader.read() == b""
        except TimeoutError:
            return False
        except OSError:  # reset: closed with our bytes unread
            return True
        finally:
            writer.transport.abort()

    async def send(self, victim: PeerId, data: bytes, kind: str = "link") -> None:
        """Send and close."""
        _, writer = await self.open(victim, kind)
        with suppress(OSError):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def ask(self, victim: PeerId, request: bytes) -> Any:
        """The answer to a fetch."""
        reader, writer = await self.open(victim, "fetch")
        try:
            writer.write(request)
            async with asyncio.timeout(CLOSED_TIMEOUT_S):
                answer = await reader.read()
            return decode_frame(answer[PREFIX.size :], 0).message
        finally:
            writer.transport.abort()


# --- what it sends -----------------------------------------------------------------------------


def framed(body: bytes, payload_bytes: int = 0) -> bytes:
    return PREFIX.pack(len(body), payload_bytes) + body


def malformed(hello: bytes, digest: str) -> Iterator[bytes]:
    """Bytes that must cost the stream, each for a reason of its own."""
    yield HEARTBEAT  # no hello
    yield encode_frame(Hello(PROTOCOL_VERSION, "0" * 64))  # another manifest
    yield encode_frame(Hello(PROTOCOL_VERSION + 1, digest))
    for prefix in (
        PREFIX.pack(0, 0),
        PREFIX.pack(2**32 - 1, 0),
        PREFIX.pack(10, 2**63),
        PREFIX.pack(64 * 1024 + 1, 0),
        PREFIX.pack(10, 2 * 32 * 32 * 4 + 1),
    ):
        yield prefix
        yield hello + prefix
    for body in (
        b"\xc1",  # the one byte that msgpack never uses
        b"\x00",
        b"\x91" * 60_000 + b"\x00",  # nested beyond any stack
        msgspec.msgpack.encode([["unknown", 1]]),
        msgspec.msgpack.encode([["heartbeat"]]),
        msgspec.msgpack.encode([["heartbeat", 10**6, 1, "serving", 1]]),
        msgspec.msgpack.encode([["heartbeat", 1, 0, "serving", 1]]),
        msgspec.msgpack.encode([["heartbeat", 1, 1, "undead", 1]]),
        msgspec.msgpack.encode([["heartbeat", 1, 1, "serving", 2**60]]),
        msgspec.msgpack.encode([["heartbeat", 1, 1, "serving", float("nan")]]),
        msgspec.msgpack.encode([["forward", 1, 2**21, [1, 0], 0, 1], ["float32", [2, 32, 32]]]),
        msgspec.msgpack.encode([["claim", 1, 1, list(range(1000))]]),
        msgspec.msgpack.encode({"heartbeat": 1}),
        msgspec.msgpack.encode([["fetch_refused", "x" * 1000]]),
    ):
        yield hello + framed(body)
    for message in (Forward(1, 0, FIRST, 0, 1), Backward(1, 0, FIRST, 2, 1)):
        yield hello + encode_frame(message)  # no tensor
        yield hello + encode_frame(message, TensorHeader("bfloat16", (2, 32, 32)))
        yield hello + encode_frame(message, TensorHeader("float32", (32, 2, 32)))
        yield hello + encode_frame(message, TensorHeader("float32", (0,)))
    yield hello + encode_frame(Lost(1, 1), ACTIVATION)  # a tensor where none belongs


def misplaced() -> Iterator[AnyMessage]:
    """Well-formed messages that no peer of this run sends."""
    yield Hello(PROTOCOL_VERSION, "0" * 64)
    yield FetchEnd()
    yield FetchRefused("no")
    yield Heartbeat(900, 1, "serving", 1)
    yield Announce(3, 1, "recovering", 2**52)
    yield Claim(1023, 2**52, (0, 1))
    yield CommitAck(3, 1, 1)


def absurd() -> Iterator[AnyMessage]:
    """Valid frames that mean nothing here: to be ignored, or answered with a refusal."""
    nobody = "QmNobodyNobodyNobodyNobodyNobodyNobodyNobodyNo"
    for stage in STAGES:
        yield Heartbeat(stage, 1, "serving", 2**52)
        yield Announce(stage, 1, "recovering", 2**52)
        yield Announce(stage, 1, "left", 2**52)
        yield CommitAck(stage, 1, 2**52)
        yield Lost(stage, 1)
        yield Lost(stage, 2**52)
        yield Fenced(stage, 2**52, nobody, 0)
        yield Claim(stage, 2**52, ())
        yield Claim(stage, 1, (0, 1, 2))
        yield Withdraw(stage, 1)
        yield Refusal(stage, 1, 2**52, "superseded")
        yield Grant(stage, 1, 2**52, ())
    yield Commit(1, 2**52)


def data(stage: int, step: int, index: int) -> Iterator[bytes]:
    """An activation and a gradient that are not numbers."""
    nan = b"\x00\x00\xc0\x7f" * (2 * 32 * 32)
    for kind in (Forward, Backward):
        yield encode_frame(kind(step, index, Attempt(2**40, 0), stage, 1), ACTIVATION) + nan


def forged_records(me: PeerId, victim: PeerId) -> Iterator[tuple[str, bytes]]:
    """Keys and values that the DHT takes from their signer and no node may believe."""
    yield "stage/1", b""
    yield "stage/1", b"\xc1"
    yield "stage/1", b"\x91" * 4000
    yield "stage/1", bytes(30_000)
    yield "stage/1", encode_record(StageRecord(victim, 1, 2**52, "serving", 2**52))
    yield "stage/2", encode_record(StageRecord(me, 1, 2**52, "serving", 2**52))
    yield "stage/0", encode_record(SpareRecord(me, float("inf")))
    yield "spares", encode_record(SpareRecord(victim, float("nan"), "left"))
    yield "spares", msgspec.msgpack.encode({"type": "spare", "peer": me, "capacity": -1.0})
    yield "weights/1", encode_record(OfferRecord(victim, 1, 1, 2, 2**52, float("nan"), 2**50, "x"))
    yield "progress", encode_record(ProgressRecord(me, 1, 2**52, float("nan"), 0, float("inf")))
    yield "manifest", encode_record(ManifestRecord(me, b"{}", b"", b""))
    yield "manifest", encode_record(ManifestRecord(victim, b"{}", b"ssh-rsa AAAA", b"x"))


# --- the siege ---------------------------------------------------------------------------------


async def besiege(hostile: Hostile, victims: list[PeerId]) -> None:
    held = [await hold_half_open(hostile, victims[number % len(victims)], number) for number in range(HALF_OPEN)]
    try:
        for victim in victims:
            await attack(hostile, victim)
        await flood(hostile, victims[0])
    finally:
        for writer in held:
            writer.transport.abort()


async def attack(hostile: Hostile, victim: PeerId) -> None:
    await store_forgeries(hostile, victim)
    for sent in malformed(hostile.hello, hostile.digest):
        assert await hostile.is_closed_after(victim, sent), sent[:80]
    for message in misplaced():
        assert await hostile.is_closed_after(victim, hostile.hello + encode_frame(message)), message
    await send_truncated(hostile, victim)
    await send_noise(hostile, victim)
    await send_absurd(hostile, victim)
    await fetch_nonsense(hostile, victim)


async def hold_half_open(hostile: Hostile, victim: PeerId, number: int) -> asyncio.StreamWriter:
    """Say nothing, or begin a frame and never end it."""
    _, writer = await hostile.open(victim, "fetch" if number % 4 == 3 else "link")
    writer.write((b"", hostile.hello, hostile.hello + HEARTBEAT[:-1], PREFIX.pack(1000, 0) + b"\x92")[number % 4])
    return writer


async def send_truncated(hostile: Hostile, victim: PeerId) -> None:
    activation = next(data(0, 1, 0))
    for whole in (HEARTBEAT, activation):
        step = 1 if len(whole) < 100 else len(whole) // 8
        for length in range(1, len(whole), step):
            await hostile.send(victim, hostile.hello + whole[:length])


async def send_noise(hostile: Hostile, victim: PeerId) -> None:
    chance = random.Random(SEED)
    for number in range(40):
        noise = chance.randbytes(chance.choice((1, 11, 12, 13, 100, 5000)))
        await hostile.send(victim, (hostile.hello if number % 2 else b"") + noise)
        await hostile.send(victim, noise, "fetch")


async def send_absurd(hostile: Hostile, victim: PeerId) -> None:
    """All on one link, which must live to the end: nothing here breaks a rule."""
    reader, writer = await hostile.open(victim)
    writer.write(hostile.hello)
    for message in absurd():
        writer.write(encode_frame(message))
    for stage in STAGES:
        for step, index in ((1, 0), (2**52, 0), (1, 2**20)):
            for frame in data(stage, step, index):
                writer.write(frame)
                await writer.drain()
    with suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            assert await reader.read(1) == b"never", "the link of a peer that broke no rule was closed"
    writer.close()


async def fetch_nonsense(hostile: Hostile, victim: PeerId) -> None:
    for request in (
        FetchRequest(1, 1, "0" * 64, 0),
        FetchRequest(1, 2**52, "", 2**50),
        FetchRequest(1023, 1, "", 0),
    ):
        assert isinstance(await hostile.ask(victim, encode_frame(request)), FetchRefused)
    for sent in (HEARTBEAT, PREFIX.pack(2**32 - 1, 0), PREFIX.pack(1, 1) + b"x", framed(b"\xc1")):
        assert await hostile.is_closed_after(victim, sent, "fetch")


async def flood(hostile: Hostile, victim: PeerId) -> None:
    """Two hundred streams at once: a bounded number is served, and they are not lost for later."""
    opened: list[asyncio.StreamWriter] = []

    async def open_one() -> None:
        with suppress(NetworkError):
            _, writer = await hostile.open(victim)
            opened.append(writer)
            writer.write(hostile.hello)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(STREAMS):
            tasks.create_task(open_one())
    assert 1 <= len(opened) <= STREAMS_MAX
    for writer in opened:
        writer.transport.abort()
    async with asyncio.timeout(CLOSED_TIMEOUT_S):
        while True:
            with suppress(NetworkError):
                _, writer = await hostile.open(victim)
                writer.close()
                return


async def store_forgeries(hostile: Hostile, victim: PeerId) -> None:
    me = hostile.p2p.peer_id
    for number, (key, value) in enumerate(forged_records(me, victim)):
        await hostile.p2p.store(f"{hostile.run_id}/{key}", f"{number}", value, dht_time() + 600 + number)


def identity_behind(peers: list[PeerId], folder: Path) -> Identity:
    """One whose PeerID loses every tie, so that its words alone never make it an owner."""
    for number in range(200):
        identity = Identity.load_or_create(folder / f"hostile-{number}.key")
        if identity.peer_id > max(peers):
            return identity
    raise AssertionError("no such identity was drawn")


def test_a_swarm_under_siege_goes_on(brood: Brood, nursery: Nursery) -> None:
    source = brood.folder / "run.toml"
    source.write_text(RUN, encoding="utf-8")
    join = nursery.found(str(source), 10**6)
    names = [f"stage-{stage}" for stage in STAGES]
    for stage, name in zip(STAGES, names, strict=True):
        nursery.join(name, join, stage)
    brood.until(lambda: committed(nursery) >= 3, "the third commit", START_TIMEOUT_S)
    processes = [psutil.Process(nursery.process_id(name)) for name in names]
    before = [process.memory_info().rss for process in processes]
    peers = [PeerId(nursery.events(name)[0]["peer"]) for name in names]

    async def main() -> None:
        known = parse_join(join)
        config = SwarmConfig(("/ip4/127.0.0.1/tcp/0",), initial_peers=known.addresses, door=Door.for_guest(known))
        async with asyncio.timeout(ATTACK_TIMEOUT_S):
            async with P2PNode.open(config, identity_behind(peers, brood.folder)) as p2p:
                await besiege(Hostile(p2p, known), peers)

    uvloop.run(main())
    reached = committed(nursery)
    brood.until(lambda: committed(nursery) >= reached + 5, "five more commits", START_TIMEOUT_S)
    growth = [process.memory_info().rss - size for process, size in zip(processes, before, strict=True)]
    assert max(growth) < GROWTH_BYTES_MAX, growth
    assert nursery.statuses() == {}
    for name in names:
        events = {event["event"] for event in nursery.events(name)}
        assert "peer.misbehaved" in events
        assert {"peer.dead", "peer.retired", "microbatch.reissued", "peer.left"}.isdisjoint(events)

    for process in processes:
        process.send_signal(signal.SIGTERM)
    brood.until(lambda: len(nursery.statuses()) == len(names), "the end of all nodes", END_TIMEOUT_S)
    assert set(nursery.statuses().values()) == {0}
    for name in names:
        assert "Traceback" not in nursery.log(name)


def committed(nursery: Nursery) -> int:
    """The last step, and that none before it is missing."""
    steps = [event["step"] for event in nursery.events("stage-0") if event["event"] == "step.committed"]
    assert steps == list(range(1, len(steps) + 1))
    return len(steps)
