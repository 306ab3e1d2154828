"""Copies fetched in the background: differences to what is held already, and pieces that leave the line alone."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from tests.fakes import FakeStreams, MemoryWriter, as_writer, reader_of, run_leaping
from understudy.node.compute.model import build_stage
from understudy.node.compute.stage import StageHost
from understudy.node.compute.standby import difference, followed
from understudy.node.compute.thread import ComputeThread
from understudy.node.compute.weights import WeightsSnapshot, described, snapshot
from understudy.node.compute.worker import Worker
from understudy.node.links import transfer as module
from understudy.node.links.framing import read_message
from understudy.node.links.link import LinkRules
from understudy.node.links.pacing import PAUSE_S_MAX, PIECE_BYTES_FIRST, PIECE_BYTES_MIN, PIECE_S
from understudy.node.links.transfer import MORE_TIMEOUT_S, Fetcher, WeightsServer
from understudy.node.p2p.zero_copy import open_unix_stream, start_unix_streams
from understudy.protocol.actions import Fetch, Keep
from understudy.protocol.errors import NetworkError, RemoteProtocolError, UnderstudyError, WeightsError
from understudy.protocol.ids import PeerId
from understudy.protocol.jobs import ImageJob, InitialiseJob
from understudy.protocol.manifest import ModelSettings, RunManifest
from understudy.protocol.wire.frames import PREFIX, encode_frame
from understudy.protocol.wire.messages import (
    AnyMessage,
    FetchEnd,
    FetchHeader,
    FetchMore,
    FetchRefused,
    FetchRequest,
    Heartbeat,
)
from understudy.protocol.wire.tensors import TensorHeader

torch.set_num_threads(1)

SETTINGS = ModelSettings(hidden_size=60, intermediate_size=164, attention_heads=2, block_stages=3, layers_per_stage=2)
RULES = LinkRules("run-0", "d" * 64, TensorHeader("float32", (1, 2, 60)))
DONOR, HOLDER = PeerId("QmDonor"), PeerId("QmHolder")
CLAIM = (1, 5)
TIMEOUT_S = 60.0


def images() -> tuple[WeightsSnapshot, WeightsSnapshot, WeightsSnapshot]:
    """What a holder has, what it fetches, and the difference."""
    base, moved = snapshot(build_stage(SETTINGS, 1, 1)), build_stage(SETTINGS, 1, 2)
    names = [spec.name for spec in base.specs]
    differences = difference(list(moved.parameters()), base.tensors)
    lacking = described(dict(zip(names, differences, strict=True)))
    return base, followed(base, lacking), lacking


BASE, IMAGE, LACKING = images()
FETCH = Fetch(CLAIM, DONOR, "stage", IMAGE.digest, IMAGE.payload_bytes, base=BASE.digest)
PACED = replace(FETCH, base="", share=1)


class Inline(ComputeThread):
    """Computes where it is asked to: a loop whose time leaps waits for no thread."""

    async def call(self, function: Callable[[], Any]) -> Any:
        return function()

    def begin(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.set_result(function())
        return done


@dataclass
class Owner:
    """A real server of the image, and of the difference as long as it has it."""

    differences: int = 1 << 30
    """For how many requests it still has the difference."""
    permits: int = 1 << 30
    requests: list[FetchRequest] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = WeightsServer(self._may_fetch, {IMAGE.digest: IMAGE}.get, self._find_difference)
        await server.serve(HOLDER, reader, writer)

    def _may_fetch(self, peer: PeerId, request: FetchRequest) -> bool:
        if not any(request is known for known in self.requests):
            self.requests.append(request)
        self.permits -= 1
        return self.permits >= 0

    def _find_difference(self, base: str, digest: str) -> WeightsSnapshot | None:
        self.differences -= 1
        return LACKING if (base, digest) == (BASE.digest, IMAGE.digest) and self.differences >= 0 else None

    @property
    def asked(self) -> list[tuple[str, int]]:
        return [(request.base, request.offset) for request in self.requests]


def fetch(streams: FakeStreams, what: Fetch = FETCH, held: Sequence[WeightsSnapshot] = (BASE,)) -> WeightsSnapshot:
    """What a holder that keeps these gets over these streams. Time leaps."""

    async def main() -> WeightsSnapshot | UnderstudyError:
        thread = Inline()
        try:
            async with asyncio.timeout(86400), asyncio.TaskGroup() as streams.tasks:
                found = {snapshot.digest: snapshot for snapshot in held}
                return await Fetcher(streams, RULES, SETTINGS, thread, found.get).fetch(what)
        except* UnderstudyError as errors:
            (error,) = errors.exceptions
            assert isinstance(error, UnderstudyError)
        finally:
            thread.close()
        return error

    outcome = run_leaping(main())
    assert all(opened.writer.is_closed for opened in streams.opened)
    if isinstance(outcome, UnderstudyError):
        raise outcome
    return outcome


def assert_same(received: WeightsSnapshot, held: WeightsSnapshot = IMAGE) -> None:
    assert received.digest == held.digest
    assert all(map(torch.equal, received.tensors, held.tensors))


def header_bytes(header: FetchHeader) -> int:
    return len(encode_frame(header))


DIFFERENCE_HEADER = FetchHeader(LACKING.specs, LACKING.payload_bytes, BASE.digest)
WHOLE_HEADER = FetchHeader(IMAGE.specs, IMAGE.payload_bytes)


def payload_of(held: WeightsSnapshot) -> bytes:
    return b"".join(held.chunks(0, 1 << 20))


def saying(*answers: FetchHeader | bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """A donor that says this whatever it is asked."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        for answer in answers:
            writer.write(answer if isinstance(answer, bytes) else encode_frame(answer))

    return serve


