"""Where a node shows itself: picture and log lines on one console, and a terminal that goes away."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console

from tests.fakes import until
from tests.seals import NamedSeal
from understudy.bootstrap.local import screen as show
from understudy.bootstrap.local.monitor import Board
from understudy.node.links.metering import Counters
from understudy.node.process import on_hangup
from understudy.node.ui import display as module
from understudy.node.ui import display_loop
from understudy.node.ui.display import LINE_EVERY_S, ConsoleHandler, Display
from understudy.node.ui.display_loop import Watch
from understudy.node.ui.history import History
from understudy.node.ui.telemetry import EventLog, logger
from understudy.protocol.actions import Read
from understudy.protocol.core import Core
from understudy.protocol.ids import PeerId
from understudy.protocol.observe.node_status import SelfView
from understudy.protocol.presets import preset
from understudy.protocol.wire.records import PROGRESS_KEY

VIEW = SelfView(PeerId("QmMe"), "seen-0123456789ab", "spare", None, 0, "", 5, 9, 2.5, (), ())
HIDE, SHOW, ERASE_LINE = "\x1b[?25l", "\x1b[?25h", "\x1b[2K"


class Screen(io.StringIO):
    """A terminal that may be closed."""

    is_closed_by_user = False

    def write(self, text: str) -> int:
        if self.is_closed_by_user:
            raise OSError(5, "Input/output error")
        return super().write(text)


def terminal(screen: Screen, width: int = 80) -> Console:
    return Console(file=screen, force_terminal=True, width=width, height=24)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[logging.Logger]:
    """The node's logger, with no handler but those that a test adds."""
    handlers, level = logger.handlers[:], logger.level
    logger.setLevel(logging.INFO)
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_the_picture_is_drawn_anew_and_taken_away() -> None:
    screen = Screen()
    with Display(terminal(screen)) as display:
        display.note("peer.spare", {}, 0.0)
        display.show(VIEW, Counters(), 1.0)
        first = screen.getvalue()
        assert "none, a spare (nothing needs an owner)" in first
        assert "step 5 of 9, loss 2.500" in first
        height = first.count("\n") + 1
        display.show(VIEW, Counters(bytes_in=2500), 2.0)
        second = screen.getvalue().removeprefix(first)
        assert second.count(ERASE_LINE) == height  # it goes where the first was
        assert "2.5 kB in" in second
        drawn = len(screen.getvalue())
    end = screen.getvalue()[drawn:]
    assert end.count(ERASE_LINE) >= height
    assert end[end.rindex(ERASE_LINE) :].strip("\x1b[2K\r") == ""  # nothing of it stays
    assert screen.getvalue().count(HIDE) == screen.getvalue().count(SHOW) == 1


def test_log_lines_stand_above_the_picture(log: logging.Logger) -> None:
    screen = Screen()
    console = terminal(screen)
    log.addHandler(ConsoleHandler(console, is_verbose=False))
    with Display(console) as display:
        display.show(VIEW, Counters(), 1.0)
        log.info("a line with [brackets] and %d", 7)
        text = screen.getvalue()
        assert text.index("a line with [brackets] and 7\n") < text.rindex("none, a spare")


@pytest.mark.parametrize("is_verbose", [False, True])
def test_events_of_every_step_are_left_to_the_picture(log: logging.Logger, is_verbose: bool) -> None:
    screen = Screen()
    log.addHandler(ConsoleHandler(terminal(screen), is_verbose=is_verbose))
    events = EventLog(None)
    events.write("step.committed", {"step": 3})
    events.write("peer.dead", {"stage": 3})
    assert ("step.committed" in screen.getvalue()) == is_verbose
    assert "peer.dead stage=3" in screen.getvalue()


