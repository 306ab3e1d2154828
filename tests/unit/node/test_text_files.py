"""Of a folder that somebody else may have packed: its own plain files, of bounded size, and nothing else."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from understudy.node.data import text_files
from understudy.node.data.text_files import read_texts, require_plain_tree
from understudy.node.files.plain_files import read_bounded
from understudy.protocol.errors import SettingsError


def refusal(*paths: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        read_texts(paths)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One honest file, and a secret next to the folder."""
    (tmp_path / "secret").write_text("the key")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "a.txt").write_text("text")
    return tmp_path / "packed"


@pytest.mark.parametrize("target", ["../secret", "/proc/self/environ", "a.txt", "/", "..", "nowhere"])
def test_no_link_in_a_folder_is_followed(folder: Path, target: str) -> None:
    (folder / "link").symlink_to(target)
    assert refusal(folder).endswith("packed/link cannot be read: it is a link, not a file")
    with pytest.raises(SettingsError, match="it is a link, not a file"):
        require_plain_tree(folder)


def test_a_link_that_a_person_names_is_what_it_points_to(folder: Path) -> None:
    (folder.parent / "named").symlink_to(folder)
    (folder.parent / "file").symlink_to(folder / "a.txt")
    found = read_texts([folder.parent / "named", folder.parent / "file"])
    assert [(file.name, file.content) for file in found] == [("a.txt", b"text"), ("file", b"text")]


def test_pipes_sockets_and_devices_are_neither_opened_nor_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "b")
    assert "it is a pipe, not a file" in refusal(folder)
    (folder / "b").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "b"))
        assert "it is a socket, not a file" in refusal(folder)
        with pytest.raises(SettingsError, match="it is a socket, not a file"):
            require_plain_tree(folder)
    assert "is neither a file nor a folder" in refusal(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["/proc/self/environ", "/proc/self/status", "/proc/kallsyms"])
def test_a_file_of_the_kernel_that_says_it_is_empty_is_not_read_to_its_end(name: str) -> None:
    assert "more bytes than it says" in refusal(Path(name))


def test_no_more_is_read_than_there_is_room_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / "hole.txt").open("wb") as file:
        file.truncate(1 << 40)
    assert f"it has {1 << 40} bytes, and there is room for {text_files.TEXT_BYTES_MAX - 4}" in refusal(folder)
    monkeypatch.setattr(text_files, "FILES_MAX", 1)
    assert "has more than 1 files" in refusal(folder)


def test_the_last_byte_of_room_is_used_and_no_descriptor_is_left(folder: Path) -> None:
    before = os.listdir("/proc/self/fd")
    assert read_bounded(folder / "a.txt", 4) == b"text"
    with pytest.raises(OSError, match="it has 4 bytes, and there is room for 3"):
        read_bounded(folder / "a.txt", 3)
    assert os.listdir("/proc/self/fd") == before


def test_a_link_that_takes_the_place_of_a_file_is_not_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "link").symlink_to("a.txt")
    monkeypatch.setattr(Path, "lstat", lambda _: os.stat(folder / "a.txt"))
    with pytest.raises(OSError, match="symbolic links"):
        read_bounded(folder / "link", 100)
