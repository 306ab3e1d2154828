"""Frames: whole or not at all, whatever the stream does, and nothing beyond the limits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fakes import MemoryWriter, as_writer, reader_of, run_leaping
from understudy.node.compute.tensors import bytes_of, to_wire
from understudy.node.links import framing
from understudy.node.links.framing import (
    SLOWEST_BYTES_PER_S,
    STALL_TIMEOUT_S,
    read_into,
    read_link_frame,
    read_message,
    read_some,
    write_frame,
)
from understudy.protocol.errors import NetworkError, RemoteProtocolError
from understudy.protocol.ids import Attempt
from understudy.protocol.manifest import WireDtype
from understudy.protocol.wire.frames import FETCH_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX, PREFIX, encode_frame
from understudy.protocol.wire.messages import AnyMessage, Backward, FetchEnd, Forward, Heartbeat, Hello
from understudy.protocol.wire.tensors import TensorHeader

ACTIVATION = TensorHeader("float32", (2, 3, 4))
HEARTBEAT = Heartbeat(2, 1, "serving", 7)
FORWARD = Forward(8, 1, Attempt(1, 0), 1, 1)
TIMEOUT_S = 5.0


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, TIMEOUT_S))


def activation() -> Tensor:
    return torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)


async def written(message: AnyMessage, tensor: Tensor | None = None) -> bytes:
    writer = MemoryWriter()
    await write_frame(as_writer(writer), message, tensor)
    return bytes(writer.data)


async def read_link(data: bytes) -> tuple[AnyMessage, Tensor | None] | None:
    return await read_link_frame(reader_of(data), ACTIVATION, TIMEOUT_S)


@pytest.mark.parametrize("kind", [Forward, Backward])
def test_a_data_message_arrives_with_its_tensor(kind: type[Forward | Backward]) -> None:
    async def main() -> None:
        message = kind(8, 1, Attempt(1, 0), 1, 1)
        frame = await read_link(await written(message, activation()))
        assert frame is not None
        assert frame[0] == message
        assert frame[1] is not None
        assert torch.equal(frame[1], activation())

    run(main())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_tensor_of_each_dtype_arrives_as_it_was_sent(dtype: WireDtype) -> None:
    async def main() -> None:
        sent = to_wire(activation(), dtype)
        data = await written(FORWARD, sent)
        assert data.endswith(bytes(bytes_of(sent)))
        frame = await read_link_frame(reader_of(data), TensorHeader(dtype, (2, 3, 4)), TIMEOUT_S)
        assert frame is not None
        assert frame[1] is not None
        assert frame[1].dtype == sent.dtype
        assert torch.equal(frame[1], sent)

    run(main())


def test_frames_follow_each_other_and_the_end_is_no_error() -> None:
    async def main() -> None:
        data = await written(HEARTBEAT) + await written(FORWARD, activation()) + await written(HEARTBEAT)
        reader = reader_of(data)
        kinds = []
        while (frame := await read_link_frame(reader, ACTIVATION, TIMEOUT_S)) is not None:
            kinds.append(type(frame[0]))
        assert kinds == [Heartbeat, Forward, Heartbeat]
        assert await read_message(reader_of(b"")) is None

    run(main())


def test_a_stream_cut_off_at_any_byte_is_a_failure_of_the_network() -> None:
    async def main() -> None:
        for whole in (await written(HEARTBEAT), await written(FORWARD, activation())):
            for length in range(1, len(whole)):
                with pytest.raises(NetworkError, match="cut off"):
                    await read_link(whole[:length])
        message = await written(Hello(1, "digest"))
        for length in range(1, len(message)):
            with pytest.raises(NetworkError, match="cut off"):
                await read_message(reader_of(message[:length]))

    run(main())


@pytest.mark.parametrize("piece_bytes", [1, 7, 24, 1000])
def test_a_tensor_arrives_in_pieces_of_any_size(piece_bytes: int) -> None:
    async def main() -> None:
        data = await written(FORWARD, activation())
        reader = asyncio.StreamReader()
        reading = asyncio.ensure_future(read_link_frame(reader, ACTIVATION, TIMEOUT_S))
        for start in range(0, len(data), piece_bytes):
            reader.feed_data(data[start : start + piece_bytes])
            await asyncio.sleep(0)
        frame = await reading
        assert frame is not None
        assert frame[1] is not None
        assert torch.equal(frame[1], activation())

    run(main())


@pytest.mark.parametrize(
    ("message_bytes", "payload_bytes"),
    [(0, 0), (MESSAGE_BYTES_MAX + 1, 0), (2**32 - 1, 0), (10, 4 * 24 + 1), (10, 2**64 - 1)],
)
def test_a_frame_beyond_the_limits_is_refused_before_its_body_comes(message_bytes: int, payload_bytes: int) -> None:
    async def main() -> None:
        reader = asyncio.StreamReader()  # without an end: reading on would wait
        reader.feed_data(PREFIX.pack(message_bytes, payload_bytes))
        with pytest.raises(RemoteProtocolError, match="are allowed"):
            await read_link_frame(reader, ACTIVATION, TIMEOUT_S)

    run(main())


def test_a_stream_without_tensors_accepts_none_and_has_a_limit_of_its_own() -> None:
    async def main() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(PREFIX.pack(10, 1))
        with pytest.raises(RemoteProtocolError, match="at most 0"):
            await read_message(reader)
        long_message = PREFIX.pack(MESSAGE_BYTES_MAX + 1, 0) + b"\xc1" * (MESSAGE_BYTES_MAX + 1)
        with pytest.raises(RemoteProtocolError, match="are allowed"):
            await read_message(reader_of(long_message))
        with pytest.raises(RemoteProtocolError, match="malformed"):
            await read_message(reader_of(long_message), FETCH_MESSAGE_BYTES_MAX)

    run(main())


@pytest.mark.parametrize(
    "header",
    [
        None,
        TensorHeader("bfloat16", (2, 3, 4)),
        TensorHeader("int8", (2, 3, 4)),
        TensorHeader("float32", (4, 3, 2)),
        TensorHeader("float32", (24,)),
    ],
)
def test_another_tensor_than_the_runs_is_refused_before_there_is_room_for_it(
    header: TensorHeader | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framing, "empty_tensor", lambda _: pytest.fail("room was made"))

    async def main() -> None:
        with pytest.raises(RemoteProtocolError, match="the run's are"):
            await read_link(encode_frame(FORWARD, header))

    run(main())


def test_a_tensor_behind_a_control_message_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(RemoteProtocolError, match="carries a tensor"):
            await read_link(encode_frame(HEARTBEAT, ACTIVATION))

    run(main())


BIG = TensorHeader("float32", (1, 1024, 1024))
BIG_BYTES = 4 << 20


def feed(reader: asyncio.StreamReader, data: bytes, piece_bytes: int, every_s: float) -> None:
    """Bring the data piece by piece."""
    for number, start in enumerate(range(0, len(data), piece_bytes)):
        piece = data[start : start + piece_bytes]
        asyncio.get_running_loop().call_later(every_s * (number + 1), reader.feed_data, piece)


def test_a_frame_that_began_must_go_on() -> None:
    async def main() -> None:
        whole = await written(FORWARD, activation())
        for length in (1, PREFIX.size, PREFIX.size + 3, len(whole) - 1):
            reader = asyncio.StreamReader()
            reader.feed_data(whole[:length])
            began = asyncio.get_running_loop().time()
            with pytest.raises(TimeoutError):
                await read_link_frame(reader, ACTIVATION, 1e6)
            assert asyncio.get_running_loop().time() - began == pytest.approx(STALL_TIMEOUT_S)

    run_leaping(main())


def test_the_wait_for_a_frame_is_the_callers() -> None:
    """The frame's own deadline begins with its first byte."""

    async def main() -> None:
        reader = asyncio.StreamReader()
        feed(reader, await written(HEARTBEAT), 100, every_s=1000.0)
        assert await read_link_frame(reader, ACTIVATION, 1001.0) == (HEARTBEAT, None)
        with pytest.raises(TimeoutError):
            await read_link_frame(reader, ACTIVATION, 1001.0)

    run_leaping(main())


