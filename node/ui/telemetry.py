"""What the node tells people: an event file of JSON lines, and log lines for the terminal.

The program never reads either: behaviour does not depend on a log line.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from understudy.protocol.errors import SettingsError
from understudy.protocol.printable import printable

logger = logging.getLogger("understudy")


class EventLog:
    """Appends one JSON object per line; a line is written whole or, if the disk is full, dropped aloud."""

    def __init__(self, path: Path | None) -> None:
        self._file: int | None = None
        self._rest = b""
        """Of a line that a pipe did not take whole: it goes before the next one."""
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_to_append(path)
        except OSError as error:
            raise SettingsError(
                f"the event file {path} cannot be written: {error.strerror}; choose another --events"
            ) from error
        self._is_plain = stat.S_ISREG(os.fstat(self._file).st_mode)

    def write(self, name: str, fields: Mapping[str, Any]) -> None:
        """Append {"time": unix seconds, "event": name, ...}."""
        told = " ".join(f"{key}={_short(value)}" for key, value in fields.items())
        logger.info("%s %s", name, told, extra={"event": name})
        if self._file is None:
            return
        line = msgspec.json.encode({"time": time.time(), "event": name, **fields}) + b"\n"
        try:
            self._append(self._file, line)
        except OSError as error:
            logger.warning("the event %s could not be written: %s", name, error.strerror)

    def _append(self, file: int, line: bytes) -> None:
        """Raises `OSError` if nothing of the line was written."""
        if self._rest:
            self._rest = self._rest[os.write(file, self._rest) :]
            if self._rest:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        written = os.write(file, line)
        if written < len(line) and self._is_plain:  # the disk is full now: take the piece back
            os.ftruncate(file, os.fstat(file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._rest = line[written:]

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _open_to_append(path: Path) -> int:
    """A file, or a pipe or terminal that somebody reads: never waited for, neither now nor when writing."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    if path.is_block_device():
        raise OSError(errno.EINVAL, "it is a disk, not a file")
    try:
        return os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        reason = "it is a socket, not a file" if path.is_socket() else "nobody reads it: start its reader first"
        raise OSError(errno.ENXIO, reason) from error


def _short(value: Any) -> str:
    """A value as it reads best in a log line."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ",".join(map(_short, value)) + "]"
    if isinstance(value, str) and len(value) > 40 and " " not in value:
        return f"..{value[-8:]}"
    return str(value)


class _Plain(logging.Formatter):
    """A line stays one line, and says to the terminal nothing but itself, whoever wrote what is in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return printable(super().formatException(ei), keeps_lines=True)


def configure_logging(*, is_verbose: bool, is_quiet: bool = False, handler: logging.Handler | None = None) -> None:
    """Log lines to stderr, or wherever ``handler`` puts them, one a line, the time in front."""
    level = logging.DEBUG if is_verbose else logging.WARNING if is_quiet else logging.INFO
    target = handler or logging.StreamHandler(sys.stderr)
    target.setFormatter(_Plain("%(asctime)s %(message)s"))
    logging.basicConfig(handlers=[target], level=logging.WARNING, force=True)
    logger.setLevel(level)
    for name in ("understudy.node", "understudy.bootstrap"):
        logging.getLogger(name).setLevel(logging.DEBUG if is_verbose else logging.WARNING)
