"""A thread that reads, so that nothing else waits for a disk or a line that never answers.

A read cannot be cancelled: not one of a library, not one of the kernel. So it is done on a thread that nobody
has to wait for, neither the compute thread, nor the event loop, nor the end of the process. Whoever wants
the result waits as long as the reading makes progress, and no longer than `STALL_S` without.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from understudy.protocol.errors import TextError

STALL_S = 120.0
"""Without progress for so long, reading has failed. The datasets library itself tries for 100 s."""
LOOK_EVERY_S = 0.2
"""How often who waits looks whether there is progress."""
CLOSE_TIMEOUT_S = 5.0

T = TypeVar("T")


class ReadAhead:
    """One thread, there from the first read on; what it is given is done in order."""

    def __init__(self, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s
        self._progressed_at = time.monotonic()
        self._given: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, read: Callable[[], T]) -> Future[T]:
        """Do ``read`` on the thread; its result, or whatever it raised, is the future's."""
        future: Future[T] = Future()

        def fulfil() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                self.progress()
                result = read()
            except Exception as error:  # noqa: BLE001 - not caught but carried to the thread that waits for the result
                future.set_exception(error)
            else:
                future.set_result(result)

        self._given.put(fulfil)
        if self._thread is None:
            # Daemonic: the process ends even if a read never does.
            self._thread = threading.Thread(target=self._work, name="reading", daemon=True)
            self._thread.start()
        return future

    def result(self, future: Future[T]) -> T:
        """Wait while there is progress. Raises what the read raised; `TextError` if it stands still or is closed."""
        self._progressed_at = time.monotonic()
        while time.monotonic() < self._progressed_at + self._stall_s:
            wait([future], timeout=min(LOOK_EVERY_S, self._stall_s))
            if future.done():
                return future.result()
            self._require_open()
        raise TextError(f"reading the text stood still for {self._stall_s:g} s: is the network or the disk there?")

    def progress(self) -> None:
        """Called by a read: it is under way. Raises `TextError` if nobody wants it any more."""
        self._progressed_at = time.monotonic()
        self._require_open()

    def pause(self, seconds: float) -> None:
        """Called by a read: wait, but not beyond `close`. Raises `TextError` if nobody wants the read any more."""
        self._is_closing.wait(seconds)
        self._require_open()

    def close(self, last: Callable[[], None] | None = None, timeout_s: float | None = None) -> None:
        """Do ``last`` on the thread and end it, at the next progress of what it reads.

        One that hangs is left to the end of the process. A second call does nothing more.
        """
        if not self._is_closing.is_set():
            self._is_closing.set()
            if last is not None:
                self._given.put(last)
            self._given.put(None)
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S if timeout_s is None else timeout_s)

    def _require_open(self) -> None:
        if self._is_closing.is_set():
            raise TextError("nobody waits for this text any more")

    def _work(self) -> None:
        while (task := self._given.get()) is not None:
            task()


async def off_the_loop(work: Callable[[], T]) -> T:
    """Do ``work``, which reads, without the event loop; when cancelled it is not waited for."""
    reading = ReadAhead()
    try:
        return await asyncio.wrap_future(reading.start(work))
    finally:
        reading.close(timeout_s=0)
