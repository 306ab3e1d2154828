"""The join string from a file: ``--join @FILE``, for a node that starts beside its seed and may be there first.

The file may be a pipe (``@/dev/stdin``, ``@<(ssh founder cat run/join.txt)``) or a terminal. Nothing here waits for it
outside of the event loop, so Ctrl-C and SIGTERM are heard meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
import time
from pathlib import Path

from understudy.node.files.atomic import write_atomically
from understudy.node.files.plain_files import is_stream, open_plain
from understudy.node.p2p.addresses import JOIN_CHARS_MAX, JoinString, parse_join
from understudy.protocol.errors import NetworkError, SettingsError

FILE_MARK = "@"
LOOK_AGAIN_AFTER_S = 0.2
PIPE_PATIENCE_S = 60.0
"""For whoever writes into a pipe, or types: a command that asks another machine, or a person who pastes."""
BYTES_READ_MAX = JOIN_CHARS_MAX + 2


async def read_join(text: str, wait_s: float) -> JoinString:
    """The join string in ``text``, or in the file that ``@FILE`` names, which may take ``wait_s`` seconds to appear.

    Raises `SettingsError` for a damaged join string and `NetworkError` for a file that did not come.
    """
    if not text.startswith(FILE_MARK):
        return parse_join(text)
    path = Path(text.removeprefix(FILE_MARK))
    try:
        if is_stream(path):
            return parse_join(await _from_stream(path, max(wait_s, PIPE_PATIENCE_S)))
        return parse_join(await _from_file(path, wait_s))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(f"{path} cannot be read: it should hold a join string ({reason})") from error


def write_join(path: Path, join: JoinString) -> None:
    """Write the file in one go: whoever waits for it finds all of it or nothing. Raises `OSError`."""
    write_atomically(path, f"{join}\n".encode())


async def _from_file(path: Path, wait_s: float) -> str:
    give_up_at = time.monotonic() + wait_s
    while not (found := _content(path)):
        if time.monotonic() >= give_up_at:
            raise NetworkError(
                f"no join string in {path} after {wait_s:g} s: start the seed, or wait longer with --wait"
            )
        await asyncio.sleep(LOOK_AGAIN_AFTER_S)
    return found


def _content(path: Path) -> str:
    try:
        with open_plain(path) as file:
            return file.read(BYTES_READ_MAX).decode().strip()
    except FileNotFoundError:
        return ""


async def _from_stream(path: Path, patience_s: float) -> str:
    """The first line that is not empty, or all until the end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        give_up_at = time.monotonic() + patience_s
        came, is_at_end = b"", False
        while not is_at_end and len(came) < BYTES_READ_MAX and b"\n" not in came.lstrip():
            if time.monotonic() >= give_up_at:
                raise NetworkError(
                    f"no join string came through {path} in {patience_s:g} s: "
                    "see what should write it, or wait longer with --wait"
                )
            piece = _piece(descriptor)
            if piece:
                came += piece
                continue
            is_at_end = piece is not None and (bool(came) or _is_over(descriptor))
            await asyncio.sleep(LOOK_AGAIN_AFTER_S)
    finally:
        os.close(descriptor)
    lines = came.decode().split()
    if not lines:
        raise SettingsError(f"{path} ended without a join string: see what should write it")
    return lines[0]


def _piece(descriptor: int) -> bytes | None:
    """What is there to be read; None: nothing yet, empty: nobody writes at present."""
    try:
        return os.read(descriptor, BYTES_READ_MAX)
    except BlockingIOError:
        return None


def _is_over(descriptor: int) -> bool:
    """Whether no writer is left. A pipe that none has opened yet is not over."""
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return True
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))
