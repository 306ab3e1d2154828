"""A member that holds nothing and says that it holds everything: it gets no stage, ends no run, and uses nothing up."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import uvloop

from tests.hostile.intruder import Entry, Intruder, identity_before
from tests.hostile.stage_play import GROWTH_BYTES_MAX, STAGES, Swarm
from tests.swarm.nursery import Nursery
from tests.swarm.processes import Brood
from understudy.node.dht.hivemind_dht import dht_time
from understudy.protocol.ids import INCARNATION_MAX, PeerId
from understudy.protocol.wire.frames import encode_frame
from understudy.protocol.wire.messages import (
    Alive,
    Announce,
    AnyMessage,
    Claim,
    Commit,
    CommitAck,
    Fenced,
    Heartbeat,
    Lost,
    Withdraw,
)
from understudy.protocol.wire.records import (
    AnyRecord,
    OfferRecord,
    ProgressRecord,
    StageRecord,
    encode_record,
    key_of,
)

logger = logging.getLogger(__name__)

ATTACK_TIMEOUT_S = 240.0
STANDSTILL_S_MAX = 15.0
LAST_STEP = 10**6
STEPS_AFTER_EACH = 10
RECORD_S = 600.0
HIGH = (2, 40, INCARNATION_MAX)

Words = Callable[[PeerId, int], Iterator[AnyMessage]]
"""What the member says, by its name and the step that the swarm is at."""


def highest_incarnation(me: PeerId, step: int) -> Iterator[AnyMessage]:
    for stage in STAGES:
        for incarnation in HIGH:
            yield Heartbeat(stage, incarnation, "serving", step)
            yield Announce(stage, incarnation, "recovering", step)
            yield Withdraw(stage, incarnation)
            yield Announce(stage, incarnation, "withdrawn", step)


def equal_incarnation(me: PeerId, step: int) -> Iterator[AnyMessage]:
    for stage in STAGES:
        for state in ("serving", "recovering", "left"):
            yield Heartbeat(stage, 1, state, step)


def run_is_over(me: PeerId, step: int) -> Iterator[AnyMessage]:
    for incarnation in (1, *HIGH):
        yield Announce(0, incarnation, "left", LAST_STEP)


def fences(me: PeerId, step: int) -> Iterator[AnyMessage]:
    yield Heartbeat(1, 2, "serving", step)
    for stage in STAGES:
        for incarnation in (1, *HIGH):
            yield Fenced(stage, incarnation, me, LAST_STEP)


def commits(me: PeerId, step: int) -> Iterator[AnyMessage]:
    for ahead in range(7):
        yield Commit(1, step + ahead)
        yield Commit(2, step + ahead)
        for stage in STAGES[1:]:
            yield CommitAck(stage, 1, step + ahead)


def deaths_and_lives(me: PeerId, step: int) -> Iterator[AnyMessage]:
    for stage in STAGES:
        yield Lost(stage, 1)
        yield Lost(stage, INCARNATION_MAX)
        yield Alive(stage, 1)


def claims(me: PeerId, step: int) -> Iterator[AnyMessage]:
    for stage in STAGES:
        for incarnation in HIGH:
            yield Claim(stage, incarnation, STAGES)


WORDS: tuple[Words, ...] = (
    highest_incarnation,
    equal_incarnation,
    run_is_over,
    fences,
    commits,
    deaths_and_lives,
    claims,
)


def false_records(me: PeerId, step: int) -> Iterator[AnyRecord]:
    """One under each key, as the DHT keeps no more."""
    for stage in STAGES:
        yield StageRecord(me, stage, INCARNATION_MAX, "serving", step)
        yield OfferRecord(me, stage, INCARNATION_MAX, stage, step, 1.0, 8, "nothing")
    yield ProgressRecord(me, INCARNATION_MAX, LAST_STEP, None, 0, 0.0)


async def speak(intruder: Intruder, victims: list[PeerId], said: list[AnyMessage]) -> None:
    """On one stream to each of them."""
    for victim in victims:
        _, writer = await intruder.open(victim)
        writer.write(intruder.hello + b"".join(map(encode_frame, said)))
        await writer.drain()
        writer.close()


async def publish(intruder: Intruder, step: int) -> None:
    records = list(false_records(intruder.p2p.peer_id, step))
    entries = [Entry(key_of(record), "", encode_record(record), dht_time() + RECORD_S) for record in records]
    assert all(await intruder.store(entries))


def test_a_member_that_claims_to_be_everybody(brood: Brood, nursery: Nursery) -> None:
    swarm = Swarm(brood, nursery)
    peers = swarm.peers()
    standstill_s: dict[str, float] = {}

    async def train_on(name: str, since: float) -> None:
        await asyncio.to_thread(swarm.until_steps, STEPS_AFTER_EACH)
        standstill_s[name] = swarm.standstill_s(since)

    async def main() -> None:
        async with asyncio.timeout(ATTACK_TIMEOUT_S):
            async with Intruder.at(swarm.join, identity_before(peers, brood.folder)) as intruder:
                me = intruder.p2p.peer_id
                for words in WORDS:
                    since = time.time()
                    await speak(intruder, peers, list(words(me, len(swarm.steps()))))
                    await train_on(words.__name__, since)
                since = time.time()
                await publish(intruder, len(swarm.steps()))
                await train_on("false_records", since)
                lost_at = time.time()
                psutil.Process(nursery.process_id("stage-1")).send_signal(signal.SIGKILL)
                await train_on("a stage is lost", lost_at)

    uvloop.run(main())
    logger.info("standstill, in seconds: %s", {name: round(seconds, 2) for name, seconds in standstill_s.items()})
    assert max(standstill_s.values()) < STANDSTILL_S_MAX, standstill_s
    recoveries = [event for event in nursery.events("spare-0") if event["event"] == "stage.recovered"]
    assert [(event["stage"], event["incarnation"] < INCARNATION_MAX) for event in recoveries] == [(1, True)]
    for name in ("stage-0", "stage-2"):
        assert not swarm.has(name, "peer.retired")
        assert not swarm.has(name, "peer.left")
    assert swarm.growth_bytes() < GROWTH_BYTES_MAX