def test_without_a_terminal_there_is_a_line_now_and_then(log: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    screen = Screen()
    with Display(Console(file=screen)) as display:
        assert not display.is_live
        display.show(VIEW, Counters(), 0.0)
        assert caplog.messages == []
        display.show(VIEW, Counters(), LINE_EVERY_S)
    assert screen.getvalue() == ""
    assert [message.split()[:3] for message in caplog.messages] == [["node", "role=spare", "step=5"]]


def test_a_quiet_node_draws_nothing_on_a_terminal() -> None:
    screen = Screen()
    with Display(terminal(screen), is_quiet=True) as display:
        display.show(VIEW, Counters(), 0.0)
    assert screen.getvalue() == ""


def test_a_terminal_that_cannot_draw_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert not Display(terminal(Screen())).is_live


def test_a_resized_terminal_is_cleaned_below_the_picture() -> None:
    screen = Screen()
    console = terminal(screen)
    with Display(console) as display:
        display.show(VIEW, Counters(), 0.0)
        assert "\x1b[J" not in screen.getvalue()
        console.width = 30
        display.show(VIEW, Counters(), 1.0)
        before = screen.getvalue()
        assert before.count("\x1b[J") == 1
        display.show(VIEW, Counters(), 2.0)
        assert "\x1b[J" not in screen.getvalue().removeprefix(before)
    assert screen.getvalue().count(HIDE) == screen.getvalue().count(SHOW) == 2


@pytest.mark.parametrize("how", ["while drawing", "by signal"])
def test_a_terminal_that_is_closed_costs_the_display_only(how: str, log: logging.Logger) -> None:
    screen = Screen()
    console = terminal(screen)
    handler = ConsoleHandler(console, is_verbose=False)
    log.addHandler(handler)
    with Display(console) as display:
        display.show(VIEW, Counters(), 0.0)
        screen.is_closed_by_user = how == "while drawing"
        if how == "by signal":
            display.lose_terminal()
        before = screen.getvalue()
        log.info("nobody reads this")
        display.show(VIEW, Counters(), 1.0)
        assert not display.is_live
        log.info("nor this")
        display.show(VIEW, Counters(), 2.0)
    assert screen.getvalue() == before


def test_in_the_background_nothing_is_drawn_over_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, is_front = Screen(), [True, False, False, True]
    monkeypatch.setattr(module, "is_in_foreground", lambda console: is_front.pop(0))
    with Display(terminal(screen)) as display:
        display.show(VIEW, Counters(), 0.0)
        display.show(VIEW, Counters(), 1.0)
        erased = screen.getvalue()
        assert erased.count(HIDE) == erased.count(SHOW) == 1
        display.show(VIEW, Counters(), 2.0)
        assert screen.getvalue() == erased
        display.show(VIEW, Counters(), 3.0)
        assert screen.getvalue().count(HIDE) == 2


@pytest.fixture
def default_hangup() -> Iterator[None]:
    """As in a shell; the tests themselves may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("default_hangup")
def test_a_hangup_calls_back_instead_of_killing() -> None:
    async def main() -> list[str]:
        calls: list[str] = []
        with on_hangup(lambda: calls.append("hangup")):
            signal.raise_signal(signal.SIGHUP)
            await asyncio.sleep(0.05)
        return calls

    assert asyncio.run(main()) == ["hangup"]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_whoever_was_started_with_nohup_stays_deaf() -> None:
    async def main() -> None:
        with on_hangup(os.abort):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asyncio.run(main())
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("console", "expected"),
    [
        (terminal(Screen()), ["look", "read", "look", "look", "look", "read", "look"]),
        (Console(file=Screen()), ["look", "read", "look", "read", "look"]),
    ],
)
def test_the_progress_is_read_for_whoever_looks(
    monkeypatch: pytest.MonkeyPatch, console: Console, expected: list[str]
) -> None:
    """An owner whose neighbours are all there has no reason of its own to read it: once for some pictures or a line."""
    monkeypatch.setattr(display_loop, "PICTURES_PER_READ", 3)
    monkeypatch.setattr(display_loop, "PERIOD_S", 0.001)
    monkeypatch.setattr(display_loop, "LINE_EVERY_S", 0.002)
    monkeypatch.setattr(display_loop, "ANSWER_S", 0.001)
    happened: list[str] = []
    reads: list[Read] = []

    def read(action: Read) -> None:
        reads.append(action)
        happened.append("read")

    async def main() -> None:
        display = Display(console)
        monkeypatch.setattr(display, "show", lambda *_: happened.append("look"))
        watch = Watch(Core(NamedSeal(PeerId("QmMe")), preset("tiny"), check_every=1), Counters(), display, read)
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            watching_task = tasks.create_task(watch.run())
            await until(lambda: len(happened) > len(expected))
            watching_task.cancel()

    asyncio.run(main())
    assert happened[: len(expected)] == expected
    assert set(reads) == {Read((PROGRESS_KEY,))}


class Unprintable:
    """What a console cannot render."""

    def __rich__(self) -> str:
        raise ZeroDivisionError("made up")


def divide(*_: object, **__: object) -> Any:
    raise ZeroDivisionError("made up")


BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "what is told": lambda patch: patch.setattr(History, "note", divide),
    "what is seen": lambda patch: patch.setattr(History, "sample", divide),
    "the picture": lambda patch: patch.setattr(module, "node_panel", divide),
    "the line": lambda patch: patch.setattr(module, "status_line", divide),
    "the drawing": lambda patch: patch.setattr(module, "node_panel", lambda sample: Unprintable()),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_the_picture_costs_the_picture_only(
    bug: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Found by reading: it ended the node, and with it a stage."""
    monkeypatch.setattr(display_loop, "PERIOD_S", 0.001)
    monkeypatch.setattr(display_loop, "LINE_EVERY_S", 0.002)
    monkeypatch.setattr(display_loop, "ANSWER_S", 0.001)
    screen = Screen()
    console = Console(file=screen) if bug == "the line" else terminal(screen)

    async def main() -> None:
        with Display(console) as display:
            watch = Watch(
                Core(NamedSeal(PeerId("QmMe")), preset("tiny"), check_every=1), Counters(), display, lambda read: None
            )
            async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
                task = tasks.create_task(watch.run())
                await until(screen.getvalue if display.is_live else lambda: display._has_looked)
                BUGS[bug](monkeypatch)
                watch.note("peer.spare", {}, 1.0)
                await task  # it is over, and has raised nothing
                watch.note("peer.spare", {}, 2.0)
            assert not display.is_live

    asyncio.run(main())
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == [
        "this node cannot be shown any more, for a bug of ours; it goes on. Please report it"
    ]
    assert screen.getvalue().count(HIDE) == screen.getvalue().count(SHOW)


def test_a_log_line_that_cannot_be_written_costs_the_line_only(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever logs may be in the middle of what the core decided."""
    console = terminal(Screen())
    log.addHandler(ConsoleHandler(console, is_verbose=False))
    monkeypatch.setattr(console, "print", divide)
    for _ in range(3):
        log.info("a line")
    assert capsys.readouterr().err.count("ZeroDivisionError: made up") == 1


def test_a_bug_in_the_table_of_a_local_swarm_costs_the_table_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(show, "live_view", divide)
    monkeypatch.setattr(show, "progress_line", divide)
    for console in (terminal(Screen()), Console(file=Screen())):
        caplog.clear()
        with show._Screen(console) as screen:
            for _ in range(3):
                screen.show(Board(5, 10))
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
