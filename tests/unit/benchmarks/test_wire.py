"""The benchmark of the wire: its arithmetic, its files, and bytes that really travel."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.keeping import keep
from benchmarks.origin import Origin
from benchmarks.page import fill_in
from benchmarks.wire.__main__ import PAGE
from benchmarks.wire.paths import BarePath, activation_of, rules_for, take_in, tensor_of
from benchmarks.wire.results import Transfer, WireResult, cpu_table, missed, ratio, read, speed, wire_table
from understudy.node.compute.tensors import bytes_of, header_of
from understudy.node.p2p.zero_copy import open_unix_stream, start_unix_streams
from understudy.protocol.wire.frames import tensor_bytes

MIB = 1 << 20
CPU = {"sender": 0.1, "receiver": 0.2, "daemons": 0.7}


def transfers(way: str, size: int, speeds: list[float]) -> list[Transfer]:
    """Ten tensors each, at these MB/s."""
    return [Transfer(way, size, 10, size * 10 / 1e6 / rate, CPU) for rate in speeds]


def result(*found: list[Transfer]) -> WireResult:
    return WireResult(tuple(transfer for part in found for transfer in part), Origin("abc", {}, "a machine"))


FOUND = result(
    transfers("hivemind", MIB, [100, 200, 400]),
    transfers("stream", MIB, [100, 100, 100]),
    transfers("links", MIB, [95, 100, 380]),
    transfers("hivemind", 1 << 16, [100]),
    transfers("stream", 1 << 16, [100]),
    transfers("links", 1 << 16, [50]),
)


def test_speed_is_the_median_and_a_ratio_compares_neighbours() -> None:
    assert speed(FOUND, "hivemind", MIB) == pytest.approx(200)
    assert ratio(FOUND, "links", MIB) == pytest.approx(0.95)  # of 0.95, 0.5, 0.95; of the medians it would be 0.5


def test_the_target_is_for_large_tensors() -> None:
    assert missed(FOUND) == []
    slow = result(transfers("hivemind", MIB, [100]), transfers("stream", MIB, [1]), transfers("links", MIB, [89]))
    assert missed(slow) == [MIB]


def test_the_tables_say_what_was_measured() -> None:
    rows = wire_table(FOUND).splitlines()[2:]
    assert rows == ["| 64 KiB | 100 | 100 | 50 | 0.50 | 50 to 50 |", "| 1 MiB | 200 | 100 | 100 | 0.95 | 95 to 380 |"]
    rows = cpu_table(FOUND).splitlines()[2:]
    assert len(rows) == 4
    assert rows[-1] == "| 1 MiB | links | 9.54 | 19.07 | 66.76 |"


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    keep(FOUND, tmp_path / "folder" / "wire.json")
    assert read(tmp_path / "folder" / "wire.json") == FOUND


def test_the_page_has_room_for_the_tables() -> None:
    fill_in(PAGE.read_text(encoding="utf-8"), {"wire": "", "wire-cpu": "", "wire-origin": ""})


@pytest.mark.parametrize("size", [64 << 10, MIB, 16 * MIB])
def test_what_is_sent_is_an_activation_of_the_rules(size: int) -> None:
    tensor = tensor_of(size)
    assert header_of(tensor) == activation_of(size) == rules_for(size).activation
    assert len(bytes_of(tensor)) == tensor_bytes(activation_of(size)) == size


def test_a_transfer_ends_when_the_receiver_has_it_all(tmp_path: Path) -> None:
    async def main() -> None:
        is_over = asyncio.Event()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await take_in(reader, writer)
            await writer.wait_closed()
            is_over.set()

        async with asyncio.timeout(5.0), await start_unix_streams(accept, tmp_path / "socket", 1 << 16):
            path = BarePath(await open_unix_stream(tmp_path / "socket", 1 << 16))
            for _ in range(2):
                await path.send(tensor_of(1 << 16), 3)
            await path.close()
            await is_over.wait()

    asyncio.run(main())
