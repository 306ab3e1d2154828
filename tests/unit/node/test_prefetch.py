"""Reading that hangs, fails or is given up: whoever waits is told, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from understudy.node.data.prefetch import ReadAhead, off_the_loop
from understudy.protocol.errors import TextError

TIMEOUT_S = 30.0


@pytest.fixture
def hanging() -> Iterator[Callable[[], None]]:
    """A read that does not come back before the test is over."""
    is_over = threading.Event()
    yield lambda: assert_set(is_over)
    is_over.set()


def assert_set(event: threading.Event) -> None:
    assert event.wait(TIMEOUT_S)


def has_ended(reading: ReadAhead) -> bool:
    return reading._thread is not None and not reading._thread.is_alive()


def test_reads_are_done_in_order_on_one_thread_and_their_results_come_back() -> None:
    reading = ReadAhead()
    futures = [reading.start(lambda n=n: (n, threading.current_thread().name)) for n in range(5)]  # type: ignore[misc]
    assert [reading.result(future) for future in futures] == [(n, "reading") for n in range(5)]
    reading.close()
    assert has_ended(reading)


def test_what_a_read_raises_is_raised_where_it_is_waited_for() -> None:
    reading = ReadAhead()
    for error in (KeyError("x"), TimeoutError("of the line")):

        def fail(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error), match=str(error)):
            reading.result(reading.start(fail))
    assert reading.result(reading.start(lambda: 1)) == 1, "the thread goes on"
    reading.close()


def test_a_read_without_progress_is_waited_for_no_longer(hanging: Callable[[], None]) -> None:
    reading = ReadAhead(stall_s=0.05)
    with pytest.raises(TextError, match=r"stood still for 0\.05 s"):
        reading.result(reading.start(hanging))
    reading.close(timeout_s=0)


def test_a_read_that_makes_progress_may_take_longer_than_the_limit() -> None:
    reading = ReadAhead(stall_s=0.5)

    def slow() -> str:
        for _ in range(14):
            threading.Event().wait(0.05)
            reading.progress()
        return "done"

    assert reading.result(reading.start(slow)) == "done"
    reading.close()


def test_closing_ends_a_read_at_its_next_progress_and_does_the_last_thing() -> None:
    reading = ReadAhead()
    is_reading = threading.Event()
    done: list[str] = []

    def endless() -> None:
        while True:
            is_reading.set()
            reading.progress()

    future = reading.start(endless)
    never = reading.start(lambda: done.append("never"))
    assert is_reading.wait(TIMEOUT_S)
    reading.close(lambda: done.append("closed"))
    assert done == ["closed"]
    for each in (future, never):
        with pytest.raises(TextError, match="nobody waits"):
            each.result(timeout=TIMEOUT_S)
    assert has_ended(reading)
    reading.close()


def test_who_waits_is_told_when_another_thread_closes(hanging: Callable[[], None]) -> None:
    reading = ReadAhead()
    closer = threading.Timer(0.05, lambda: reading.close(timeout_s=0))
    closer.start()
    with pytest.raises(TextError, match="nobody waits"):
        reading.result(reading.start(hanging))
    closer.join()


def test_a_pause_ends_when_nobody_waits() -> None:
    reading = ReadAhead()
    future = reading.start(lambda: reading.pause(TIMEOUT_S))
    reading.close()
    assert has_ended(reading)
    with pytest.raises(TextError, match="nobody waits"):
        future.result()


def test_the_event_loop_does_not_wait_for_a_read(hanging: Callable[[], None]) -> None:
    async def main() -> None:
        assert await off_the_loop(lambda: threading.current_thread().name) == "reading"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await off_the_loop(hanging)

    asyncio.run(main())
