"""Shows a running node to the person at its machine, and reads the run's progress for that."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from understudy.node.links.metering import Counters
from understudy.node.ui.display import LINE_EVERY_S, PERIOD_S, Display
from understudy.protocol.actions import Read
from understudy.protocol.core import Core
from understudy.protocol.wire.records import PROGRESS_KEY

logger = logging.getLogger(__name__)

PICTURES_PER_READ = 10
ANSWER_S = 1.0
"""How long before a line the progress is read."""
EVENTS_MAX = 256
"""Events that wait for the next look; more than come between two, unless something is badly wrong."""


class Watch:
    """Looks at the core now and then; decides nothing, and nothing waits for it."""

    def __init__(self, core: Core, counters: Counters, display: Display, read: Callable[[Read], None]) -> None:
        self._core, self._counters, self._display = core, counters, display
        self._read = read
        self._events: deque[tuple[str, Mapping[str, Any], float]] = deque(maxlen=EVENTS_MAX)

    def note(self, name: str, fields: Mapping[str, Any], now: float) -> None:
        """The node wrote an event; it is looked at in the task of `run`."""
        self._events.append((name, fields, now))

    async def run(self) -> None:
        """For ever; ends with its task, or with the first bug in what is shown: no stage is lost for a picture."""
        try:
            await self._watch()
        except Exception:
            self._display.give_up()
            logger.exception("this node cannot be shown any more, for a bug of ours; it goes on. Please report it")

    async def _watch(self) -> None:
        self._look()
        while True:
            if self._display.is_live:
                await self._draw()
            else:
                await self._write_line()

    async def _draw(self) -> None:
        self._read_progress()
        for _ in range(PICTURES_PER_READ):
            self._look()
            await asyncio.sleep(PERIOD_S)

    async def _write_line(self) -> None:
        await asyncio.sleep(LINE_EVERY_S - ANSWER_S)
        self._read_progress()
        await asyncio.sleep(ANSWER_S)
        self._look()

    def _read_progress(self) -> None:
        """Owners read it only when a stage is missing."""
        self._read(Read((PROGRESS_KEY,)))

    def _look(self) -> None:
        while self._events:
            self._display.note(*self._events.popleft())
        self._display.show(self._core.self_view(), self._counters, asyncio.get_running_loop().time())