# --- differences -------------------------------------------------------------------------------


def test_a_difference_to_what_is_held_is_enough() -> None:
    owner = Owner()
    counted: list[int] = []

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await owner.serve(reader, writer)
        counted.append(len(writer.data))  # type: ignore[attr-defined]

    assert_same(fetch(FakeStreams(serve=count)))
    assert owner.asked == [(BASE.digest, 0)]
    whole = header_bytes(DIFFERENCE_HEADER) + LACKING.payload_bytes + len(encode_frame(FetchEnd()))
    assert counted == [whole]


def test_who_has_no_difference_sends_the_weights() -> None:
    owner = Owner(differences=0)
    assert_same(fetch(FakeStreams(serve=owner.serve)))
    assert owner.asked == [(BASE.digest, 0)]


def test_who_holds_nothing_asks_for_no_difference() -> None:
    owner = Owner()
    assert_same(fetch(FakeStreams(serve=owner.serve), held=()))
    assert owner.asked == [("", 0)]


def test_there_is_no_difference_of_moments() -> None:
    host = StageHost(RunManifest(name="x", model=SETTINGS), "cpu")
    host.work(InitialiseJob(1, 1))
    ((payload_bytes, digest),) = host.work(ImageJob(1, ("moments",)))
    image = host.shelf.find(digest)
    assert image is not None
    asked: list[FetchRequest] = []

    def may_fetch(_: PeerId, request: FetchRequest) -> bool:
        asked.append(request)
        return True

    server = WeightsServer(may_fetch, host.shelf.find, host.shelf.find_difference)
    streams = FakeStreams(serve=lambda reader, writer: server.serve(HOLDER, reader, writer))
    assert_same(fetch(streams, Fetch(CLAIM, DONOR, "moments", digest, payload_bytes, base=BASE.digest)), image)
    assert {request.base for request in asked} == {""}


def test_what_is_being_kept_is_a_base_already() -> None:
    """The core says keep, then fetch; the compute thread has other things to do between."""
    owner, may_go_on = Owner(), threading.Event()

    async def main() -> WeightsSnapshot:
        host = StageHost(RunManifest(name="x", model=SETTINGS), "cpu")
        worker = Worker(host, 1, lambda *_: None, lambda _: None)
        streams = FakeStreams(serve=owner.serve)
        try:
            async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
                streams.tasks = tasks
                busy = worker.begin(lambda: may_go_on.wait(TIMEOUT_S))
                worker.tend(Keep(BASE.digest, BASE))
                fetching = tasks.create_task(Fetcher(streams, RULES, SETTINGS, worker, host.shelf.find).fetch(FETCH))
                await asyncio.sleep(0)
                may_go_on.set()
                await busy
                return await fetching
        finally:
            worker.close()

    assert_same(asyncio.run(main()))
    assert owner.asked == [(BASE.digest, 0)]


