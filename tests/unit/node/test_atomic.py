"""A file that is written is there whole, or what was there before is."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from understudy.node.files import atomic as module
from understudy.node.files.atomic import write_atomically, writing_aside


class FullDisk(io.FileIO):
    """Takes half of what is written, then no more."""

    def write(self, content: Any) -> int:
        super().write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=[b"old", None], ids=["over an old file", "where there was none"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "join.txt"
    if request.param is not None:
        path.write_bytes(request.param)
    return path


def old(path: Path) -> tuple[list[str], bytes | None]:
    return names(path.parent), path.read_bytes() if path.exists() else None


def test_what_was_written_is_there_and_nothing_else(path: Path) -> None:
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["join.txt"]


def test_a_full_disk_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = old(path)
    monkeypatch.setattr(module, "open", FullDisk, raising=False)
    with pytest.raises(OSError, match="No space left on device"):
        write_atomically(path, b"a whole new content")
    assert old(path) == before


@pytest.mark.parametrize("interrupted", ["sync", "replace"])
def test_what_ends_between_writing_and_renaming_changes_nothing(
    path: Path, interrupted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = old(path)
    content = []

    def interrupt(aside: Path, *_: Any) -> None:
        content.append(aside.read_bytes())
        raise KeyboardInterrupt

    monkeypatch.setattr(*{"sync": (module, "sync"), "replace": (Path, "replace")}[interrupted], interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert content == [b"new"]
    assert old(path) == before


def test_whoever_writes_by_name_and_fails_changes_nothing(path: Path) -> None:
    before = old(path)

    def fail(aside: Path) -> None:
        aside.write_bytes(b"half")
        raise RuntimeError("no such tensor")

    with pytest.raises(RuntimeError, match="tensor"), writing_aside(path) as aside:
        fail(aside)
    assert old(path) == before


def test_the_file_is_on_the_disk_before_its_name_and_the_name_before_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append("folder" if is_folder else os.pread(descriptor, 10, 0).decode())
        fsync(descriptor)

    def note_replace(aside: Path, target: Path) -> Path:
        done.append("rename")
        return replace(aside, target)

    monkeypatch.setattr(module.os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_atomically(path, b"new")
    assert done == ["new", "rename", "folder"]


def test_what_is_there_is_not_replaced_unless_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    write_atomically(path, b"first", may_replace=False)
    with pytest.raises(FileExistsError):
        write_atomically(path, b"second", may_replace=False)
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["identity.key"]


@pytest.mark.parametrize(("mode", "found"), [(0o600, 0o600), (0o666, 0o644)])
def test_the_mode_is_as_asked_less_the_umask(tmp_path: Path, mode: int, found: int) -> None:
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "file", b"", mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == found


def refuse_folders(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(module.os, "fsync", refuse)


def test_a_file_system_that_cannot_sync_folders_is_no_failure(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_folders(monkeypatch, errno.EINVAL)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_disk_that_fails_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_folders(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(path, b"new")


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file", b"new")
