"""Weights on their way from a donor to a claimant, over streams that break wherever they like."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import msgspec
import pytest
import torch

from tests.fakes import FakeStreams, MemoryWriter, as_writer, reader_of
from understudy.node.compute.model import build_stage
from understudy.node.compute.parts import PART_NAMES, header_bytes_max
from understudy.node.compute.stage import StageHost
from understudy.node.compute.weights import WeightsSnapshot, snapshot
from understudy.node.compute.weights_buffer import WeightsBuffer
from understudy.node.compute.worker import Worker
from understudy.node.links import transfer as module
from understudy.node.links.framing import read_message, write_frame
from understudy.node.links.link import LinkRules
from understudy.node.links.transfer import TRIES_MAX, Fetcher, WeightsServer, fetch_protocol
from understudy.protocol.actions import Fetch
from understudy.protocol.errors import (
    NetworkError,
    PeerRefusedError,
    RemoteProtocolError,
    UnderstudyError,
    WeightsError,
)
from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import PROTOCOL_VERSION, ModelSettings, RunManifest
from understudy.protocol.wire.fields import Part
from understudy.protocol.wire.frames import PREFIX, encode_frame
from understudy.protocol.wire.messages import FetchEnd, FetchHeader, FetchRefused, FetchRequest, Heartbeat
from understudy.protocol.wire.tensors import TensorHeader

SETTINGS = ModelSettings(hidden_size=8, intermediate_size=12, attention_heads=2, block_stages=3, layers_per_stage=2)
RULES = LinkRules("run-0", "d" * 64, TensorHeader("float32", (1, 2, 8)))
DONOR, CLAIMANT = PeerId("QmDonor"), PeerId("QmClaimant")
CLAIM = (2, 5)
TIMEOUT_S = 10.0

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def donation(part: Part = "stage", seed: int = 1) -> WeightsSnapshot:
    return snapshot(build_stage(SETTINGS, 1 if part == "stage" else 0, seed), PART_NAMES[part])


HELD = donation()
HEADER_BYTES = len(encode_frame(FetchHeader(HELD.specs, HELD.payload_bytes)))


@dataclass
class Witness:
    """A real server of one snapshot, and what it was asked."""

    held: WeightsSnapshot = field(default_factory=lambda: HELD)
    permits: int = 1 << 30
    """How often the core says yes: at the request, and before each chunk."""
    requests: list[FetchRequest] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = WeightsServer(self._may_fetch, {self.held.digest: self.held}.get)
        await server.serve(CLAIMANT, reader, writer)

    def _may_fetch(self, peer: PeerId, request: FetchRequest) -> bool:
        assert peer == CLAIMANT
        if not self.requests or self.requests[-1] is not request:
            self.requests.append(request)
        self.permits -= 1
        return self.permits >= 0


@asynccontextmanager
async def claimant(streams: FakeStreams) -> AsyncIterator[Fetcher]:
    failures: list[BaseException] = []
    host = StageHost(RunManifest(name="x", model=SETTINGS), "cpu")
    worker = Worker(host, 1, lambda *_: None, failures.append)
    try:
        async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as streams.tasks:
            yield Fetcher(streams, RULES, SETTINGS, worker)
    finally:
        worker.close()
    assert failures == []


def fetch(streams: FakeStreams, held: WeightsSnapshot = HELD, part: Part = "stage") -> WeightsSnapshot:
    """Fetch a donation over these streams."""
    received: list[WeightsSnapshot | UnderstudyError] = []

    async def main() -> None:
        async with claimant(streams) as fetcher:
            try:
                received.append(await fetcher.fetch(Fetch(CLAIM, DONOR, part, held.digest, held.payload_bytes)))
            except UnderstudyError as error:
                received.append(error)

    asyncio.run(main())
    assert all(opened.writer.is_closed for opened in streams.opened)
    (outcome,) = received
    if isinstance(outcome, UnderstudyError):
        raise outcome
    return outcome


def assert_same(received: WeightsSnapshot, held: WeightsSnapshot = HELD) -> None:
    assert received.digest == held.digest
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(received.tensors, held.tensors, strict=True))


def test_weights_arrive_as_they_were() -> None:
    donor = Witness()
    streams = FakeStreams(serve=donor.serve)
    assert_same(fetch(streams))
    assert [(opened.peer, opened.protocol) for opened in streams.opened] == [(DONOR, fetch_protocol(RULES.run_id))]
    assert donor.requests == [FetchRequest(*CLAIM, HELD.digest, 0)]


def test_the_fetch_protocol_is_of_this_run_only() -> None:
    assert fetch_protocol(RULES.run_id) == f"/understudy/{PROTOCOL_VERSION}/run-0/fetch"


@pytest.mark.parametrize("part", ["embedding", "head"])
def test_a_part_of_the_edge_stage_arrives_too(part: Part) -> None:
    held = donation(part)
    assert_same(fetch(FakeStreams(serve=Witness(held).serve), held, part), held)


def test_the_whole_edge_stage_is_fetched_as_stage_0() -> None:
    held = snapshot(build_stage(SETTINGS, 0, 1))
    received: list[WeightsSnapshot] = []
    counted: list[int] = []

    async def main() -> None:
        streams = FakeStreams(serve=Witness(held).serve)
        async with claimant(streams) as fetcher:
            fetcher.on_bytes = lambda fetch, count: counted.append(count)
            received.append(await fetcher.fetch(Fetch((0, 1), DONOR, "stage", held.digest, held.payload_bytes)))

    asyncio.run(main())
    assert_same(received[0], held)
    assert sum(counted) == held.payload_bytes


def test_a_part_is_not_taken_for_another() -> None:
    held = donation("head")
    with pytest.raises(WeightsError):
        fetch(FakeStreams(serve=Witness(held).serve), held, "embedding")


@pytest.mark.parametrize("offsets", [[1, 776, 9], [4095], [HELD.payload_bytes - 1], [HELD.payload_bytes], [3, 1, 1]])
def test_a_broken_transfer_goes_on_where_it_stopped(offsets: list[int]) -> None:
    donor = Witness()
    assert_same(fetch(FakeStreams(serve=donor.serve, breaks_after=[HEADER_BYTES + offset for offset in offsets])))
    expected, offset = [0], 0
    for more in offsets:
        offset += more
        expected.append(offset)
    assert [request.offset for request in donor.requests] == expected


@pytest.mark.parametrize("cut", [0, 1, HEADER_BYTES // 2, HEADER_BYTES - 1, HEADER_BYTES])
def test_a_transfer_that_breaks_before_the_first_byte_begins_anew(cut: int) -> None:
    donor = Witness()
    assert_same(fetch(FakeStreams(serve=donor.serve, breaks_after=[cut])))
    assert [request.offset for request in donor.requests] == [0, 0]


def test_digests_are_under_way_before_the_last_byte_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is waited for, and no fetch of two donors waits for the digests of all their weights at the end."""
    monkeypatch.setattr(module, "DIGEST_BYTES", 64)
    monkeypatch.setattr(module, "CHUNK_BYTES", 64)
    seen: list[int] = []

    class Buffer(WeightsBuffer):
        def digest(self) -> None:
            seen.append(self.received)
            super().digest()

    monkeypatch.setattr(module, "WeightsBuffer", Buffer)
    assert_same(fetch(FakeStreams(serve=Witness().serve)))
    assert seen[0] < HELD.payload_bytes
    assert seen[-1] == HELD.payload_bytes


