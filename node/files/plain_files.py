"""Files that a person names, opened without waiting for anybody.

Opening a FIFO waits for somebody at its other end, for ever if need be, and the node, with all that Ctrl-C and SIGTERM
mean to it, would wait too.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a disk",
    stat.S_IFLNK: "a link",
}


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises `OSError`, whose strerror says so if it is something else."""
    require_plain(path.stat().st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        require_plain(os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def read_plain(path: Path) -> bytes:
    """All of a regular file. Raises `OSError` as `open_plain` does."""
    with open_plain(path) as file:
        return file.read()


def read_bounded(path: Path, bytes_max: int) -> bytes:
    """All of a regular file that is no link. Raises `OSError`, whose strerror says if it is something else, or larger.

    Files of the kernel say that they have no bytes, and some of them never end.
    """
    require_plain(path.lstat().st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        require_plain(found.st_mode)
        if found.st_size > bytes_max:
            raise OSError(errno.EFBIG, f"it has {found.st_size} bytes, and there is room for {bytes_max}")
        content = file.read(found.st_size + 1) or b""
    if len(content) > found.st_size:
        raise OSError(errno.EFBIG, "it has more bytes than it says: it is no plain file, or somebody writes it")
    return content


def is_stream(path: Path) -> bool:
    """Whether it is a pipe, a terminal or the like: what is read or written there passes through, once."""
    return path.exists() and (path.is_fifo() or path.is_char_device())


def require_plain(mode: int) -> None:
    """Raises `OSError` unless the mode is a regular file's."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {kind(mode)}, not a file")


def kind(mode: int) -> str:
    """What a mode is of, if not of a file or a folder."""
    return _KINDS.get(stat.S_IFMT(mode), "something special")


def require_plain_entries(folder: Path) -> None:
    """Raises `OSError` that names what a library would wait for in a folder that is given to it."""
    for path in folder.iterdir():
        mode = path.stat().st_mode if path.exists() else stat.S_IFREG
        if stat.S_IFMT(mode) in _KINDS:
            raise OSError(errno.EINVAL, f"its {path.name} is {kind(mode)}, not a file")
