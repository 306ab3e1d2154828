"""Links over streams that break, refuse, stall and lie."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import uvloop
from torch import Tensor

from tests.fakes import FakeStreams, MemoryWriter, Opened, as_writer, reader_of, run_leaping, until
from understudy.node.links import framing
from understudy.node.links import link as links
from understudy.node.links import network as module
from understudy.node.links.framing import read_link_frame, write_frame
from understudy.node.links.link import LinkRules, Listener
from understudy.node.links.network import Network
from understudy.node.p2p.zero_copy import open_unix_stream, start_unix_streams
from understudy.protocol.errors import NetworkError, PeerRefusedError
from understudy.protocol.ids import Attempt, PeerId
from understudy.protocol.manifest import PROTOCOL_VERSION
from understudy.protocol.wire.contact import Contact
from understudy.protocol.wire.frames import PREFIX, encode_frame
from understudy.protocol.wire.messages import (
    AnyMessage,
    Backward,
    Claim,
    Commit,
    Fenced,
    Filler,
    Forward,
    Heartbeat,
    Hello,
    LeaseRelease,
    LeaseRequest,
    Lost,
)
from understudy.protocol.wire.tensors import TensorHeader

ACTIVATION = TensorHeader("float32", (1, 2, 3))
RULES = LinkRules("run-0", "d" * 64, ACTIVATION)
CONTACT = Contact(("/ip4/5.5.5.9/tcp/1",), relays=True, reachability="public")
HELLO = Hello(PROTOCOL_VERSION, RULES.manifest_digest, CONTACT)
HELLO_BYTES = encode_frame(HELLO)
PEER, OTHER = PeerId("QmPeer"), PeerId("QmOther")
FORWARD = Forward(8, 1, Attempt(1, 0), 1, 1)
TIMEOUT_S = 5.0


def beat(step: int) -> Heartbeat:
    return Heartbeat(1, 1, "serving", step)


BEAT_BYTES = len(encode_frame(beat(1)))


class Bench:
    """A `Network` over fake streams, and what it told its owner."""

    def __init__(self, streams: FakeStreams) -> None:
        self.streams = streams
        self.delivered: list[tuple[PeerId, AnyMessage, Tensor | None]] = []
        self.gone: list[PeerId] = []
        self.on_delivery: Callable[[AnyMessage], None] = lambda _: None
        self.lost: list[tuple[PeerId, AnyMessage]] = []
        self.contacts: list[tuple[PeerId, Contact]] = []
        self.failed: list[tuple[PeerId, str]] = []
        self.owners: set[PeerId] = set()
        listener = Listener(
            self._deliver,
            self.gone.append,
            lambda peer, message, _: self.lost.append((peer, message)),
            lambda peer, contact: self.contacts.append((peer, contact)),
            lambda peer, reason: self.failed.append((peer, reason)),
            lambda: CONTACT,
            lambda peer: peer in self.observers,
            self.owners.__contains__,
        )
        self.observers: set[PeerId] = set()
        self.network = Network(streams, RULES, listener)

    def _deliver(self, peer: PeerId, message: AnyMessage, tensor: Tensor | None) -> None:
        self.delivered.append((peer, message, tensor))
        self.on_delivery(message)

    async def receive(self, data: bytes) -> list[AnyMessage]:
        """What is delivered of a stream that brings these bytes."""
        await self.network.receive(PEER, reader_of(data), as_writer(MemoryWriter()))
        return [message for _, message, _ in self.delivered]


@asynccontextmanager
async def bench(streams: FakeStreams | None = None) -> AsyncIterator[Bench]:
    async with asyncio.timeout(TIMEOUT_S):
        made = Bench(streams or FakeStreams())
        async with asyncio.TaskGroup() as tasks:
            made.network.start(tasks)
            yield made
            made.network.stop()


@asynccontextmanager
async def bench_of_any_length() -> AsyncIterator[Bench]:
    """For a loop whose time costs none."""
    made = Bench(FakeStreams())
    async with asyncio.TaskGroup() as tasks:
        made.network.start(tasks)
        yield made
        made.network.stop()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(main())  # type: ignore[arg-type]


async def sent(opened: Opened) -> list[AnyMessage]:
    """The whole messages that went into a stream."""
    reader = reader_of(bytes(opened.writer.data))
    messages: list[AnyMessage] = []
    while True:
        try:
            frame = await read_link_frame(reader, ACTIVATION, TIMEOUT_S)
        except NetworkError:
            return messages
        if frame is None:
            return messages
        messages.append(frame[0])


# --- sending -----------------------------------------------------------------------------------


def test_messages_go_out_in_order_after_a_hello() -> None:
    async def main() -> None:
        async with bench() as b:
            for step in range(5):
                b.network.send(PEER, beat(step), None)
            await b.network.flush(TIMEOUT_S)
            (opened,) = b.streams.opened
            assert (opened.peer, opened.protocol) == (PEER, RULES.protocol)
            assert await sent(opened) == [HELLO, *(beat(step) for step in range(5))]

    run(main)


def test_tensors_have_links_of_their_own() -> None:
    async def main() -> None:
        async with bench() as b:
            b.network.send(PEER, FORWARD, torch.ones(1, 2, 3))
            b.network.send(PEER, beat(1), None)
            b.network.send(PEER, Backward(8, 1, Attempt(1, 0), 1, 1), torch.ones(1, 2, 3))
            b.network.send(OTHER, beat(2), None)
            await b.network.flush(TIMEOUT_S)
            assert [opened.peer for opened in b.streams.opened] == [PEER, PEER, PEER, OTHER]
            kinds = [[type(message) for message in await sent(opened)] for opened in b.streams.opened]
            assert kinds == [[Hello, Forward], [Hello, Heartbeat], [Hello, Backward], [Hello, Heartbeat]]

    run(main)


def test_tensors_to_a_peer_take_its_links_in_turn() -> None:
    """Whoever else is sent tensors in between: two peers would otherwise get every other link only."""

    async def main() -> None:
        async with bench() as b:
            for index in range(2 * module.DATA_LINKS):
                for peer in (PEER, OTHER):
                    b.network.send(peer, Forward(8, index, Attempt(1, 0), 1, 1), torch.ones(1, 2, 3))
            await b.network.flush(TIMEOUT_S)
            for peer in (PEER, OTHER):
                came = [await sent(opened) for opened in b.streams.opened if opened.peer == peer]
                carried = [[message.index for message in link if isinstance(message, Forward)] for link in came]
                assert carried == [[first, first + module.DATA_LINKS] for first in range(module.DATA_LINKS)]
            b.network.close(PEER)
            assert PEER not in b.network._tensors_sent
            assert {peer for peer, _ in b.network._links} == {OTHER}

    run(main)


@pytest.mark.parametrize("extra_bytes", [-1, 0, 1, BEAT_BYTES - 1])
def test_a_message_that_broke_with_its_stream_is_sent_again(extra_bytes: int) -> None:
    """Whatever was cut off, nothing is lost: at most the message in flight comes twice."""

    async def main() -> None:
        breaks_after = len(HELLO_BYTES) + 2 * BEAT_BYTES + extra_bytes
        async with bench(FakeStreams(breaks_after=[breaks_after])) as b:
            for step in range(1, 6):
                b.network.send(PEER, beat(step), None)
            await b.network.flush(TIMEOUT_S)
            first, second = [await sent(opened) for opened in b.streams.opened]
            whole = 1 if extra_bytes < 0 else 2
            assert first == [HELLO, *(beat(step) for step in range(1, whole + 1))]
            assert second == [HELLO, *(beat(step) for step in range(whole + 1, 6))]
            assert b.gone == []

    run(main)


def test_a_stream_that_breaks_at_the_hello_is_opened_again() -> None:
    async def main() -> None:
        async with bench(FakeStreams(breaks_after=[3, 0])) as b:
            b.network.send(PEER, beat(1), None)
            await b.network.flush(TIMEOUT_S)
            assert len(b.streams.opened) == 3
            assert await sent(b.streams.opened[-1]) == [HELLO, beat(1)]

    run(main)


class SocketStreams:
    """Streams over a unix socket, as node/p2p/control.py opens them; the other side only reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writers: list[asyncio.StreamWriter] = []

    async def open_stream(
        self, peer: PeerId, protocol: str, timeout_s: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await open_unix_stream(self.path, 1024)
        self.writers.append(writer)
        return reader, writer


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("is_sent_first", [True, False])
def test_a_stream_that_ends_just_as_something_is_sent_is_opened_again(
    tmp_path: Path, make_loop: Callable[[], asyncio.AbstractEventLoop], is_sent_first: bool
) -> None:
    """Found in a swarm: the sender woke up between the end of the stream and the news of it, and the node died."""

    async def main() -> None:
        came: list[AnyMessage] = []

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while frame := await read_link_frame(reader, ACTIVATION, TIMEOUT_S):
                came.append(frame[0])
            writer.close()

        streams = SocketStreams(tmp_path / "socket")
        async with (
            asyncio.timeout(TIMEOUT_S),
            await start_unix_streams(accept, streams.path, 1024),
            asyncio.TaskGroup() as tasks,
        ):
            network = Network(streams, RULES, Listener(lambda *_: None, contact=lambda: CONTACT))
            network.start(tasks)
            network.send(PEER, beat(1), None)
            await network.flush(TIMEOUT_S)
            await until(lambda: came == [HELLO, beat(1)])
            actions = [lambda: network.send(PEER, beat(2), None), streams.writers[0].transport.abort]
            for act in actions if is_sent_first else reversed(actions):
                act()
            await until(lambda: came[-2:] == [HELLO, beat(2)])
            network.stop()
            await until(lambda: all(writer.transport.is_closing() for writer in streams.writers))

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


def test_the_end_of_an_idle_stream_is_noticed_and_a_refusal_means_gone() -> None:
    async def main() -> None:
        refusal = PeerRefusedError("gone")
        async with bench(FakeStreams(outcomes=[None, refusal])) as b:
            b.network.send(PEER, beat(1), None)
            await b.network.flush(TIMEOUT_S)
            assert b.gone == []
            b.streams.opened[0].end()
            await until(lambda: b.gone)
            assert b.gone == [PEER]
            assert b.streams.opened[0].writer.is_closed

    run(main)


def test_a_peer_that_cannot_be_reached_is_not_gone_and_the_next_message_tries_again() -> None:
    async def main() -> None:
        async with bench(FakeStreams(outcomes=[NetworkError("silence")])) as b:
            b.network.send(PEER, beat(1), None)
            await b.network.flush(TIMEOUT_S)
            assert b.gone == []
            assert b.failed == [(PEER, "silence")]
            assert b.streams.opened == []
            await until(lambda: all(task.done() for _, task in b.network._links.values()))
            b.network.send(PEER, beat(2), None)
            await b.network.flush(TIMEOUT_S)
            assert await sent(b.streams.opened[0]) == [HELLO, beat(2)]  # the protocol heals the loss of the first

    run(main)


def test_an_idle_link_is_closed_and_opened_again_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "IDLE_TIMEOUT_S", 0.01)

    async def main() -> None:
        async with bench() as b:
            b.network.send(PEER, beat(1), None)
            await until(lambda: b.streams.opened and b.streams.opened[0].writer.is_closed)
            await until(lambda: all(task.done() for _, task in b.network._links.values()))
            assert b.gone == []
            b.network.send(PEER, beat(2), None)
            await until(lambda: len(b.streams.opened) == 2)
            await until(lambda: len(b.streams.opened[1].writer.data) == len(HELLO_BYTES) + BEAT_BYTES)

    run(main)