def test_a_transfer_without_its_end_marker_is_not_whole() -> None:
    donor = Witness()
    streams = FakeStreams(serve=donor.serve, breaks_after=[HEADER_BYTES + HELD.payload_bytes + 3])
    assert_same(fetch(streams))
    assert [request.offset for request in donor.requests] == [0, HELD.payload_bytes]


def test_a_transfer_that_goes_on_each_time_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that climbs from the relay breaks its streams, more often than a donor may bring nothing."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 64)
    donor = Witness()
    assert_same(fetch(FakeStreams(serve=donor.serve, breaks_after=[HEADER_BYTES + 64] * (TRIES_MAX + 2))))
    assert len(donor.requests) == TRIES_MAX + 3


def test_a_transfer_that_breaks_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 8)
    monkeypatch.setattr(module, "STREAMS_MAX", 6)
    with pytest.raises(NetworkError, match="interrupted 6 times"):
        fetch(FakeStreams(serve=Witness().serve, breaks_after=[HEADER_BYTES + 8] * 20))


def test_a_donor_that_breaks_again_and_again_is_given_up() -> None:
    donor = Witness()
    streams = FakeStreams(serve=donor.serve, breaks_after=[HEADER_BYTES + 5] * 20)
    with pytest.raises(NetworkError, match=f"interrupted {TRIES_MAX} times"):
        fetch(streams)
    assert [request.offset for request in donor.requests] == [0, 5, 10, 15]


