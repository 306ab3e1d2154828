"""The texts below the files and folders that a person named: plain files, and nothing that lies elsewhere.

A folder may be one that somebody else packed. Its links are not followed, devices, pipes and sockets are not opened,
and what has no end, or more than fits, is not read to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from understudy.node.files.plain_files import read_bounded, require_plain
from understudy.protocol.errors import SettingsError

TEXT_BYTES_MAX = 4 << 30
"""Of all files: the text lies in memory. More is read as a stream (data.source = "huggingface")."""
FILES_MAX = 1 << 20


class SourceFile(NamedTuple):
    """A file of the corpus: its name, relative to the path that was given, and its bytes."""

    name: str
    content: bytes


def read_texts(paths: Sequence[Path]) -> list[SourceFile]:
    """UTF-8 texts, in the order of ``paths``; within a folder sorted by name. Raises `SettingsError`.

    A path may itself be a link: a person named it.
    """
    files: list[SourceFile] = []
    room = TEXT_BYTES_MAX
    for given in paths:
        path = given.expanduser()
        found = _folder(path) if path.is_dir() else [_single(path)]
        for named, name in found:
            content = _read_text(named, room)
            room -= len(content)
            files.append(SourceFile(name, content))
    return files


def _single(path: Path) -> tuple[Path, str]:
    """A file that was named itself."""
    if not path.exists():
        raise SettingsError(f"the text {path} does not exist")
    if not path.is_file():
        raise SettingsError(f"the text {path} is neither a file nor a folder")
    return path.resolve(), path.name


def _folder(folder: Path) -> list[tuple[Path, str]]:
    """All files below a folder but hidden ones. Raises `SettingsError`, also when there are none."""
    root = folder.resolve()
    found = sorted(walk(root, lambda name: not name.startswith(".")))
    if not found:
        raise SettingsError(f"the text {folder} has no file in it (hidden ones are not read)")
    return [(path, path.relative_to(root).as_posix()) for path in found]


def _read_text(path: Path, bytes_max: int) -> bytes:
    """The bytes of a UTF-8 file. Raises `SettingsError`."""
    try:
        content = read_bounded(path, bytes_max)
        content.decode("utf-8")
    except OSError as error:
        raise SettingsError(f"the text {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"the text {path} is not UTF-8 text: byte {error.start} does not fit") from error
    return content


def walk(folder: Path, is_wanted: Callable[[str], bool]) -> Iterator[Path]:
    """Files and links below a folder, in no order; unwanted names are neither returned nor entered.

    Raises `SettingsError`.
    """
    count = 0
    for parent, folders, files in os.walk(folder, onerror=_refuse_folder):
        folders[:] = filter(is_wanted, folders)
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for path in (Path(parent, name) for name in [*links, *files] if is_wanted(name)):
            count += 1
            if count > FILES_MAX:
                raise SettingsError(f"the folder {folder} has more than {FILES_MAX} files: name a smaller one")
            yield path


def require_plain_tree(folder: Path) -> None:
    """Raises `SettingsError` that names what a library would follow out of a folder, or would wait for.

    Hidden entries too: it is not ours to say what the library looks at.
    """
    for path in walk(folder, lambda _: True):
        try:
            require_plain(path.lstat().st_mode)
        except OSError as error:
            raise SettingsError(f"the text {path} cannot be read: {error.strerror}") from error


def _refuse_folder(error: OSError) -> None:
    raise SettingsError(f"data: the folder {error.filename} cannot be read: {error.strerror}") from error
