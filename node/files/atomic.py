"""Files that are there whole or not at all, whatever interrupts us: an error, a full disk, a kill, a power cut.

What is new is written beside its place, brought to the disk, and takes the name in one rename. A kill in between
leaves the old file as it was, and a file that ends in `ASIDE`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

ASIDE = ".new"
"""What the name of a file that is being written ends in."""


def write_atomically(path: Path, content: bytes, *, mode: int = 0o666, may_replace: bool = True) -> None:
    """Write a file: whoever opens it finds all of it, or what was there before. Raises `OSError`.

    ``mode`` is that of a new file, less the umask. Unless it ``may_replace``, a file that is there already stays, and
    that is a `FileExistsError`.
    """
    with writing_aside(path, may_replace=may_replace) as aside:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(content)


@contextlib.contextmanager
def writing_aside(path: Path, *, may_replace: bool = True) -> Iterator[Path]:
    """The same for whoever must write by a name: what is there at the end becomes ``path``, after an error nothing."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}{ASIDE}")
    try:
        yield aside
        sync(aside)
        if may_replace:
            aside.replace(path)
        else:
            os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync(path: Path) -> None:
    """What the name says is on the disk before it is relied on. Raises `OSError`."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """So are the names in a folder, as far as its file system can say so. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