@pytest.mark.parametrize("held", [(), (BASE,)])
def test_a_difference_to_what_was_not_named_is_refused(held: tuple[WeightsSnapshot, ...]) -> None:
    header = msgspec.structs.replace(DIFFERENCE_HEADER, base="0" * 64)
    with pytest.raises(RemoteProtocolError, match="that we did not name"):
        fetch(FakeStreams(serve=saying(header, payload_of(LACKING), encode_frame(FetchEnd()))), held=held)


def test_another_difference_is_found_by_what_it_leads_to() -> None:
    names = [spec.name for spec in LACKING.specs]
    other = described(dict(zip(names, [2 * tensor for tensor in LACKING.tensors], strict=True)))
    header = FetchHeader(other.specs, other.payload_bytes, BASE.digest)
    with pytest.raises(WeightsError, match="other weights than it offered"):
        fetch(FakeStreams(serve=saying(header, payload_of(other), encode_frame(FetchEnd()))))


def test_a_difference_of_nan_leads_nowhere() -> None:
    names = [spec.name for spec in LACKING.specs]
    other = described({name: torch.full_like(t, math.nan) for name, t in zip(names, LACKING.tensors, strict=True)})
    header = FetchHeader(other.specs, other.payload_bytes, BASE.digest)
    with pytest.raises(WeightsError, match="other weights than it offered"):
        fetch(FakeStreams(serve=saying(header, payload_of(other), encode_frame(FetchEnd()))))


def test_a_corrupt_byte_of_a_difference_is_found() -> None:
    content = bytearray(payload_of(LACKING))
    content[77] ^= 1
    with pytest.raises(WeightsError, match="do not match their digest"):
        fetch(FakeStreams(serve=saying(DIFFERENCE_HEADER, bytes(content), encode_frame(FetchEnd()))))


LYING_HEADERS = (
    FetchHeader(IMAGE.specs, IMAGE.payload_bytes, BASE.digest),
    FetchHeader(LACKING.specs, LACKING.payload_bytes),
    FetchHeader(LACKING.specs[:-1], LACKING.payload_bytes, BASE.digest),
    FetchHeader(
        (msgspec.structs.replace(LACKING.specs[0], shape=(1 << 30,)), *LACKING.specs[1:]), 1 << 40, BASE.digest
    ),
)


