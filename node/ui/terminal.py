"""Writing to a terminal without ever waiting for whoever should read it.

Ctrl-S, a copy mode or a hung connection stop a terminal for as long as a person likes. A node that waited for it would
miss its heartbeats, and lose its stage after seconds.
"""

from __future__ import annotations

import io
import os
from typing import IO, TextIO, cast

PENDING_BYTES_MAX = 1 << 16
"""Text that waits for a stopped terminal; what comes beyond it is dropped, whole."""


class Terminal(io.TextIOBase):
    """A terminal of our own opening: O_NONBLOCK on the one we were given would change the shell's too."""

    encoding = "utf-8"

    def __init__(self, descriptor: int) -> None:
        """Raises `OSError` if ``descriptor`` is no terminal that can be opened by name."""
        self._given = descriptor
        flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        self._own = os.open(os.ttyname(descriptor), flags)
        self._pending = b""

    @property
    def is_stopped(self) -> bool:
        """Whether nobody has read what was written before."""
        self._drain()
        return bool(self._pending)

    def write(self, text: str) -> int:
        """Write what the terminal takes and keep the rest. Raises `OSError` when the terminal is gone."""
        if len(self._pending) < PENDING_BYTES_MAX:
            self._pending += text.encode(self.encoding, "replace")
            self._drain()
        return len(text)

    def flush(self) -> None:
        """Nothing to wait for."""

    def fileno(self) -> int:
        return self._given

    def isatty(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            os.close(self._own)
        super().close()

    def _drain(self) -> None:
        try:
            while self._pending:
                self._pending = self._pending[os.write(self._own, self._pending) :]
        except BlockingIOError:
            return


def open_terminal(stream: TextIO) -> IO[str] | None:
    """The terminal behind a standard stream, or None if it is none or cannot be opened anew."""
    try:
        return cast("IO[str]", Terminal(stream.fileno())) if stream.isatty() else None
    except OSError:
        return None
