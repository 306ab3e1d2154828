"""Standard output that ends a command in one clear line when it cannot be written, whatever the locale.

A full disk or a reader that went away raises an error wherever something is said, and a second one when Python
flushes at its end; an ASCII locale raises a third kind for every letter beyond it.
"""

from __future__ import annotations

import io
import os
from typing import NoReturn

from understudy.protocol.errors import StorageError


class Outlet(io.TextIOWrapper):
    """What a stream is written through. Letters that its encoding lacks are written as backslash escapes."""

    def __init__(self, given: io.TextIOWrapper) -> None:
        is_interactive = given.line_buffering
        super().__init__(given.buffer, given.encoding, "backslashreplace", line_buffering=is_interactive)
        self._given = given  # it would close the buffer when nobody has it any more

    def write(self, text: str) -> int:
        """Raises `StorageError`."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)

    def flush(self) -> None:
        """Raises `StorageError`."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """The stream beneath belongs to whoever gave it."""

    def _give_up(self, error: OSError) -> NoReturn:
        """What is still in the buffer goes nowhere, so that the end of the process does not fail again."""
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        raise StorageError(f"the standard output cannot be written: {error.strerror}") from error
