"""The node's own life: asked to stop it says goodbye and ends, and asked again it does not wait for that."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest
import torch
from rich.console import Console

from tests.fakes import MemoryWriter, as_writer, reader_of, until
from tests.seals import NamedSeal
from understudy.node import runtime
from understudy.node.config import NodeConfig
from understudy.node.data.data_check import DriverText
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.dht.signing import StoredRecord
from understudy.node.p2p.streams import StreamCallback
from understudy.node.runtime import Node
from understudy.node.ui.display import Display
from understudy.protocol.actions import Action, CancelFetches, Fetch
from understudy.protocol.errors import (
    LocalProtocolError,
    NetworkError,
    TextError,
    TrainingError,
    UnderstudyError,
    WeightsError,
)
from understudy.protocol.events import (
    Event,
    JobDone,
    MessageReceived,
    PeerUnreachable,
    SendFailed,
    StopRequested,
    TimerFired,
)
from understudy.protocol.ids import Attempt, Microbatch, PeerId
from understudy.protocol.jobs import Applied, ApplyJob, BackwardJob
from understudy.protocol.manifest import PROTOCOL_VERSION
from understudy.protocol.pipeline.updates import OWN_SKIPS_MAX
from understudy.protocol.presets import preset
from understudy.protocol.wire.contact import Contact
from understudy.protocol.wire.frames import encode_frame
from understudy.protocol.wire.messages import FetchEnd, Forward, Heartbeat, Hello
from understudy.protocol.wire.records import (
    PROGRESS_KEY,
    AnyRecord,
    ManifestRecord,
    SpareRecord,
    StageRecord,
    decode_record,
)

TIMEOUT_S = 10.0
ME, PEER = PeerId("QmMe"), PeerId("QmPeer")
RUN = preset("tiny")


@dataclass
class LonelySwarm:
    """A swarm of one, whose DHT takes records in unless it ``is_stuck``."""

    identity: NamedSeal = field(default_factory=lambda: NamedSeal(ME))
    peer_id: PeerId = ME
    stored: list[AnyRecord] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    asked: int = 0
    is_stuck: bool = False
    callbacks: dict[str, StreamCallback] = field(default_factory=dict)

    def is_observer(self, peer: PeerId) -> bool:
        return False

    async def watch_daemon(self) -> None:
        await asyncio.Event().wait()

    async def keep_door(self) -> None:
        await asyncio.Event().wait()

    async def serve_streams(self, protocol: str, callback: StreamCallback) -> None:
        self.callbacks[protocol] = callback

    async def store(self, key: str, subkey: str, value: bytes, expiration: float) -> bool:
        self.asked += 1
        if self.is_stuck:
            await asyncio.Event().wait()
        self.stored.append(decode_record(key.removeprefix(f"{RUN.run_id()}/"), PeerId(subkey), value))
        return True

    contact = Contact()
    is_local = True

    def note_contact(self, peer: PeerId, contact: Contact) -> None:
        """Nobody is dialled here."""

    async def get_many(self, keys: Collection[str]) -> dict[str, list[StoredRecord]]:
        self.read |= set(keys)
        return {key: [] for key in keys}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A goodbye that nobody hears would take longer than these tests allow."""
    monkeypatch.setattr(runtime, "GOODBYE_TIMEOUT_S", 10 * TIMEOUT_S)


@asynccontextmanager
async def running(
    p2p: LonelySwarm, display: Display | None = None, stage: int = 1
) -> AsyncIterator[tuple[Node, asyncio.Task[str]]]:
    """A node that has joined; it must end by itself."""
    signed_manifest = ManifestRecord(ME, RUN.encode(), b"", b"")
    config = NodeConfig(join=cast(Any, None), identity_path=Path("unused"), stage=stage)
    node = Node(cast(P2PNode, p2p), signed_manifest, config, display=display)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(node.run())
        await until(lambda: p2p.asked)
        yield node, task


def test_asked_to_stop_it_says_goodbye_and_ends() -> None:
    p2p = LonelySwarm()

    async def main() -> None:
        async with running(p2p) as (node, task):
            node.stop()
            assert await task == "asked"
            asked = p2p.asked
            node.stop()  # it is gone: nothing happens
            assert p2p.asked == asked

    asyncio.run(main())
    assert [record for record in p2p.stored if isinstance(record, SpareRecord)][-1].state == "left"


