"""A peer that says as much as the line takes: the swarm trains on, and no disk fills with what is said of it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import uvloop

from tests.hostile.intruder import Intruder
from tests.hostile.stage_play import GROWTH_BYTES_MAX, Swarm
from tests.swarm.nursery import Nursery
from tests.swarm.processes import Brood
from understudy.node.p2p.identity import Identity
from understudy.protocol.errors import NetworkError
from understudy.protocol.ids import PeerId
from understudy.protocol.wire.frames import encode_frame
from understudy.protocol.wire.messages import Claim, Lost

ATTACK_TIMEOUT_S = 100.0
ATTACK_S = 4.0
CALM_STEPS = 40
SPEED_LEFT_MIN = 0.3
"""Of the steps a second: the sender itself takes a core."""
MEANINGLESS = encode_frame(Lost(1, 1)) * 2000
FAULTY = encode_frame(Claim(900, 1, ()))
"""A stage that the run does not have."""
LINES_MAX = 40


async def send_as_fast_as_it_goes(intruder: Intruder, victim: PeerId) -> int:
    """Small messages that mean nothing on one stream; how many were taken."""
    _, writer = await intruder.open(victim)
    writer.write(intruder.hello)
    sent, ends = 0, time.monotonic() + ATTACK_S
    while time.monotonic() < ends:
        writer.write(MEANINGLESS)
        with suppress(TimeoutError):
            async with asyncio.timeout(ends - time.monotonic()):
                await writer.drain()
                sent += 2000
    writer.transport.abort()
    return sent


async def break_the_rules(intruder: Intruder, victim: PeerId) -> int:
    """Faulty messages, each on a stream of its own, and such as the core refuses; how many."""
    sent, ends = 0, time.monotonic() + ATTACK_S
    while time.monotonic() < ends:
        for data in (intruder.hello + b"\x00" * 12, intruder.hello + FAULTY):
            with suppress(NetworkError):
                await intruder.send(victim, data)
                sent += 1
    return sent


def test_a_flooded_swarm(brood: Brood, nursery: Nursery) -> None:
    swarm = Swarm(brood, nursery, spares=0)
    driver = swarm.peers()[0]
    began = time.time()
    swarm.until_steps(CALM_STEPS)
    calm = CALM_STEPS / (time.time() - began)

    async def attack() -> None:
        async with asyncio.timeout(ATTACK_TIMEOUT_S):
            identity = Identity.load_or_create(brood.folder / "flood.key")
            async with Intruder.at(swarm.join, identity) as intruder:
                struck, steps = time.time(), len(swarm.steps())
                sent = await send_as_fast_as_it_goes(intruder, driver)
                speed = (len(swarm.steps()) - steps) / (time.time() - struck)
                assert speed > SPEED_LEFT_MIN * calm, f"{sent / ATTACK_S:.0f} messages/s were taken"
                await break_the_rules(intruder, driver)

    uvloop.run(attack())
    complaints = [line for line in swarm.log_lines("stage-0") if "broke the protocol" in line]
    misbehaved = [event for event in nursery.events("stage-0") if event["event"] == "peer.misbehaved"]
    assert complaints
    assert misbehaved
    assert len(complaints) + len(misbehaved) < LINES_MAX
    assert swarm.growth_bytes() < GROWTH_BYTES_MAX
    swarm.until_steps(3)
