"""A process of ours from start to exit: event loop, signals, exit status.

Exit status: 0 done or asked to stop, 1 failed, 2 wrong usage; a failure is one line on stderr that says
what is wrong and what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator

from understudy.node.files.standard_output import Outlet
from understudy.protocol.errors import LocalProtocolError, SettingsError, StorageError, UnderstudyError
from understudy.protocol.printable import printable

logger = logging.getLogger(__name__)

COMPLAINT = "understudy: "
"""What the one line of a failure begins with."""
EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


class StopSwitch:
    """What Ctrl-C and SIGTERM do: cancel the start-up, later ask the running node to leave."""

    def __init__(self) -> None:
        self.is_pressed = False
        self._task = asyncio.current_task()
        self._stop: Callable[[], None] | None = None

    def hand_over(self, stop: Callable[[], None]) -> None:
        """From now on call ``stop`` instead of cancelling."""
        self._stop = stop

    def press(self) -> None:
        self.is_pressed = True
        if self._stop is not None:
            self._stop()
        elif self._task is not None:
            self._task.cancel()


@contextlib.contextmanager
def stop_on_signals(switch: StopSwitch, *, stops_with_stdin: bool) -> Iterator[None]:
    """Press the switch on SIGINT, SIGTERM and, if asked for, when stdin closes: the parent is gone."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, switch.press)

    def stdin_ready() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            switch.press()

    if stops_with_stdin:
        with contextlib.suppress(PermissionError):  # a file or /dev/null: nobody holds its other end
            loop.add_reader(0, stdin_ready)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        if stops_with_stdin:
            loop.remove_reader(0)


@contextlib.contextmanager
def on_hangup(callback: Callable[[], None]) -> Iterator[None]:
    """Call this when our terminal is closed, instead of dying. Whoever started us with nohup wants neither."""
    loop = asyncio.get_running_loop()
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    if not is_ignored:
        loop.add_signal_handler(signal.SIGHUP, callback)
    try:
        yield
    finally:
        if not is_ignored:
            loop.remove_signal_handler(signal.SIGHUP)


Main = Callable[[StopSwitch], Awaitable[int]]


async def supervise(main: Main, *, stops_with_stdin: bool = False) -> int:
    """Run ``main`` and translate how it ends into an exit status."""
    switch = StopSwitch()
    with stop_on_signals(switch, stops_with_stdin=stops_with_stdin):
        try:
            return await main(switch)
        except asyncio.CancelledError:
            if not switch.is_pressed:
                raise
            return EXIT_DONE
        except (UnderstudyError, BaseExceptionGroup) as error:
            return _report(error)


def run_guarded(command: Callable[[], None]) -> None:
    """Run a command line as a program: an output that cannot be written is one line on stderr, and status 1."""
    given = sys.stdout
    if isinstance(given, io.TextIOWrapper):
        sys.stdout = Outlet(given)
    try:
        command()
        sys.stdout.flush()
    except StorageError as error:
        raise SystemExit(_report(error)) from error


def _report(error: BaseException) -> int:
    """Print the first of our errors within ``error``; anything else is a bug and stays a traceback."""
    cause = _first_of_ours(error)
    if cause is None:
        raise error
    logger.debug("failed", exc_info=error)
    whose = "a bug of understudy's, please report it: " if isinstance(cause, LocalProtocolError) else ""
    print(f"{COMPLAINT}{whose}{printable(str(cause))}", file=sys.stderr, flush=True)  # noqa: T201 - the one line a person reads
    return EXIT_USAGE if isinstance(cause, SettingsError) else EXIT_FAILED


def _first_of_ours(error: BaseException) -> UnderstudyError | None:
    if isinstance(error, UnderstudyError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_first_of_ours, error.exceptions)), None)
    return None