@pytest.mark.parametrize("pause_s", [0.0, 0.2], ids=["at once", "during the goodbye"])
def test_asked_twice_it_does_not_wait_for_the_goodbye(pause_s: float) -> None:
    p2p = LonelySwarm(is_stuck=True)

    async def main() -> None:
        async with running(p2p) as (node, task):
            node.stop()
            done, _ = await asyncio.wait([task], timeout=pause_s)
            assert not done, "it did not try to say goodbye"
            node.stop()
            assert await task == "asked"

    asyncio.run(main())
    assert p2p.stored == []


@asynccontextmanager
async def broken_at(kind: type, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Node, LonelySwarm]]:
    """A node whose core has a bug that an event of this kind shows; the node must end with it."""
    p2p = LonelySwarm()
    async with running(p2p) as (node, task):
        handle = node._core.handle

        def break_down(event: Event, now: float) -> list[Action]:
            if isinstance(event, kind):
                raise LocalProtocolError("made up")
            return handle(event, now)

        monkeypatch.setattr(node._core, "handle", break_down)
        yield node, p2p
        await asyncio.wait([task])


BACKWARD = BackwardJob(Microbatch(1, 0), Attempt(1, 0), None, is_counted=True)
SHOWN_BY: dict[type, Callable[[Node], object]] = {
    TimerFired: lambda node: node._tick(),
    JobDone: lambda node: node._job_finished(
        BackwardJob(Microbatch(1, 0), Attempt(1, 0), None, is_counted=True), None, 0.1
    ),
    PeerUnreachable: lambda node: node._peer_gone(ME),
    SendFailed: lambda node: node._send_failed(PEER, Forward(1, 0, Attempt(1, 0), 1, 1), None),
    StopRequested: lambda node: node.stop(),
}


