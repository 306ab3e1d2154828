"""``--join @FILE``: read when it is there, waited for when it is not, never read half."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from understudy.node import join_file
from understudy.node.join_file import read_join, write_join
from understudy.node.p2p.addresses import JOIN_CHARS_MAX, JoinString
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


# --- what is no file ---------------------------------------------------------------------------


def written(descriptor: int, content: bytes) -> None:
    os.write(descriptor, content)
    os.close(descriptor)


@pytest.mark.parametrize("content", [f"{JOIN}\n".encode(), str(JOIN).encode(), f"\n{JOIN}\nmore\n".encode()])
def test_a_join_string_comes_through_a_pipe(content: bytes) -> None:
    """As with ``@<(command)``."""
    reading, writing = os.pipe()
    written(writing, content)
    try:
        assert asyncio.run(read_join(f"@/dev/fd/{reading}", 0)) == JOIN
    finally:
        os.close(reading)


def test_a_pipe_that_nobody_has_opened_yet_is_waited_for_a_while(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    async def race() -> JoinString:
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(read_join(f"@{tmp_path}/pipe", 0))
            await asyncio.to_thread((tmp_path / "pipe").write_text, f"{JOIN}\n", "utf-8")
        return reading.result()

    assert asyncio.run(race()) == JOIN


def test_a_pipe_that_nobody_writes_to_does_not_hold_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(join_file, "PIPE_PATIENCE_S", 0.3)
    with pytest.raises(NetworkError, match=r"no join string came through .*/pipe in 0.3 s: see what should write it"):
        asyncio.run(read_join(f"@{tmp_path}/pipe", 0))


def test_a_pipe_that_ends_empty_is_said_so() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    try:
        with pytest.raises(SettingsError, match=f"/dev/fd/{reading} ended without a join string"):
            asyncio.run(read_join(f"@/dev/fd/{reading}", 0))
    finally:
        os.close(reading)
    with pytest.raises(SettingsError, match="/dev/null ended without a join string"):
        asyncio.run(read_join("@/dev/null", 0))


def test_a_join_string_can_be_typed() -> None:
    person, terminal = os.openpty()
    try:
        os.write(person, f"{JOIN}\n".encode())
        assert asyncio.run(read_join(f"@{os.ttyname(terminal)}", 0)) == JOIN
    finally:
        os.close(person)
        os.close(terminal)


def test_what_never_ends_is_read_no_further_than_a_join_string_goes() -> None:
    with pytest.raises(SettingsError, match="not a join string"):
        asyncio.run(read_join("@/dev/zero", 0))


def test_a_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(SettingsError, match=r"hold a join string \(it is a socket, not a file\)"):
            asyncio.run(read_join(f"@{tmp_path}/socket", 0))
