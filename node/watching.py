"""Shows a running node to the person at its machine, and reads the run's progress for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from node.display import PERIOD_S, Display
from node.metering import Tally
from protocol.core import Core
from protocol.events import Read
from protocol.records import PROGRESS_KEY

READ_EVERY_S = 5.0


class Watch:
    """Looks at the core now and then; decides nothing, and nothing waits for it."""

    def __init__(self, core: Core, tally: Tally, display: Display, read: Callable[[Read], None]) -> None:
        self._core, self._tally, self._display = core, tally, display
        self._read = read

    async def run(self) -> None:
        """For ever; ends with its task."""
        loop = asyncio.get_running_loop()
        read_at = float("-inf")
        while True:
            now = loop.time()
            if now - read_at >= READ_EVERY_S:
                read_at = now
                self._read(Read((PROGRESS_KEY,)))  # owners read it only when a stage is missing
            self._display.show(self._core.self_view(), self._tally, now)
            await asyncio.sleep(PERIOD_S)