@pytest.mark.parametrize("kind", SHOWN_BY, ids=lambda kind: kind.__name__)
def test_a_bug_ends_the_node_with_its_reason(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in a swarm: the loop logged it, and the node kept its stage and did nothing any more."""

    async def main() -> None:
        async with broken_at(kind, monkeypatch) as (node, _):
            asyncio.get_running_loop().call_soon(SHOWN_BY[kind], node)

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(main())
    assert caught.value.subgroup(LocalProtocolError) is not None


def test_a_bug_that_a_message_shows_ends_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams end with whatever their callbacks raise: the core was half changed, and the node went on."""

    async def main() -> None:
        async with broken_at(MessageReceived, monkeypatch) as (node, p2p):
            hello = Hello(PROTOCOL_VERSION, RUN.digest())
            data = b"".join(map(encode_frame, (hello, Heartbeat(1, 1, "serving", 0))))
            with suppress(LocalProtocolError):  # as a stream does
                await p2p.callbacks[node._network.protocol](PEER, reader_of(data), as_writer(MemoryWriter()))

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(main())
    assert caught.value.subgroup(LocalProtocolError) is not None


def test_its_capacity_is_measured_on_the_compute_thread_under_its_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was measured before the threads were set, on the event loop."""
    p2p, seen = LonelySwarm(), []

    def measure(device: str, threads: int) -> float:
        seen.append((device, threads, torch.get_num_threads(), threading.current_thread().name.partition("_")[0]))
        return 42.0

    monkeypatch.setattr(runtime, "measure_capacity", measure)

    async def main() -> None:
        async with running(p2p) as (node, task):
            await until(lambda: p2p.stored)
            node.stop()
            await task

    asyncio.run(main())
    assert seen == [("cpu", 1, 1, "compute")]
    assert [record.capacity for record in p2p.stored if isinstance(record, SpareRecord)][:1] == [42.0]


def test_a_tensor_that_got_lost_is_told_of_when_the_core_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue overflows while the core's actions are being done: they come first."""
    told: list[Event] = []

    async def main() -> None:
        async with running(LonelySwarm()) as (node, task):
            monkeypatch.setattr(node._core, "handle", lambda event, now: told.append(event) or [])
            lost = Forward(1, 0, Attempt(1, 0), 1, 1)
            node._send_failed(PEER, lost, "tensor")
            assert told == []
            await until(lambda: told)
            assert told == [SendFailed(PEER, lost, "tensor")]
            monkeypatch.undo()
            node.stop()
            node.stop()
            await task

    asyncio.run(main())


def test_what_a_peer_does_wrong_costs_the_peer_its_link() -> None:
    """Whatever the core objects to: the node goes on, and the stream on which it was said ends."""
    wrong = [Hello(PROTOCOL_VERSION, RUN.digest()), Heartbeat(999, 1, "serving", 0), FetchEnd()]

    async def main() -> None:
        async with running(LonelySwarm()) as (node, task):
            for message in wrong:
                frames = (Hello(PROTOCOL_VERSION, RUN.digest()), message, Heartbeat(2, 7, "serving", 0))
                reader = reader_of(b"".join(map(encode_frame, frames)))
                await node._network.receive(PEER, reader, as_writer(MemoryWriter()))
            assert 2 not in node._core.state.membership.groups
            node.stop()
            assert await task == "asked"

    asyncio.run(main())


def test_a_bug_in_a_fetch_ends_the_node_and_bad_weights_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[UnderstudyError] = [
        WeightsError("of another shape"),
        NetworkError("cut"),
        LocalProtocolError("made up"),
    ]
    fetch = Fetch((2, 2), PEER, "stage", "digest", 8)

    async def main() -> None:
        async with running(LonelySwarm()) as (node, task):
            monkeypatch.setattr(node._fetches.fetcher, "fetch", AsyncMock(side_effect=failures))
            for _ in failures:
                assert not task.done()
                node._perform(fetch)
                await until(lambda: not node._fetches.under_way or task.done())

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(main())
    assert caught.value.subgroup(LocalProtocolError) is not None


def test_fetches_that_ended_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """S1 and Sn fetch a copy after every step, all under one claim."""
    copies = [Fetch((0, 1), PEER, "embedding", f"digest {step}", 8) for step in range(20)]

    async def main() -> None:
        async with running(LonelySwarm()) as (node, task):
            monkeypatch.setattr(node._fetches.fetcher, "fetch", AsyncMock(side_effect=NetworkError("cut")))
            for copy in copies:
                node._perform(copy)
            assert len(node._fetches.under_way[0, 1]) == len(copies)
            await until(lambda: not node._fetches.under_way)
            node.stop()
            await task

    asyncio.run(main())


def test_fetches_are_cancelled_by_their_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(LonelySwarm()) as (node, task):
            monkeypatch.setattr(node._fetches.fetcher, "fetch", lambda fetch: asyncio.Event().wait())
            for claim in ((0, 1), (0, 1), (2, 2)):
                node._perform(Fetch(claim, PEER, "stage", "digest", 8))
            node._perform(CancelFetches((0, 1)))
            await until(lambda: list(node._fetches.under_way) == [(2, 2)])
            node.stop()
            await task

    asyncio.run(main())


def test_a_stage_that_cannot_be_trained_here_ends_the_node_after_its_goodbye() -> None:
    p2p = LonelySwarm()

    async def main() -> None:
        async with running(p2p) as (node, task):
            await until(lambda: node._core.state.is_serving)
            for step in range(1, OWN_SKIPS_MAX + 1):
                node._job_finished(ApplyJob(step, 1), Applied(is_skipped=True, is_own=True), 0.1)
            await asyncio.wait([task])
            assert any(getattr(record, "state", "") == "left" for record in p2p.stored), "its successor need not wait"
            await task

    with pytest.raises((TrainingError, BaseExceptionGroup)) as caught:
        asyncio.run(main())
    assert "5 updates of S1 in a row were not finite, by this node's own doing" in str(_cause(caught.value))


def _cause(error: BaseException) -> BaseException:
    return _cause(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def spare_records(p2p: LonelySwarm) -> list[SpareRecord]:
    return [record for record in p2p.stored if isinstance(record, SpareRecord) and record.state == "waiting"]


def test_a_text_that_cannot_be_read_leaves_a_spare_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    p2p, asked = LonelySwarm(), list[int]()

    def fail(text: DriverText, step: int) -> str:
        asked.append(step)
        return "row 7 of a.jsonl is not there"

    monkeypatch.setattr(DriverText, "failure", fail)

    async def main() -> None:
        async with running(p2p, stage=0) as (node, task):
            await until(lambda: not spare_records(p2p)[-1].can_drive)
            node._job_failed(TextError("the same, while somebody drives"))
            assert not task.done()
            node.stop()
            assert await task == "asked"

    asyncio.run(main())
    assert asked == [1]
    assert spare_records(p2p)[0].can_drive
    assert not [record for record in p2p.stored if isinstance(record, StageRecord)]
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
    p2p, screen = LonelySwarm(), io.StringIO()
    display = Display(Console(file=screen, force_terminal=True, width=80))

    async def main() -> None:
        async with running(p2p, display) as (node, task):
            await until(lambda: "S1, incarnation 1 (asked for)" in screen.getvalue())
            await until(lambda: f"{RUN.run_id()}/{PROGRESS_KEY}" in p2p.read)
            node.stop()
            await task

    with display:
        asyncio.run(main())


def test_a_node_that_nobody_looks_at_shows_nothing() -> None:
    p2p = LonelySwarm()

    async def main() -> None:
        async with running(p2p) as (node, task):
            await until(lambda: p2p.read)
            node.stop()
            await task

    asyncio.run(main())
