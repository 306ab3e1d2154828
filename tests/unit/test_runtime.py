"""The node's own life: asked to stop it says goodbye and ends, and asked again it does not wait for that."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from tests.fakes import until
from understudy.node import runtime
from understudy.node.config import NodeConfig
from understudy.node.display import Display
from understudy.node.driving_data import DriverText
from understudy.node.runtime import Node
from understudy.node.swarm import StoredRecord, Swarm
from understudy.protocol.errors import TextError
from understudy.protocol.events import Action, BackwardJob, Event, JobDone, TimerFired
from understudy.protocol.ids import Attempt, Microbatch, PeerId
from understudy.protocol.manifest import preset
from understudy.protocol.records import PROGRESS_KEY, AnyRecord, ManifestRecord, SpareRecord, StageRecord, decode_record

TIMEOUT_S = 10.0
ME = PeerId("QmMe")
RUN = preset("tiny")


@dataclass
class LonelySwarm:
    """A swarm of one, whose DHT takes records in unless it ``is_stuck``."""

    peer_id: PeerId = ME
    stored: list[AnyRecord] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    asked: int = 0
    is_stuck: bool = False

    async def watch_daemon(self) -> None:
        await asyncio.Event().wait()

    async def serve_streams(self, protocol: str, callback: object) -> None:
        return

    async def store(self, key: str, subkey: str, value: bytes, expiration: float) -> bool:
        self.asked += 1
        if self.is_stuck:
            await asyncio.Event().wait()
        self.stored.append(decode_record(key.removeprefix(f"{RUN.run_id()}/"), PeerId(subkey), value))
        return True

    async def get_many(self, keys: Collection[str]) -> dict[str, list[StoredRecord]]:
        self.read |= set(keys)
        return {key: [] for key in keys}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A goodbye that nobody hears would take longer than these tests allow."""
    monkeypatch.setattr(runtime, "GOODBYE_TIMEOUT_S", 10 * TIMEOUT_S)


@asynccontextmanager
async def running(
    swarm: LonelySwarm, display: Display | None = None, stage: int = 1
) -> AsyncIterator[tuple[Node, asyncio.Task[str]]]:
    """A node that has joined; it must end by itself."""
    charter = ManifestRecord(ME, RUN.encode(), b"", b"")
    config = NodeConfig(join=cast(Any, None), identity_path=Path("unused"), stage=stage)
    node = Node(cast(Swarm, swarm), charter, config, display=display)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(node.run())
        await until(lambda: swarm.asked)
        yield node, task


def test_asked_to_stop_it_says_goodbye_and_ends() -> None:
    swarm = LonelySwarm()

    async def main() -> None:
        async with running(swarm) as (node, task):
            node.stop()
            assert await task == "asked"
            asked = swarm.asked
            node.stop()  # it is gone: nothing happens
            assert swarm.asked == asked

    asyncio.run(main())
    assert [record for record in swarm.stored if isinstance(record, SpareRecord)][-1].state == "left"


@pytest.mark.parametrize("pause_s", [0.0, 0.2], ids=["at once", "during the goodbye"])
def test_asked_twice_it_does_not_wait_for_the_goodbye(pause_s: float) -> None:
    swarm = LonelySwarm(is_stuck=True)

    async def main() -> None:
        async with running(swarm) as (node, task):
            node.stop()
            done, _ = await asyncio.wait([task], timeout=pause_s)
            assert not done, "it did not try to say goodbye"
            node.stop()
            assert await task == "asked"

    asyncio.run(main())
    assert swarm.stored == []


@pytest.mark.parametrize("is_timer", [True, False], ids=["timer", "job"])
def test_a_bug_ends_the_node_with_its_reason(is_timer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in a swarm: the loop logged it, and the node kept its stage and did nothing any more."""

    async def main() -> None:
        async with running(LonelySwarm()) as (node, task):
            handle = node._core.handle

            def break_down(event: Event, now: float) -> list[Action]:
                if isinstance(event, TimerFired if is_timer else JobDone):
                    raise ZeroDivisionError("made up")
                return handle(event, now)

            monkeypatch.setattr(node._core, "handle", break_down)
            loop = asyncio.get_running_loop()
            job = BackwardJob(Microbatch(1, 0), Attempt(1, 0), None, is_counted=True)
            loop.call_soon(node._tick) if is_timer else loop.call_soon(node._job_finished, job, None)
            await asyncio.wait([task])

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(main())
    assert caught.value.subgroup(ZeroDivisionError) is not None


def spare_records(swarm: LonelySwarm) -> list[SpareRecord]:
    return [record for record in swarm.stored if isinstance(record, SpareRecord) and record.state == "waiting"]


def test_a_text_that_cannot_be_read_leaves_a_spare_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    swarm, asked = LonelySwarm(), list[int]()

    def fail(text: DriverText, step: int) -> str:
        asked.append(step)
        return "row 7 of a.jsonl is not there"

    monkeypatch.setattr(DriverText, "failure", fail)

    async def main() -> None:
        async with running(swarm, stage=0) as (node, task):
            await until(lambda: not spare_records(swarm)[-1].can_drive)
            node._job_failed(TextError("the same, while somebody drives"))
            assert not task.done()
            node.stop()
            assert await task == "asked"

    asyncio.run(main())
    assert asked == [1]
    assert spare_records(swarm)[0].can_drive
    assert not [record for record in swarm.stored if isinstance(record, StageRecord)]
    words = "the run's text cannot be read here, S0 is left to others: row 7 of a.jsonl is not there"
    assert words in [record.getMessage() for record in caplog.records]


def test_a_node_that_stops_does_not_wait_for_a_text_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    is_over, is_reading = threading.Event(), threading.Event()

    def hang(text: DriverText, step: int) -> None:
        is_reading.set()
        is_over.wait()

    monkeypatch.setattr(DriverText, "failure", hang)

    async def main() -> None:
        async with running(LonelySwarm(), stage=0) as (node, task):
            await until(is_reading.is_set)
            node.stop()
            assert await task == "asked"

    try:
        asyncio.run(main())
    finally:
        is_over.set()


def test_whoever_sits_in_front_of_it_sees_it_and_the_progress_is_read_for_that() -> None:
    swarm, screen = LonelySwarm(), io.StringIO()
    display = Display(Console(file=screen, force_terminal=True, width=80))

    async def main() -> None:
        async with running(swarm, display) as (node, task):
            await until(lambda: "S1, incarnation 1 (asked for)" in screen.getvalue())
            await until(lambda: f"{RUN.run_id()}/{PROGRESS_KEY}" in swarm.read)
            node.stop()
            await task

    with display:
        asyncio.run(main())


def test_a_node_that_nobody_looks_at_shows_nothing() -> None:
    swarm = LonelySwarm()

    async def main() -> None:
        async with running(swarm) as (node, task):
            await until(lambda: swarm.read)
            node.stop()
            await task

    asyncio.run(main())
