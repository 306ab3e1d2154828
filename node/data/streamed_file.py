"""A file of a dataset as a stream of bytes: of this machine or of the hub, unpacked on the way.

Two kinds of failure are told apart here, because they differ for drivers: a line or disk that fails (`TextError`:
somebody else, or we later, may read the same bytes well), and a file that is damaged (whatever the decompressor
raises: everybody finds it so).
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from understudy.protocol.errors import TextError

_UNPACKED: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream, mode="rb"),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
PACKED_OTHERWISE = (".zst", ".lz4", ".zip", ".tar", ".tgz", ".7z", ".rar")
HUB_PREFIX = "hf://"
BUFFER_BYTES = 1 << 16


class _Source(io.RawIOBase):
    """The bytes as they lie there. Whatever goes wrong in reading them is a `TextError`."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        place: int = self._file.tell()
        return place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with said(self._url):
            place: int = self._file.seek(offset, whence)
        return place

    def readinto(self, buffer: Any) -> int:
        with said(self._url):
            piece = self._file.read(len(buffer))
            if not piece and len(buffer) and self._is_short():
                raise TextError(f"{self._url} cannot be read: it ended before its end")
        buffer[: len(piece)] = piece
        return len(piece)

    def _is_short(self) -> bool:
        """A line that breaks may look like the file's end."""
        size = getattr(self._file, "size", None)
        return isinstance(size, int) and self.tell() < size


@contextmanager
def said(name: str, passing: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Failures of the line, the hub or the disk become `TextError`, in one line that names the file or dataset.

    ``passing``: errors that the caller translates.
    """
    from huggingface_hub.errors import HTTPError
    from pyarrow import ArrowException

    try:
        yield
    except passing:
        raise
    except (OSError, EOFError, HTTPError, ArrowException) as error:
        raise TextError(f"{name} cannot be read: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says first: some libraries write pages."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def open_stream(url: str, token: str | bool = False) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked by its name. Raises `TextError` if it cannot be opened.

    ``token``: shown to the hub; False: none is.
    """
    from fsspec.core import url_to_fs

    with said(url):
        system, path = url_to_fs(url, **({"token": token} if url.startswith(HUB_PREFIX) else {}))
        file = system.open(path, "rb")
    with file:
        stream: Any = io.BufferedReader(_Source(file, url), BUFFER_BYTES)
        unpack = next((made for ending, made in _UNPACKED.items() if url.endswith(ending)), None)
        yield stream if unpack is None else unpack(stream)
