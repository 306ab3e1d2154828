"""Whether this machine can read the run's text: known before S0 is claimed, and remembered when it failed.

A driver that cannot read the text of a step gives S0 up. Its successors would fail at the same step, one after the
other, if they learned it like that; so a spare first reads the text of the step that is due, and whoever cannot
stays a spare. A line to the hub may come back: after a while it may try again.
"""

from __future__ import annotations

from dataclasses import dataclass

TEXT_RETRY_S = 30.0
"""A node that could not read the text leaves S0 alone for so long."""


@dataclass(slots=True)
class TextCheck:
    """What we know of the text on this machine."""

    _read_step: int | None = None
    _asked_step: int | None = None
    _failed_at: float | None = None

    @property
    def is_asked(self) -> bool:
        """The text is being read; S0 may be claimed next."""
        return self._asked_step is not None

    def is_failing(self, now: float) -> bool:
        """The text could not be read a moment ago."""
        return self._failed_at is not None and now - self._failed_at < TEXT_RETRY_S

    def has_read(self, step: int) -> bool:
        """The text of this step was read here, and nothing has failed since."""
        return self._read_step == step

    def ask(self, step: int) -> bool:
        """Somebody wants to know. Whether to read it now: False while a step's text is being read already."""
        if self._asked_step is not None:
            return False
        self._asked_step = step
        return True

    def note(self, step: int, now: float, *, is_read: bool) -> None:
        """The text of a step was read, or cannot be."""
        self._asked_step = None
        self._read_step = step if is_read else None
        self._failed_at = None if is_read else now
