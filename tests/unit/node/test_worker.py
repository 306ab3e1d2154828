"""The compute thread: strictly in order, results on the event loop, failures told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from understudy.node.compute.stage import StageHost
from understudy.node.compute.worker import Worker
from understudy.protocol.actions import Discard, Keep, ReleaseCopy, ReleaseSnapshot, ReleaseStage
from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.ids import Attempt, Microbatch
from understudy.protocol.jobs import ApplyJob, Job

TIMEOUT_S = 5.0


class Host:
    """Notes what it is told, and on which thread."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.came: float | None = None
        self.threads: set[str] = set()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def work(self, job: ApplyJob) -> int:
        self._note(job.step)
        if not self.may_go_on.wait(TIMEOUT_S):
            raise TimeoutError
        if job.counted < 0:
            raise LocalProtocolError("it cannot be done")
        return job.step * 10

    def discard(self, discard: Discard) -> None:
        self._note("discard")

    def keep(self, keep: Keep) -> None:
        self._note("keep")

    def release_copy(self, release: ReleaseCopy) -> None:
        self._note("release copy")

    def release_snapshot(self, release: ReleaseSnapshot) -> None:
        self._note("release snapshot")

    def release(self) -> None:
        self._note("release")

    def _note(self, call: Any) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread().name)


class Bench:
    def __init__(self) -> None:
        self.host = Host()
        self.finished: list[tuple[Job, Any]] = []
        self.failed: list[BaseException] = []
        self.news = asyncio.Event()
        self.worker = Worker(cast(StageHost, self.host), 1, self._finish, self._fail)

    def _finish(self, job: Job, result: Any, seconds: float, came: float | None) -> None:
        assert seconds >= 0
        assert threading.current_thread() is threading.main_thread()
        self.finished.append((job, result))
        self.news.set()

    def _fail(self, error: BaseException) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.failed.append(error)
        self.news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.news.clear()
            await self.news.wait()


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    async with asyncio.timeout(TIMEOUT_S):
        made = Bench()
        try:
            yield made
        finally:
            made.host.may_go_on.set()
            made.worker.close()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(main())  # type: ignore[arg-type]


def test_jobs_are_done_in_order_on_one_thread_that_is_not_the_loops() -> None:
    async def main() -> None:
        async with bench() as b:
            jobs = [ApplyJob(step, 1) for step in range(20)]
            for job in jobs:
                b.worker.run(job)
            await b.until(lambda: len(b.finished) == 20)
            assert b.finished == [(job, job.step * 10) for job in jobs]
            assert b.host.calls == list(range(20))
            (thread,) = b.host.threads
            assert thread.startswith("compute")

    run(main)


def test_freeing_memory_waits_for_the_jobs_before_it() -> None:
    async def main() -> None:
        async with bench() as b:
            b.host.may_go_on.clear()
            b.worker.run(ApplyJob(1, 1))
            b.worker.tend(Discard(Microbatch(1, 0), Attempt(1, 0)))
            b.worker.tend(Keep("digest", None))
            b.worker.run(ApplyJob(2, 1))
            b.worker.tend(ReleaseSnapshot("digest"))
            b.worker.tend(ReleaseCopy("digest"))
            b.worker.tend(ReleaseStage())
            result = asyncio.ensure_future(b.worker.call(b.host.calls.copy))
            b.host.may_go_on.set()
            assert await result == [1, "discard", "keep", 2, "release snapshot", "release copy", "release"]

    run(main)


def test_a_call_gives_its_result_or_its_error_to_who_asked() -> None:
    async def main() -> None:
        async with bench() as b:
            assert await b.worker.call(lambda: 42) == 42
            with pytest.raises(ZeroDivisionError):
                await b.worker.call(lambda: 1 / 0)
            assert b.failed == []

    run(main)


def test_a_failed_job_is_told_and_has_no_result() -> None:
    async def main() -> None:
        async with bench() as b:
            b.worker.run(ApplyJob(1, -1))
            await b.until(lambda: b.failed)
            assert [type(error) for error in b.failed] == [LocalProtocolError]
            assert b.finished == []

    run(main)


def test_closing_drops_what_is_pending_and_waits_for_what_runs() -> None:
    async def main() -> None:
        async with bench() as b:
            b.host.may_go_on.clear()
            for step in range(5):
                b.worker.run(ApplyJob(step, 1))
            await asyncio.to_thread(until_called, b.host)
            threading.Timer(0.05, b.host.may_go_on.set).start()
            b.worker.close()
            assert b.host.may_go_on.is_set()
            assert b.host.calls == [0]
            await b.until(lambda: b.finished)
            assert [job for job, _ in b.finished] == [ApplyJob(0, 1)]
            assert b.failed == []

    run(main)


def until_called(host: Host) -> None:
    while not host.calls:
        threading.Event().wait(0.001)


def test_a_result_after_the_end_of_the_loop_is_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    made: list[Bench] = []

    async def main() -> None:
        made.append(Bench())
        made[0].host.may_go_on.clear()
        made[0].worker.run(ApplyJob(1, 1))

    run(main)
    made[0].host.may_go_on.set()
    made[0].worker.close()
    assert made[0].host.calls == [1]
    assert made[0].finished == []
    assert caplog.records == []
