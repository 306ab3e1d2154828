"""Where a node shows itself: a live picture below the log lines on a terminal, a line now and then elsewhere.

Drawn on the event loop, `PERIOD_S` apart, without a thread. A terminal that goes away takes the display and
the log lines with it, never the node; one that is stopped (Ctrl-S) is not waited for (node/ui/terminal.py). Picture and
log lines go through one console, so they cannot mix.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from understudy.node.ui.history import History, StatusSample
from understudy.node.ui.panel import node_panel, status_line
from understudy.node.ui.telemetry import logger
from understudy.node.ui.terminal import Terminal
from understudy.protocol.observe.node_status import SelfView

if TYPE_CHECKING:
    from understudy.node.links.metering import Counters

PERIOD_S = 0.5
LINE_EVERY_S = 60.0
PICTURED = {"step.committed", "standby.copied"}
"""Events that come with every step: the picture says it better than a line for each."""


ERASE_BELOW = "\x1b[J"


class Display:
    """What the person at this machine sees. ``is_quiet``: only what goes wrong."""

    def __init__(self, console: Console, *, is_quiet: bool = False) -> None:
        self._console = console
        self._is_quiet = is_quiet
        self._live: Live | None = None
        self._size = console.size
        self._history = History()
        self._has_looked = False
        self.is_live = console.is_terminal and not console.is_dumb_terminal and not is_quiet
        """Pictures are drawn; else lines are written."""

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self._erase()

    def note(self, name: str, fields: Mapping[str, Any], now: float) -> None:
        """The node wrote an event."""
        self._history.note(name, fields, now)

    def show(self, view: SelfView, counters: Counters, now: float) -> None:
        """Draw the node as it is now, or write its line; there is nothing to say at the first look."""
        sample = self._history.sample(view, counters, now)
        if self.is_live:
            self._draw(sample)
        elif self._has_looked:
            logger.info("node %s", status_line(sample))
        self._has_looked = True

    def lose_terminal(self) -> None:
        """The terminal was closed (SIGHUP, or writing to it failed): the node goes on unseen."""
        self._console.quiet = True
        self.is_live = False
        self._erase()

    def give_up(self) -> None:
        """The picture has a bug: leave the terminal as it was, and to the log lines."""
        self.is_live = False
        if self._live is not None:
            self._live.update(Text())  # taking a picture away draws it once more
        self._erase()

    def _draw(self, sample: StatusSample) -> None:
        try:
            if not is_in_foreground(self._console):
                self._erase()
                return
            if isinstance(self._console.file, Terminal) and self._console.file.is_stopped:
                return
            if self._console.size != self._size:
                self._begin_anew()
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
                self._live.start()
            self._live.update(node_panel(sample), refresh=True)
        except OSError:
            self.lose_terminal()

    def _begin_anew(self) -> None:
        """The terminal was resized: it has broken the lines of the picture anew, and pieces of it stand below."""
        self._size = self._console.size
        if self._live is not None:
            self._erase()
            self._console.file.write(ERASE_BELOW)

    def _erase(self) -> None:
        """Leave the terminal as it was, but for the log lines."""
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(OSError):
                live.stop()


def is_in_foreground(console: Console) -> bool:
    """Whether the terminal is ours now: a job in the background must not draw over the shell."""
    try:
        return os.tcgetpgrp(console.file.fileno()) == os.getpgrp()
    except (OSError, ValueError):  # not a real terminal, or not the one that we belong to
        return True


class _Lines:
    """A stream that prints through a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str) -> None:
        self._console.print(Text(text.removesuffix("\n")), soft_wrap=True)


class ConsoleHandler(logging.StreamHandler[Any]):
    """Log lines above the picture. Whatever goes wrong with one costs the line, not whoever has something to say."""

    def __init__(self, console: Console, *, is_verbose: bool) -> None:
        super().__init__(_Lines(console))
        self._is_verbose = is_verbose
        self._has_failed = False

    def filter(self, record: logging.LogRecord) -> bool:
        is_pictured = getattr(record, "event", "") in PICTURED
        return bool(super().filter(record)) and (self._is_verbose or not is_pictured)

    def handleError(self, record: logging.LogRecord) -> None:
        """A terminal that is gone is nothing to speak of; a bug is told once."""
        if not self._has_failed and not isinstance(sys.exc_info()[1], OSError):
            self._has_failed = True
            super().handleError(record)
