"""``--join @FILE``: read when it is there, waited for when it is not, never read half."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from understudy.node.addresses import JOIN_CHARS_MAX, JoinString
from understudy.node.join_file import read_join, write_join
from understudy.protocol.errors import NetworkError, SettingsError
from understudy.protocol.ids import PeerId

PEER = PeerId("QmaLSUhx7EAB8DTShrFLU3fv8HDCR5ZSx822Urrcje2CjC")
JOIN = JoinString("tiny-0123456789ab", "0123456789ab" + "f" * 52, PEER, (f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}",))


def test_a_join_string_is_taken_as_it_is() -> None:
    assert asyncio.run(read_join(str(JOIN), 0)) == JOIN


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_join(tmp_path / "join.txt", JOIN)
    assert asyncio.run(read_join(f"@{tmp_path}/join.txt", 0)) == JOIN
    assert [path.name for path in tmp_path.iterdir()] == ["join.txt"]


@pytest.mark.parametrize("is_empty", [False, True])
def test_a_file_that_comes_late_is_waited_for(tmp_path: Path, is_empty: bool) -> None:
    path = tmp_path / "join.txt"
    if is_empty:
        path.touch()

    async def race() -> JoinString:
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(read_join(f"@{path}", 30))
            await asyncio.to_thread(write_join, path, JOIN)
        return reading.result()

    assert asyncio.run(race()) == JOIN


def test_a_file_that_does_not_come_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"join\.txt after 0 s: start the seed"):
        asyncio.run(read_join(f"@{tmp_path}/join.txt", 0))


@pytest.mark.parametrize("content", [b"hello\n", b"\xff\xfe", b"understudy:" + b"1" * 2 * JOIN_CHARS_MAX])
def test_another_file_is_refused_at_once(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "join.txt"
    path.write_bytes(content)
    with pytest.raises(SettingsError):
        asyncio.run(read_join(f"@{path}", 30))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        asyncio.run(read_join(f"@{tmp_path}", 30))