def test_the_queue_of_a_stalled_link_is_bounded_and_drops_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "QUEUE_MESSAGES_MAX", 3)

    async def main() -> None:
        async with bench() as b:
            for step in range(10):  # before the link's task runs for the first time
                b.network.send(PEER, beat(step), None)
            await b.network.flush(TIMEOUT_S)
            assert await sent(b.streams.opened[0]) == [HELLO, beat(7), beat(8), beat(9)]

    run(main)


def test_a_peer_that_takes_nothing_in_costs_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "frame_timeout_s", lambda frame_bytes: 0.01)

    async def main() -> None:
        async with bench() as b:
            b.network.send(PEER, beat(1), None)
            await b.network.flush(TIMEOUT_S)
            b.streams.opened[0].writer.is_stuck = True
            b.network.send(PEER, beat(2), None)
            await until(lambda: len(b.streams.opened) == 2)
            await b.network.flush(TIMEOUT_S)
            assert await sent(b.streams.opened[1]) == [HELLO, beat(2)]
            assert b.streams.opened[0].writer.is_closed

    run(main)


def activation(index: int) -> Forward:
    return Forward(8, index, Attempt(1, 0), 1, 1)


def send_tensors(network: Network, indices: Sequence[int]) -> None:
    """All on one link."""
    for index in indices:
        network.send(PEER, activation(index), torch.ones(1, 2, 3))


