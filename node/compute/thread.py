"""The compute thread: one, fed in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class ComputeThread:
    """The thread itself: one, so that what it is given happens strictly in turn."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")

    async def call(self, function: Callable[[], Any]) -> Any:
        """Run something on the compute thread, in turn."""
        return await self.begin(function)

    def begin(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """The same, without waiting for it."""
        return asyncio.wrap_future(self.submit(function))

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """The same; the future belongs to no event loop."""
        return self._thread.submit(function)

    def close(self) -> None:
        """Drop what is pending and wait for the job that is running."""
        self._thread.shutdown(wait=True, cancel_futures=True)
