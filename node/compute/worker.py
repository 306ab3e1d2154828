"""The core's jobs on the compute thread, in order; their results are brought back to the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

from understudy.node.compute.stage import StageHost
from understudy.node.compute.thread import ComputeThread
from understudy.protocol.actions import Discard, Keep, ReleaseCopy, ReleaseLease, ReleaseSnapshot, ReleaseStage
from understudy.protocol.jobs import Job

Finished = Callable[[Job, Any, float, float | None], None]
"""Told of a job, its result, the seconds that the thread was busy with it, and how large the tensor is that came."""
Failed = Callable[[BaseException], None]


class Worker(ComputeThread):
    """Runs jobs on a `StageHost`, strictly in the order they were given."""

    def __init__(self, host: StageHost, threads: int, on_finished: Finished, on_failed: Failed) -> None:
        super().__init__()
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._on_finished, self._on_failed = on_finished, on_failed
        torch.set_num_threads(threads)

    def run(self, job: Job) -> None:
        """Queue a job; ``on_finished(job, result, seconds, came)`` follows on the event loop."""
        self._queue(lambda: self._timed(job), lambda done: self._on_finished(job, *done))

    def _timed(self, job: Job) -> tuple[Any, float, float | None]:
        began = time.perf_counter()
        result = self._host.work(job)
        return result, time.perf_counter() - began, self._host.came

    def tend(self, action: Discard | Keep | ReleaseCopy | ReleaseLease | ReleaseSnapshot | ReleaseStage) -> None:
        """Keep or free memory once the jobs given before are done."""
        match action:
            case Discard():
                self._queue(lambda: self._host.discard(action))
            case Keep():
                self._queue(lambda: self._host.keep(action))
            case ReleaseCopy():
                self._queue(lambda: self._host.release_copy(action))
            case ReleaseSnapshot():
                self._queue(lambda: self._host.release_snapshot(action))
            case ReleaseLease():
                self._queue(lambda: self._host.release_lease(action))
            case ReleaseStage():
                self._queue(self._host.release)

    def _queue(self, work: Callable[[], Any], then: Callable[[Any], None] | None = None) -> None:
        self.submit(work).add_done_callback(lambda done: self._bring_back(done, then))

    def _bring_back(self, done: Future[Any], then: Callable[[Any], None] | None) -> None:
        if done.cancelled() or self._loop.is_closed():
            return
        error = done.exception()
        if error is not None:
            self._loop.call_soon_threadsafe(self._on_failed, error)
        elif then is not None:
            self._loop.call_soon_threadsafe(then, done.result())