@pytest.mark.parametrize("header", LYING_HEADERS)
def test_there_is_no_room_for_what_is_no_difference(header: FetchHeader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WeightsBuffer", lambda _: pytest.fail("room was made"))
    with pytest.raises(WeightsError):
        fetch(FakeStreams(serve=saying(header)))


@pytest.mark.parametrize("offset", [1, 4095, LACKING.payload_bytes - 1, LACKING.payload_bytes])
def test_a_broken_difference_goes_on_where_it_stopped(offset: int) -> None:
    owner = Owner()
    assert_same(fetch(FakeStreams(serve=owner.serve, breaks_after=[header_bytes(DIFFERENCE_HEADER) + offset])))
    assert owner.asked == [(BASE.digest, 0), (BASE.digest, offset)]


def test_a_difference_that_the_donor_loses_meanwhile_is_begun_anew_as_weights() -> None:
    """What came of it is no part of them, and they are asked for from their first byte."""
    owner = Owner(differences=1)
    assert_same(fetch(FakeStreams(serve=owner.serve, breaks_after=[header_bytes(DIFFERENCE_HEADER) + 4096])))
    assert owner.asked == [(BASE.digest, 0), (BASE.digest, 4096), ("", 0)]


def test_weights_that_are_under_way_stay_weights() -> None:
    owner = Owner(differences=0)
    streams = FakeStreams(serve=owner.serve, breaks_after=[header_bytes(WHOLE_HEADER) + 4096])
    assert_same(fetch(streams))
    assert owner.asked == [(BASE.digest, 0), ("", 4096)]


def test_a_donor_changes_its_mind_once_at_most() -> None:
    headers = [DIFFERENCE_HEADER, WHOLE_HEADER, DIFFERENCE_HEADER]

    async def flip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(encode_frame(headers.pop(0)) + b"12345")

    with pytest.raises(RemoteProtocolError, match="that we did not name"):
        fetch(FakeStreams(serve=flip))
    assert headers == []


@pytest.mark.parametrize(("base", "offset"), [(BASE.digest, LACKING.payload_bytes + 1), ("", IMAGE.payload_bytes + 1)])
def test_nothing_is_sent_from_beyond_its_end(base: str, offset: int) -> None:
    assert isinstance(answers(FetchRequest(*CLAIM, IMAGE.digest, offset, base))[0], FetchRefused)


def answers(request: FetchRequest) -> list[AnyMessage | None]:
    """The first message that an owner says to it."""
    writer = MemoryWriter()

    async def main() -> AnyMessage | None:
        await Owner().serve(reader_of(encode_frame(request)), as_writer(writer))
        return await read_message(reader_of(bytes(writer.data)))

    return [run_leaping(main())]


# --- pieces: who fetches -----------------------------------------------------------------------


class Line(MemoryWriter):
    """A donor's end of a line: what is written arrives when it has passed."""

    bytes_per_s = 1_000_000.0

    def __init__(self, target: asyncio.StreamReader) -> None:
        super().__init__(None)
        self._arrives, self._waiting = target, bytearray()
        self.writes: list[tuple[float, int]] = []
        self.busy_s = 0.0

    def write(self, data: bytes | memoryview) -> None:
        self._waiting += data

    async def drain(self) -> None:
        content, self._waiting = bytes(self._waiting), bytearray()
        seconds = len(content) / self.bytes_per_s
        await asyncio.sleep(seconds)
        self.busy_s += seconds
        self.writes.append((asyncio.get_running_loop().time(), len(content)))
        self._arrives.feed_data(content)


@dataclass
class Slow:
    """Owner behind a line of so many bytes a second."""

    owner: Owner
    bytes_per_s: float
    lines: list[Line] = field(default_factory=list)
    began: list[float] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = writer._target  # type: ignore[attr-defined]
        line = Line(target)
        line.bytes_per_s = self.bytes_per_s
        self.lines.append(line)
        self.began.append(asyncio.get_running_loop().time())
        await self.owner.serve(reader, as_writer(line))


@pytest.mark.parametrize("bytes_per_s", [60_000.0, 1e6, 2.5e6])
def test_pieces_leave_four_fifths_of_the_line_to_others(bytes_per_s: float) -> None:
    """On slow lines too: pauses are no reason to give a donor up."""
    slow = Slow(Owner(), bytes_per_s)
    assert_same(fetch(FakeStreams(serve=slow.serve), PACED))
    (line,), (began,) = slow.lines, slow.began
    ended = line.writes[-1][0]
    last_piece_s = max(PIECE_S, PIECE_BYTES_MIN / bytes_per_s)
    assert line.busy_s <= (ended - began + 4 * last_piece_s) / 5 * 1.01
    assert line.busy_s >= (ended - began) / 6, "it need not be slower than that either"
    assert [request.piece_bytes for request in slow.owner.requests] == [PIECE_BYTES_FIRST]


def test_a_difference_comes_in_pieces_too() -> None:
    owner = Owner()
    assert_same(fetch(FakeStreams(serve=owner.serve), replace(PACED, base=BASE.digest)))
    assert owner.asked == [(BASE.digest, 0)]


def test_a_piece_that_breaks_off_is_asked_for_again() -> None:
    owner = Owner()
    cut = header_bytes(WHOLE_HEADER) + PIECE_BYTES_FIRST + 100
    assert_same(fetch(FakeStreams(serve=owner.serve, breaks_after=[cut]), PACED))
    assert owner.asked == [("", 0), ("", PIECE_BYTES_FIRST + 100)]
    assert owner.requests[1].piece_bytes > PIECE_BYTES_FIRST


def test_a_donor_that_goes_on_sending_is_given_up() -> None:
    """Else it could have the whole line: what waits in buffers seems to come at once."""
    streams = FakeStreams(serve=saying(WHOLE_HEADER, payload_of(IMAGE), encode_frame(FetchEnd())))
    with pytest.raises(RemoteProtocolError, match="more than the piece"):
        fetch(streams, PACED)
    assert len(streams.opened) == 1


def test_a_donor_that_sends_on_within_the_pause_is_given_up() -> None:
    async def push(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(encode_frame(WHOLE_HEADER))
        await asyncio.sleep(1.0)
        writer.write(payload_of(IMAGE)[:PIECE_BYTES_FIRST])
        await asyncio.sleep(2.0)
        writer.write(b"x")

    with pytest.raises(RemoteProtocolError, match="more than the piece"):
        fetch(FakeStreams(serve=push), PACED)


def test_a_stream_that_ends_within_a_pause_is_opened_again_at_once() -> None:
    opened_at: list[float] = []

    async def stop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened_at.append(asyncio.get_running_loop().time())
        request = await read_message(reader)
        assert isinstance(request, FetchRequest)
        writer.write(encode_frame(WHOLE_HEADER))
        await asyncio.sleep(5.0)
        piece = payload_of(IMAGE)[request.offset :][: request.piece_bytes]
        writer.write(piece)

    with pytest.raises(NetworkError, match="ended the stream"):
        fetch(FakeStreams(serve=stop), PACED)
    assert [round(at) for at in opened_at] == [0, 5, 10, 15]


def test_a_donor_that_trickles_pieces_is_given_up() -> None:
    """Each byte comes in time, all of them would take for ever."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(encode_frame(WHOLE_HEADER))
        while not reader.at_eof():
            writer.write(b"x")
            await asyncio.sleep(module.SILENCE_TIMEOUT_S - 1)

    streams = FakeStreams(serve=drip)
    with pytest.raises(NetworkError, match="no byte came in time"):
        fetch(streams, PACED)
    assert len(streams.opened) == module.TRIES_MAX


def test_no_pause_is_longer_than_a_donor_waits() -> None:
    assert PAUSE_S_MAX * 2 <= MORE_TIMEOUT_S


def test_pieces_come_over_a_real_stream(tmp_path: Path) -> None:
    """Listening within the pauses takes nothing of the next piece away."""
    owner, path = Owner(), tmp_path / "donor"

    class Streams:
        async def open_stream(
            self, peer: PeerId, protocol: str, timeout_s: float
        ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await open_unix_stream(path, 1 << 16)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await owner.serve(reader, writer)
        writer.close()

    async def main() -> WeightsSnapshot:
        server, thread = await start_unix_streams(serve, path, 1 << 16), Inline()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await Fetcher(Streams(), RULES, SETTINGS, thread, {BASE.digest: BASE}.get).fetch(PACED)
        finally:
            server.close()
            thread.close()

    assert_same(asyncio.run(main()))
    assert owner.asked == [("", 0)]


# --- pieces: who serves ------------------------------------------------------------------------


def served(*said: AnyMessage | bytes, is_over: bool = False, owner: Owner | None = None) -> tuple[int, float]:
    """Bytes of the payload that an owner sends, without the end, to a holder that says this; after how many seconds."""
    writer = MemoryWriter()

    async def main() -> float:
        reader = asyncio.StreamReader()
        for message in said:
            reader.feed_data(message if isinstance(message, bytes) else encode_frame(message))
        if is_over:
            reader.feed_eof()
        async with asyncio.timeout(3600):
            await (owner or Owner()).serve(reader, as_writer(writer))
        return asyncio.get_running_loop().time()

    seconds = run_leaping(main())
    return len(writer.data) - header_bytes(WHOLE_HEADER), seconds


IN_PIECES = FetchRequest(*CLAIM, IMAGE.digest, 0, "", PIECE_BYTES_FIRST)
ALL = IMAGE.payload_bytes + len(encode_frame(FetchEnd()))


def test_no_more_is_sent_than_was_asked_for() -> None:
    assert served(IN_PIECES) == (PIECE_BYTES_FIRST, MORE_TIMEOUT_S)
    assert served(IN_PIECES, FetchMore(20_000)) == (PIECE_BYTES_FIRST + 20_000, MORE_TIMEOUT_S)
    assert served(msgspec.structs.replace(IN_PIECES, piece_bytes=0)) == (ALL, 0.0)


def test_one_may_ask_for_everything_that_is_left() -> None:
    assert served(IN_PIECES, FetchMore(2**50)) == (ALL, 0.0)
    assert served(msgspec.structs.replace(IN_PIECES, piece_bytes=2**50)) == (ALL, 0.0)


def test_the_last_piece_is_followed_by_the_end() -> None:
    left = IMAGE.payload_bytes - PIECE_BYTES_FIRST
    assert served(IN_PIECES, FetchMore(left)) == (ALL, 0.0)
    assert served(IN_PIECES, FetchMore(left - 1), FetchMore(PIECE_BYTES_MIN)) == (ALL, 0.0)
    offset = IMAGE.payload_bytes - PIECE_BYTES_FIRST
    assert served(msgspec.structs.replace(IN_PIECES, offset=offset)) == (ALL - offset, 0.0)
    assert served(msgspec.structs.replace(IN_PIECES, offset=IMAGE.payload_bytes)) == (ALL - IMAGE.payload_bytes, 0.0)


@pytest.mark.parametrize(
    "said",
    [
        FetchMore(1),
        FetchMore(PIECE_BYTES_MIN - 1),
        FetchEnd(),
        IN_PIECES,
        Heartbeat(1, 1, "serving", 1),
        PREFIX.pack(1 << 20, 0),
        PREFIX.pack(module.MORE_BYTES_MAX + 1, 0),
        PREFIX.pack(1, 0) + b"\xc1",
        PREFIX.pack(1, 1),
    ],
)
def test_who_asks_for_anything_but_more_gets_no_more(said: AnyMessage | bytes) -> None:
    assert served(IN_PIECES, said) == (PIECE_BYTES_FIRST, 0.0)


def test_who_is_gone_is_not_waited_for() -> None:
    assert served(IN_PIECES, is_over=True) == (PIECE_BYTES_FIRST, 0.0)
    assert served(IN_PIECES, b"\x00\x00", is_over=True) == (PIECE_BYTES_FIRST, 0.0)


@pytest.mark.parametrize("piece_bytes", [1, PIECE_BYTES_MIN - 1])
def test_tiny_pieces_are_not_begun(piece_bytes: int) -> None:
    sent, _ = served(msgspec.structs.replace(IN_PIECES, piece_bytes=piece_bytes))
    assert sent == -header_bytes(WHOLE_HEADER)


def test_who_may_fetch_no_more_gets_no_next_piece() -> None:
    """The core may change its mind while the holder rests."""
    owner, writer = Owner(), MemoryWriter()

    async def main() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(encode_frame(IN_PIECES))
        async with asyncio.timeout(3600), asyncio.TaskGroup() as tasks:
            tasks.create_task(owner.serve(reader, as_writer(writer)))
            await asyncio.sleep(1.0)
            owner.permits = 0
            reader.feed_data(encode_frame(FetchMore(PIECE_BYTES_MIN)))

    run_leaping(main())
    assert len(writer.data) - header_bytes(WHOLE_HEADER) == PIECE_BYTES_FIRST


def test_the_message_that_asks_for_more_is_short() -> None:
    assert len(encode_frame(FetchMore(2**50))) - PREFIX.size <= module.MORE_BYTES_MAX


def test_a_holder_that_takes_nothing_in_does_not_hold_the_donor() -> None:
    async def main() -> float:
        writer = MemoryWriter()
        writer.is_stuck = True
        reader = asyncio.StreamReader()
        reader.feed_data(encode_frame(IN_PIECES))
        await Owner().serve(reader, as_writer(writer))
        return asyncio.get_running_loop().time()

    assert run_leaping(main()) == module.SILENCE_TIMEOUT_S