@pytest.mark.parametrize(("bytes_per_s", "is_in_time"), [(1.2 * SLOWEST_BYTES_PER_S, True), (8 * 1024, False)])
def test_a_tensor_that_comes_slowly_comes_and_one_that_trickles_does_not(bytes_per_s: float, is_in_time: bool) -> None:
    async def main() -> None:
        reader = asyncio.StreamReader()
        data = await written(FORWARD, torch.ones(BIG.shape))
        feed(reader, data, 64 * 1024, every_s=64 * 1024 / bytes_per_s)
        if is_in_time:
            assert await read_link_frame(reader, BIG, TIMEOUT_S) is not None
            assert asyncio.get_running_loop().time() > BIG_BYTES / SLOWEST_BYTES_PER_S / 1.3
        else:
            with pytest.raises(TimeoutError):
                await read_link_frame(reader, BIG, 10.0)
            assert asyncio.get_running_loop().time() < 60.0 + BIG_BYTES / SLOWEST_BYTES_PER_S

    run_leaping(main())


@pytest.mark.parametrize(
    ("bytes_per_s", "is_in_time"), [(1.2 * SLOWEST_BYTES_PER_S, True), (8 * 1024, False), (4 * 1024, False)]
)
def test_a_writer_has_the_time_that_its_bytes_need(bytes_per_s: float, is_in_time: bool) -> None:
    """Four tensors of 16.8 MB at a time, in 120 s: lines of less than 4.5 Mbit/s never got one through."""

    async def main() -> None:
        writer = MemoryWriter()
        writer.bytes_per_s = bytes_per_s
        if is_in_time:
            await write_frame(as_writer(writer), FORWARD, torch.ones(BIG.shape))
            assert len(writer.data) > BIG_BYTES
        else:
            with pytest.raises(TimeoutError):
                await write_frame(as_writer(writer), FORWARD, torch.ones(BIG.shape))

    run_leaping(main())


def test_some_bytes_are_some_bytes() -> None:
    async def main() -> None:
        target = bytearray(10)
        reader = asyncio.StreamReader()
        reader.feed_data(b"abc")
        assert await read_some(reader, memoryview(target)) == 3
        reader.feed_data(b"defghijKLM")
        await read_into(reader, memoryview(target)[3:])
        assert target == b"abcdefghij"
        assert await reader.read(3) == b"KLM"  # not one byte more was taken
        reader.feed_eof()
        with pytest.raises(NetworkError, match="within a tensor"):
            await read_some(reader, memoryview(target))

    run(main())


def test_a_writer_waits_until_its_frame_is_taken_in() -> None:
    async def main() -> None:
        writer = MemoryWriter()
        writer.is_stuck = True
        for message, tensor in ((FetchEnd(), None), (FORWARD, activation())):
            with pytest.raises(TimeoutError):
                await write_frame(as_writer(writer), message, tensor)

    run_leaping(main())