@pytest.fixture
def one_data_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DATA_LINKS", 1)


@pytest.mark.usefixtures("one_data_link")
def test_an_overflow_while_a_message_is_written_drops_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was being written was the oldest, was dropped as such, and then one more as written."""
    monkeypatch.setattr(links, "QUEUE_MESSAGES_MAX", 3)

    async def main() -> None:
        async with bench() as b:
            send_tensors(b.network, [0])
            await b.network.flush(TIMEOUT_S)
            writer = b.streams.opened[0].writer
            go_on = asyncio.Event()
            drain = writer.drain

            async def held() -> None:
                await go_on.wait()
                await drain()

            monkeypatch.setattr(writer, "drain", held)
            send_tensors(b.network, [1])
            await until(lambda: b.network._links[PEER, 1][0]._sending is not None)
            send_tensors(b.network, range(2, 7))
            go_on.set()
            await b.network.flush(TIMEOUT_S)
            came = [message.index for message in await sent(b.streams.opened[0]) if isinstance(message, Forward)]
            assert came == [0, 1, 4, 5, 6]
            assert b.lost == [(PEER, activation(2)), (PEER, activation(3))]

    run(main)


@pytest.mark.usefixtures("one_data_link")
def test_tensors_for_a_peer_that_cannot_be_reached_are_told_of() -> None:
    async def main() -> None:
        async with bench(FakeStreams(outcomes=[NetworkError("silence")])) as b:
            send_tensors(b.network, range(3))
            b.network.send(PEER, beat(1), None)  # said again by the protocol, if it matters
            await until(lambda: len(b.lost) == 3)
            assert b.lost == [(PEER, activation(index)) for index in range(3)]

    run(main)


@pytest.mark.usefixtures("one_data_link")
def test_tensors_for_a_peer_that_is_gone_are_told_of_after_its_death() -> None:
    async def main() -> None:
        cut = len(HELLO_BYTES) + len(encode_frame(FORWARD, ACTIVATION)) + 24 + 10
        async with bench(FakeStreams([None, PeerRefusedError("gone")], breaks_after=[cut])) as b:
            send_tensors(b.network, [0, 1])
            await until(lambda: b.gone)
            assert b.lost == []
            await until(lambda: len(b.lost) == 2)
            assert [message for _, message in b.lost] == [activation(0), activation(1)]  # 0 may be there, or not

    run(main)


@pytest.mark.usefixtures("one_data_link")
def test_a_tensor_that_breaks_every_stream_is_given_up_and_told_of() -> None:
    """Too big for the line: it was sent anew for ever, and nothing behind it ever was."""

    async def main() -> None:
        cut = len(HELLO_BYTES) + 10
        async with bench(FakeStreams(breaks_after=[cut] * links.TRIES_MAX)) as b:
            send_tensors(b.network, [0, 1])
            await until(lambda: b.lost)
            await b.network.flush(TIMEOUT_S)
            assert b.lost == [(PEER, activation(0))]
            assert len(b.streams.opened) == links.TRIES_MAX + 1
            assert await sent(b.streams.opened[-1]) == [HELLO, activation(1)]

    run(main)


@pytest.mark.usefixtures("one_data_link")
def test_what_was_written_last_is_written_again_on_the_next_stream() -> None:
    """It may have been in a buffer, and a stream that breaks takes its buffers along."""

    async def main() -> None:
        async with bench() as b:
            send_tensors(b.network, [0, 1])
            await b.network.flush(TIMEOUT_S)
            b.streams.opened[0].end()
            await until(lambda: len(b.streams.opened) == 2)
            await b.network.flush(TIMEOUT_S)
            send_tensors(b.network, [2])
            await b.network.flush(TIMEOUT_S)
            assert await sent(b.streams.opened[1]) == [HELLO, *map(activation, range(3))]
            assert b.lost == []

    run(main)


@pytest.mark.usefixtures("one_data_link")
def test_what_was_written_on_streams_that_all_broke_is_left_alone() -> None:
    """It may be there, and may be what breaks them: nobody knows, so nobody is told."""

    async def main() -> None:
        async with bench() as b:
            send_tensors(b.network, [0])
            for number in range(links.TRIES_MAX + 1):
                await until(lambda number=number: len(b.streams.opened) == number + 1)
                await b.network.flush(TIMEOUT_S)
                is_tried = number < links.TRIES_MAX
                assert await sent(b.streams.opened[number]) == [HELLO, *([activation(0)] if is_tried else [])]
                b.streams.opened[number].end()
            assert b.lost == []

    run(main)


@pytest.mark.usefixtures("one_data_link")
def test_what_was_written_long_ago_or_far_before_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "UNSURE_BYTES", 2 * 24)

    async def main() -> None:
        made = Bench(FakeStreams())
        async with asyncio.TaskGroup() as tasks:
            made.network.start(tasks)
            send_tensors(made.network, range(5))
            await made.network.flush(TIMEOUT_S)
            made.streams.opened[0].end()
            await until(lambda: len(made.streams.opened) == 2)
            await made.network.flush(TIMEOUT_S)
            assert await sent(made.streams.opened[1]) == [HELLO, *map(activation, (2, 3, 4))]
            await asyncio.wait([tasks.create_task(asyncio.Event().wait())], timeout=links.UNSURE_S + 1.0)
            made.streams.opened[1].end()
            await until(lambda: len(made.streams.opened) == 3)
            await made.network.flush(TIMEOUT_S)
            assert await sent(made.streams.opened[2]) == [HELLO]
            raise asyncio.CancelledError

    with contextlib.suppress(asyncio.CancelledError):
        run_leaping(main())


def test_what_comes_while_an_idle_link_is_closed_is_sent_on_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with bench() as b:
            b.network.send(PEER, beat(1), None)
            await b.network.flush(TIMEOUT_S)
            link, task = b.network._links[PEER, 0]
            wait_for_work = link._wait_for_work

            async def is_over_just_now() -> bool:
                link.put(beat(2), None)
                return False

            monkeypatch.setattr(link, "_wait_for_work", is_over_just_now)
            link._is_filled.set()
            await until(lambda: len(b.streams.opened) == 2)
            monkeypatch.setattr(link, "_wait_for_work", wait_for_work)
            await until(lambda: len(b.streams.opened[1].writer.data) == len(HELLO_BYTES) + BEAT_BYTES)
            assert not task.done()

    run(main)


def test_closing_drops_what_is_queued_and_a_flush_does_not_wait_for_ever() -> None:
    async def main() -> None:
        async with bench() as b:
            b.network.send(PEER, beat(1), None)
            await b.network.flush(TIMEOUT_S)
            stuck = b.streams.opened[0].writer
            stuck.is_stuck = True
            b.network.send(PEER, beat(2), None)
            await b.network.flush(0.01)
            b.network.close(PEER)
            await until(lambda: stuck.is_closed)
            b.network.send(PEER, beat(3), None)
            await b.network.flush(TIMEOUT_S)
            assert await sent(b.streams.opened[1]) == [HELLO, beat(3)]

    run(main)


def test_nothing_is_sent_before_the_start_and_after_the_stop() -> None:
    async def main() -> None:
        early = Bench(FakeStreams())
        early.network.send(PEER, beat(1), None)
        await early.network.flush(TIMEOUT_S)
        assert early.streams.opened == []
        async with bench() as b:
            b.network.send(PEER, beat(1), None)
            b.network.stop()
            b.network.send(PEER, beat(2), None)
            await b.network.flush(TIMEOUT_S)
            assert b.streams.opened == []

    run(main)


# --- receiving ---------------------------------------------------------------------------------


def test_what_a_link_brings_is_delivered_with_its_sender() -> None:
    async def main() -> None:
        async with bench() as b:
            writer = MemoryWriter()
            for message, tensor in ((HELLO, None), (beat(1), None), (FORWARD, torch.full((1, 2, 3), 7.0))):
                await write_frame(as_writer(writer), message, tensor)
            assert await b.receive(bytes(writer.data)) == [beat(1), FORWARD]
            assert {peer for peer, _, _ in b.delivered} == {PEER}
            tensor = b.delivered[1][2]
            assert tensor is not None
            assert tensor.tolist() == [[[7.0] * 3] * 2]

    run(main)


WRONG_HELLOS: dict[str, bytes] = {
    "did not begin with a hello": encode_frame(beat(1)),
    "speaks protocol version 99": encode_frame(Hello(99, RULES.manifest_digest)),
    "of another run": encode_frame(Hello(PROTOCOL_VERSION, "e" * 64)),
    "malformed": PREFIX.pack(1, 0) + b"\xc1",
    "at most 0 are allowed": PREFIX.pack(10, 1),
}


@pytest.mark.parametrize("complaint", WRONG_HELLOS)
def test_nothing_is_delivered_after_a_wrong_hello(complaint: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with bench() as b:
            assert await b.receive(WRONG_HELLOS[complaint] + encode_frame(beat(2))) == []

    with caplog.at_level(logging.WARNING, "understudy.node.links.network"):
        run(main)
    (record,) = caplog.records
    assert complaint in record.getMessage()
    assert PEER in record.getMessage()


def test_a_link_that_ends_before_its_hello_is_nothing_to_speak_of(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with bench() as b:
            for length in range(len(HELLO_BYTES)):
                assert await b.receive(HELLO_BYTES[:length]) == []

    with caplog.at_level(logging.WARNING, "understudy.node.links.network"):
        run(main)
        assert caplog.records == []


def test_a_silent_link_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELLO_TIMEOUT_S", 0.01)
    monkeypatch.setattr(module, "IDLE_TIMEOUT_S", 0.005)

    async def main() -> None:
        async with bench() as b:
            for said in (b"", HELLO_BYTES, HELLO_BYTES + encode_frame(beat(1))):
                reader = asyncio.StreamReader()  # it never ends
                reader.feed_data(said)
                await b.network.receive(PEER, reader, as_writer(MemoryWriter()))
            assert [message for _, message, _ in b.delivered] == [beat(1)]

    run(main)


def test_a_frame_that_begins_at_the_end_of_the_idle_time_has_its_own() -> None:
    """Found by reading: one timeout for both, and what came late but in time was cut off."""

    async def main() -> None:
        made, loop, writer = Bench(FakeStreams()), asyncio.get_running_loop(), MemoryWriter()
        await write_frame(as_writer(writer), FORWARD, torch.ones(1, 2, 3))
        data, reader = bytes(writer.data), asyncio.StreamReader()
        reader.feed_data(HELLO_BYTES)
        late = 2 * links.IDLE_TIMEOUT_S - 1.0
        for number, start in enumerate(range(0, len(data), 20)):
            loop.call_later(late + 5.0 * number, reader.feed_data, data[start : start + 20])
        await made.network.receive(PEER, reader, as_writer(MemoryWriter()))
        assert [message for _, message, _ in made.delivered] == [FORWARD]

    run_leaping(main())


@pytest.mark.parametrize("bad", [PREFIX.pack(0, 0), PREFIX.pack(1, 0) + b"\xc1", encode_frame(FORWARD), b"\x01"])
def test_a_bad_frame_ends_the_link_and_what_came_before_counts(bad: bytes) -> None:
    async def main() -> None:
        async with bench() as b:
            good = HELLO_BYTES + encode_frame(beat(1))
            assert await b.receive(good + bad + encode_frame(beat(2))) == [beat(1)]

    run(main)


def test_a_peer_that_is_closed_for_what_it_said_is_not_listened_to_any_more() -> None:
    """The core judges the meaning of messages; its verdict ends the stream as bad bytes do."""

    async def main() -> None:
        async with bench() as b:
            verdicts: dict[Any, PeerId] = {beat(1): OTHER, beat(2): PEER}
            b.on_delivery = lambda message: b.network.close(verdicts[message])
            data = HELLO_BYTES + b"".join(encode_frame(beat(step)) for step in (1, 2, 3))
            assert await b.receive(data) == [beat(1), beat(2)]
            b.on_delivery = lambda _: None
            b.delivered.clear()
            assert await b.receive(HELLO_BYTES + encode_frame(Lost(1, 1))) == [Lost(1, 1)]  # a new stream may come

    run(main)


# --- links that climb --------------------------------------------------------------------------


def test_a_link_goes_on_with_another_stream_and_says_nothing_twice() -> None:
    """There is a direct connection by now: what is written already arrives on the old stream."""

    async def main() -> None:
        async with bench() as b:
            b.network.send(PEER, FORWARD, torch.ones(1, 2, 3))
            await b.network.flush(TIMEOUT_S)
            b.network.reopen(PEER)
            b.network.send(PEER, Backward(8, 1, Attempt(1, 0), 1, 1), torch.ones(1, 2, 3))
            b.network.send(PEER, beat(1), None)
            b.network.reopen(OTHER)
            await until(lambda: len(b.streams.opened) == 4)
            await b.network.flush(TIMEOUT_S)
            kinds = [[type(message) for message in await sent(opened)] for opened in b.streams.opened]
            wanted = [[Hello, Forward], [Hello, Backward], [Hello, Heartbeat], [Hello]]
            assert sorted(kinds, key=str) == sorted(wanted, key=str)
            assert b.network.linked() == {PEER}
            assert b.lost == []

    run(main)


def test_a_hello_says_where_we_can_be_dialled_and_is_heard() -> None:
    async def main() -> None:
        async with bench() as b:
            said = Hello(PROTOCOL_VERSION, RULES.manifest_digest, Contact(("/ip4/5.5.5.7/tcp/1",)))
            await b.receive(encode_frame(said))
            assert b.contacts == [(PEER, said.contact)]
            b.network.send(PEER, beat(1), None)
            await b.network.flush(TIMEOUT_S)
            hello, *_ = await sent(b.streams.opened[0])
            assert hello == HELLO

    run(main)


# --- pauses ------------------------------------------------------------------------------------


def test_a_pause_between_tensors_is_filled_and_a_long_one_is_not() -> None:
    async def main() -> None:
        async with bench_of_any_length() as b:
            warming = asyncio.create_task(b.network.keep_warm())
            b.network.send(PEER, beat(1), None)
            b.network.send(PEER, FORWARD, torch.ones(1, 2, 3))
            await asyncio.sleep(module.WARM_FOR_S / 2)
            control = b.streams.opened[0]
            fillers = [message for message in await sent(control) if isinstance(message, Filler)]
            assert len(fillers) == pytest.approx(module.WARM_FOR_S / 2 / module.WARM_EVERY_S, abs=3)
            await asyncio.sleep(module.WARM_FOR_S)
            before = len(control.writer.data)
            await asyncio.sleep(module.WARM_FOR_S)
            assert len(control.writer.data) == before
            warming.cancel()

    run_leaping(main())


def test_a_pause_dials_nobody() -> None:
    """Its peer may be gone, and a link to it is not there any more."""

    async def main() -> None:
        async with bench_of_any_length() as b:
            warming = asyncio.create_task(b.network.keep_warm())
            b.network.send(PEER, FORWARD, torch.ones(1, 2, 3))
            await asyncio.sleep(module.WARM_FOR_S)
            assert len(b.streams.opened) == 1
            warming.cancel()

    run_leaping(main())


def test_a_filler_is_told_to_nobody() -> None:
    async def main() -> None:
        async with bench() as b:
            assert await b.receive(HELLO_BYTES + encode_frame(Filler()) + encode_frame(beat(1))) == [beat(1)]

    run(main)


@pytest.mark.parametrize("said", [beat(2), Claim(1, 2, (0,)), Commit(1, 1), Fenced(1, 2, PEER, 1)])
def test_an_observer_may_ask_for_leases_and_for_nothing_else(said: AnyMessage) -> None:
    async def main() -> None:
        wish, release = LeaseRequest(1, 1, 5), LeaseRelease(5)
        data = HELLO_BYTES + b"".join(map(encode_frame, (wish, release, said, wish)))
        async with bench() as b:
            assert await b.receive(data) == [wish, release, said, wish]
        async with bench() as b:
            b.observers.add(PEER)
            assert await b.receive(data) == [wish, release]

    run(main)


# --- too much of it ---


def test_what_is_beyond_a_peers_rate_is_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two streams of one peer share its budget; another peer is not held up."""
    monkeypatch.setattr(module, "MESSAGES_BURST", 4)
    monkeypatch.setattr(module, "MESSAGES_PER_S", 0.01)
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def main() -> None:
        async with bench() as made:
            monkeypatch.setattr(module.asyncio, "sleep", sleep)
            stream = encode_frame(HELLO) + b"".join(encode_frame(beat(step)) for step in range(3))
            for _ in range(2):
                await made.receive(stream)
            assert len(waits) == 2
            assert 50.0 < waits[0] <= 100.0 < waits[1] <= 200.0
            await made.network.receive(PeerId("QmOther"), reader_of(stream), as_writer(MemoryWriter()))
            assert len(waits) == 2
            assert len(made.delivered) == 9
            made.owners.add(PEER)
            await made.receive(stream)
            assert len(waits) == 2, "an owner may say more"
            assert len(made.delivered) == 12

    run(main)


def test_a_peer_that_breaks_rules_all_day_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with bench() as made:
            for _ in range(500):
                await made.receive(encode_frame(beat(1)))

    run(main)
    assert 1 <= len(caplog.records) <= 6
