"""A terminal that nobody reads costs text, never time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest
from rich.console import Console

from understudy.node.links.metering import Counters
from understudy.node.ui.display import Display
from understudy.node.ui.terminal import PENDING_BYTES_MAX, Terminal, open_terminal
from understudy.protocol.ids import PeerId
from understudy.protocol.observe.node_status import SelfView

VIEW = SelfView(PeerId("QmMe"), "seen-0123456789ab", "spare", None, 0, "", 5, 9, 2.5, (), ())


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """The reading and the writing end of a pseudo-terminal."""
    ours, theirs = os.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def read_all(descriptor: int) -> bytes:
    """What stands in the terminal now."""
    os.set_blocking(descriptor, False)
    found = b""
    try:
        while piece := os.read(descriptor, 1 << 16):
            found += piece
    except BlockingIOError:
        pass
    return found


def test_what_is_written_arrives(pair: tuple[int, int]) -> None:
    with Terminal(pair[1]) as terminal:
        assert terminal.write("one\n") == 4
        assert read_all(pair[0]) == b"one\r\n"
        assert not terminal.is_stopped


def test_a_terminal_that_nobody_reads_stops_nobody(pair: tuple[int, int]) -> None:
    with Terminal(pair[1]) as terminal:
        for _ in range(4000):
            terminal.write("x" * 1000 + "\n")
        assert terminal.is_stopped
        assert len(terminal._pending) < PENDING_BYTES_MAX + 1001
        while terminal.is_stopped:
            assert read_all(pair[0])
        terminal.write("read again\n")
        assert read_all(pair[0]).endswith(b"read again\r\n")


def test_the_shells_end_stays_as_it_was(pair: tuple[int, int]) -> None:
    with Terminal(pair[1]) as terminal:
        terminal.write("x")
        assert not fcntl.fcntl(pair[1], fcntl.F_GETFL) & os.O_NONBLOCK


def test_nothing_is_drawn_on_a_stopped_terminal(pair: tuple[int, int]) -> None:
    with Terminal(pair[1]) as terminal:
        console = Console(file=terminal, force_terminal=True, width=80, height=24)
        with Display(console) as display:
            for second in range(500):
                display.show(VIEW, Counters(bytes_in=second), float(second))
            assert terminal.is_stopped
            waiting = len(terminal._pending)
            display.show(VIEW, Counters(), 1000.0)
            assert len(terminal._pending) == waiting


def test_a_stream_that_is_no_terminal_has_none(tmp_path: os.PathLike[str]) -> None:
    with open(os.path.join(tmp_path, "log"), "w", encoding="utf-8") as file:
        assert open_terminal(file) is None