def test_a_donor_that_is_gone_is_not_asked_again() -> None:
    streams = FakeStreams(outcomes=[PeerRefusedError("gone")] * 9, serve=Witness().serve)
    with pytest.raises(PeerRefusedError):
        fetch(streams)
    assert len(streams.outcomes) == 8


def test_a_donor_that_cannot_be_reached_is_tried_again() -> None:
    assert_same(fetch(FakeStreams(outcomes=[NetworkError("slow")] * (TRIES_MAX - 1), serve=Witness().serve)))
    with pytest.raises(NetworkError, match="slow"):
        fetch(FakeStreams(outcomes=[NetworkError("slow")] * TRIES_MAX, serve=Witness().serve))


def test_a_silent_donor_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_TIMEOUT_S", 0.01)

    async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async def stop_within(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await write_frame(writer, FetchHeader(HELD.specs, HELD.payload_bytes))
        writer.write(b"12345")
        await asyncio.sleep(0.1)

    for serve in (say_nothing, stop_within):
        streams = FakeStreams(serve=serve)
        with pytest.raises(NetworkError, match="no byte came in time"):
            fetch(streams)
        assert len(streams.opened) == TRIES_MAX


def test_a_donor_that_sends_a_byte_now_and_then_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, all of them would take for ever."""
    monkeypatch.setattr(module, "SILENCE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(module, "SLOWEST_BYTES_PER_S", HELD.payload_bytes / 0.05)

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await write_frame(writer, FetchHeader(HELD.specs, HELD.payload_bytes))
        for _ in range(40):
            writer.write(b"x")
            await asyncio.sleep(0.005)

    streams = FakeStreams(serve=drip)
    with pytest.raises(NetworkError, match="no byte came in time"):
        fetch(streams)
    assert len(streams.opened) == TRIES_MAX


def test_a_donor_that_does_not_recognise_us_is_not_asked_again() -> None:
    donor = Witness(permits=0)
    streams = FakeStreams(serve=donor.serve)
    with pytest.raises(RemoteProtocolError, match="refused: you are not the claimant"):
        fetch(streams)
    assert len(streams.opened) == 1


def test_a_donor_whose_claimant_changes_stops_within_the_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 64)
    donor = Witness(permits=1 + 3)
    streams = FakeStreams(serve=donor.serve)
    with pytest.raises(RemoteProtocolError, match="refused"):
        fetch(streams)
    assert [request.offset for request in donor.requests] == [0, 3 * 64]


def test_other_weights_than_offered_are_refused() -> None:
    other = donation(seed=2)
    server = WeightsServer(lambda *_: True, lambda _: other)
    with pytest.raises(WeightsError, match="other weights than it offered"):
        fetch(FakeStreams(serve=lambda reader, writer: server.serve(CLAIMANT, reader, writer)))


@pytest.mark.parametrize("position", [0, 1, HELD.payload_bytes // 2, HELD.payload_bytes - 1])
def test_a_corrupt_byte_is_found(position: int) -> None:
    payload = bytearray(b"".join(HELD.chunks(0, 1 << 20)))
    payload[position] ^= 1

    async def corrupt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        await write_frame(writer, FetchHeader(HELD.specs, HELD.payload_bytes))
        writer.write(bytes(payload) + encode_frame(FetchEnd()))

    with pytest.raises(WeightsError, match="do not match their digest"):
        fetch(FakeStreams(serve=corrupt))


LYING_SPECS = (
    HELD.specs[:-1],
    (*HELD.specs, HELD.specs[-1]),
    HELD.specs[::-1],
    (msgspec.structs.replace(HELD.specs[0], shape=(1 << 30,)), *HELD.specs[1:]),
    (msgspec.structs.replace(HELD.specs[0], dtype="bfloat16"), *HELD.specs[1:]),
)


@pytest.mark.parametrize("specs", LYING_SPECS)
def test_specs_of_another_stage_are_refused_before_there_is_room_for_it(
    specs: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WeightsBuffer", lambda _: pytest.fail("room was made"))

    async def lie(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await write_frame(writer, FetchHeader(specs, HELD.payload_bytes))  # type: ignore[arg-type]

    with pytest.raises(WeightsError):
        fetch(FakeStreams(serve=lie))


def test_a_donor_must_not_change_its_weights_between_two_streams() -> None:
    other = donation(seed=2)
    headers = [HELD.specs, other.specs]

    async def change(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await write_frame(writer, FetchHeader(headers.pop(0), HELD.payload_bytes))  # type: ignore[arg-type]
        writer.write(b"12345")

    with pytest.raises(RemoteProtocolError, match="changed its weights"):
        fetch(FakeStreams(serve=change))


@pytest.mark.parametrize(
    "answer", [encode_frame(Heartbeat(1, 1, "serving", 1)), encode_frame(FetchEnd()), b"\x00" * 12]
)
def test_an_answer_that_is_none_ends_the_fetch(answer: bytes) -> None:
    async def answer_nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    streams = FakeStreams(serve=answer_nonsense)
    with pytest.raises(RemoteProtocolError):
        fetch(streams)
    assert len(streams.opened) == 1


def test_too_many_bytes_are_no_end() -> None:
    async def go_on(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await write_frame(writer, FetchHeader(HELD.specs, HELD.payload_bytes))
        writer.write(b"".join(HELD.chunks(0, 1 << 20)) + encode_frame(Heartbeat(1, 1, "serving", 1)))

    with pytest.raises(RemoteProtocolError, match="end marker"):
        fetch(FakeStreams(serve=go_on))


# --- the donor's side --------------------------------------------------------------------------


def served(data: bytes, donor: Witness) -> MemoryWriter:
    writer = MemoryWriter()

    async def main() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await donor.serve(reader_of(data), as_writer(writer))

    asyncio.run(main())
    return writer


@pytest.mark.parametrize(
    "request_bytes",
    [b"", b"\x01", encode_frame(FetchEnd()), PREFIX.pack(1 << 20, 0), PREFIX.pack(1, 0) + b"\xc1", PREFIX.pack(1, 1)],
)
def test_a_donor_answers_nothing_but_a_request(request_bytes: bytes) -> None:
    assert served(request_bytes, Witness()).data == b""


@pytest.mark.parametrize(
    ("digest", "offset"), [("0" * 64, 0), (HELD.digest, HELD.payload_bytes + 1), (HELD.digest, 2**50)]
)
def test_a_donor_refuses_what_it_does_not_hold(digest: str, offset: int) -> None:
    writer = served(encode_frame(FetchRequest(*CLAIM, digest, offset)), Witness())

    async def main() -> None:
        assert isinstance(await read_message(reader_of(bytes(writer.data))), FetchRefused)

    asyncio.run(main())


def test_a_claimant_that_takes_nothing_in_does_not_hold_the_donor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_TIMEOUT_S", 0.01)

    async def main() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            silent = asyncio.StreamReader()
            await Witness().serve(silent, as_writer(MemoryWriter()))
            writer = MemoryWriter()
            writer.is_stuck = True
            request = encode_frame(FetchRequest(*CLAIM, HELD.digest, 0))
            await Witness().serve(reader_of(request), cast(asyncio.StreamWriter, writer))
            assert len(writer.data) == HEADER_BYTES

    asyncio.run(main())


@pytest.mark.parametrize("part", ["stage", "embedding", "head"])
def test_a_header_of_more_tensors_than_the_part_has_is_not_read(part: Part) -> None:
    """65,536 of them took half a second of the event loop."""
    held = donation(part)
    assert len(encode_frame(FetchHeader(held.specs, held.payload_bytes))) <= header_bytes_max(part, SETTINGS, 3)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        await write_frame(writer, FetchHeader(held.specs * (1 + 2000 // len(held.specs)), held.payload_bytes))

    with pytest.raises(RemoteProtocolError, match="are allowed"):
        fetch(FakeStreams(serve=serve), held, part)
