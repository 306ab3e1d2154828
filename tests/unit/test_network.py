"""Links over streams that break, refuse, stall and lie."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import uvloop
from torch import Tensor

from tests.fakes import FakeStreams, MemoryWriter, Opened, as_writer, reader_of, until
from understudy.node import network as module
from understudy.node.framing import read_link_frame, write_frame
from understudy.node.network import LinkRules, Network
from understudy.node.straight import open_unix_stream, start_unix_streams
from understudy.protocol.errors import NetworkError, PeerRefusedError
from understudy.protocol.ids import Attempt, PeerId
from understudy.protocol.manifest import PROTOCOL_VERSION
from understudy.protocol.messages import AnyMessage, Backward, Forward, Heartbeat, Hello, Lost, TensorHeader
from understudy.protocol.wire import PREFIX, encode_frame

ACTIVATION = TensorHeader("float32", (1, 2, 3))
RULES = LinkRules("run-0", "d" * 64, ACTIVATION)
HELLO = Hello(PROTOCOL_VERSION, RULES.manifest_digest)
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
        self.network = Network(streams, RULES, self._deliver, self.gone.append)

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
    """Streams over a unix socket, as node/control.py opens them; the other side only reads."""

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
            network = Network(streams, RULES, lambda *_: None, lambda _: None)
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
            assert b.streams.opened == []
            await until(lambda: all(task.done() for _, task in b.network._links.values()))
            b.network.send(PEER, beat(2), None)
            await b.network.flush(TIMEOUT_S)
            assert await sent(b.streams.opened[0]) == [HELLO, beat(2)]  # the protocol heals the loss of the first

    run(main)


def test_an_idle_link_is_closed_and_opened_again_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_TIMEOUT_S", 0.01)

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
    monkeypatch.setattr(module, "QUEUE_MESSAGES_MAX", 3)

    async def main() -> None:
        async with bench() as b:
            for step in range(10):  # before the link's task runs for the first time
                b.network.send(PEER, beat(step), None)
            await b.network.flush(TIMEOUT_S)
            assert await sent(b.streams.opened[0]) == [HELLO, beat(7), beat(8), beat(9)]

    run(main)


def test_a_peer_that_takes_nothing_in_costs_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_TIMEOUT_S", 0.01)

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

    with caplog.at_level(logging.WARNING, "understudy.node.network"):
        run(main)
    (record,) = caplog.records
    assert complaint in record.getMessage()
    assert PEER in record.getMessage()


def test_a_link_that_ends_before_its_hello_is_nothing_to_speak_of(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with bench() as b:
            for length in range(len(HELLO_BYTES)):
                assert await b.receive(HELLO_BYTES[:length]) == []

    with caplog.at_level(logging.WARNING, "understudy.node.network"):
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
