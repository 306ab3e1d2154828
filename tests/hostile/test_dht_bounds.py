"""A peer fills the DHT with records that it signed itself: the swarm is found, recovers and keeps its size."""

from __future__ import annotations

import asyncio
import time

import uvloop

from tests.hostile.intruder import Entry, Intruder, identity_before
from tests.hostile.stage_play import GROWTH_BYTES_MAX, STAGES, Swarm
from tests.swarm.nursery import Nursery
from tests.swarm.processes import Brood
from understudy.node.dht.hivemind_dht import dht_time
from understudy.node.joining import obtain_manifest
from understudy.protocol.ids import PeerId
from understudy.protocol.wire.records import (
    MANIFEST_KEY,
    SPARES_KEY,
    StageRecord,
    decode_record,
    stage_key,
)

ATTACK_TIMEOUT_S = 200.0
LATE_S = 10**6
SUBKEYS_OF_ONE = 256
LARGE_SUBKEYS, LARGE_BYTES = 100, 30_000
KEYS = 50
RECOVERY_S_MAX = 15.0


async def crowd_out(intruder: Intruder) -> None:
    """As many one-byte records as a reader takes under each key, all before the honest ones by their owner."""
    keys = [stage_key(1), SPARES_KEY, MANIFEST_KEY]
    expiration = dht_time() + LATE_S
    for key in keys:
        await intruder.store([Entry(key, f"{number}", b"x", expiration) for number in range(SUBKEYS_OF_ONE)])


async def fill_memory(intruder: Intruder) -> None:
    """Many large records under one key, which every owner reads."""
    expiration = dht_time() + LATE_S
    await intruder.store(
        [Entry(SPARES_KEY, f"large-{number}", bytes(LARGE_BYTES), expiration) for number in range(LARGE_SUBKEYS)]
    )


async def evict(intruder: Intruder) -> int:
    """More keys than a peer keeps, all of which expire late; how often one was taken."""
    expiration = dht_time() + LATE_S
    said = await intruder.store([Entry(f"/{number}", "x", b"x", expiration) for number in range(KEYS)])
    return sum(said)


async def owners_shown(intruder: Intruder) -> set[PeerId]:
    """The owners of the stages, as who reads the DHT finds them."""
    keys = {f"{intruder.join.run_id}/{stage_key(stage)}": stage_key(stage) for stage in STAGES}
    shown = set()
    for name, stored in (await intruder.p2p.get_many(list(keys))).items():
        for entry in stored:
            if entry.owner != intruder.p2p.peer_id:
                record = decode_record(keys[name], entry.owner, entry.value)
                assert isinstance(record, StageRecord)
                shown.add(entry.owner)
    return shown


def test_a_flooded_dht(brood: Brood, nursery: Nursery) -> None:
    swarm = Swarm(brood, nursery)
    peers = swarm.peers()

    async def attack() -> None:
        async with asyncio.timeout(ATTACK_TIMEOUT_S):
            async with Intruder.at(swarm.join, identity_before(peers, brood.folder)) as intruder:
                await crowd_out(intruder)
                await fill_memory(intruder)
                taken = await evict(intruder)
                await asyncio.to_thread(swarm.until_steps, 100)  # every node has read all keys, and stored its own
                shown = await owners_shown(intruder)
                manifest, _ = await obtain_manifest(intruder.p2p, intruder.join)
                assert shown >= set(peers[: len(STAGES)])
                assert manifest.run_id() == intruder.join.run_id
                assert taken == 0

    uvloop.run(attack())
    assert swarm.growth_bytes() < GROWTH_BYTES_MAX
    struck = time.time()
    nursery.kill("stage-1")
    swarm.until(lambda: swarm.has("spare-0", "peer.serving"), "the spare to take S1")
    swarm.until_steps(2)
    assert swarm.standstill_s(struck) < RECOVERY_S_MAX
