"""Shows a running node to the person at its machine, and reads the run's progress for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from understudy.node.display import LINE_EVERY_S, PERIOD_S, Display
from understudy.node.metering import Tally
from understudy.protocol.core import Core
from understudy.protocol.events import Read
from understudy.protocol.records import PROGRESS_KEY

PICTURES_PER_READ = 10
ANSWER_S = 1.0
"""How long before a line the progress is read."""


class Watch:
    """Looks at the core now and then; decides nothing, and nothing waits for it."""

    def __init__(self, core: Core, tally: Tally, display: Display, read: Callable[[Read], None]) -> None:
        self._core, self._tally, self._display = core, tally, display
        self._read = read

    async def run(self) -> None:
        """For ever; ends with its task."""
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
        self._display.show(self._core.self_view(), self._tally, asyncio.get_running_loop().time())
