"""Files that a person names are opened without waiting, and what is no file is said to be none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.node.files.plain_files import open_plain, read_plain, require_plain_entries

OPENED = """
import os, sys
from understudy.node.files.descriptors import open_standard_descriptors
open_standard_descriptors()
print("out")
print("err", file=sys.stderr)
found = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
after = os.open("/dev/null", os.O_RDONLY)
with open(sys.argv[1], "w", encoding="utf-8") as file:
    print(*found, after, sys.stdin.read() == "", file=file)
"""


def test_a_file_is_read_through_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_plain(tmp_path / "link") == b"content"
    with pytest.raises(FileNotFoundError):
        open_plain(tmp_path / "none")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    kinds = {tmp_path / "pipe": "a pipe", tmp_path / "socket": "a socket", Path("/dev/null"): "a device"}
    for path, kind in kinds.items():
        with pytest.raises(OSError, match=f"it is {kind}, not a file"):
            open_plain(path)
    with pytest.raises(IsADirectoryError):
        open_plain(tmp_path)


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    monkeypatch.setattr(Path, "stat", lambda _, **__: os.stat(tmp_path / "file"))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="it is a pipe, not a file"):
        open_plain(tmp_path / "pipe")
    assert os.listdir("/proc/self/fd") == before


def test_a_folder_for_a_library_holds_files_folders_and_links(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "broken").symlink_to("nowhere")
    require_plain_entries(tmp_path)
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(OSError, match=r"its model\.safetensors is a pipe, not a file"):
        require_plain_entries(tmp_path)


@pytest.mark.parametrize("closed", ["", "0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_no_standard_descriptor_stays_closed(closed: str, tmp_path: Path) -> None:
    found = tmp_path / "found"
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", OPENED, str(found)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    *targets, after, is_empty = found.read_text(encoding="utf-8").split()
    assert int(after) > 2
    assert is_empty == "True"
    for number, target in enumerate(targets):
        assert (target == "/dev/null") == (number == 0 or f"{number}>&-" in closed)
    assert done.stdout == ("" if "1>&-" in closed else "out\n")
    assert done.stderr == ("" if "2>&-" in closed else "err\n")
