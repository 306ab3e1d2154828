"""A node started by hand on a terminal: the picture, Ctrl-C, and a terminal that is closed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.swarm.processes import Brood

UNDERSTUDY = str(Path(sys.executable).with_name("understudy"))
LISTEN = ("--host-maddr", "/ip4/127.0.0.1/tcp/0")
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
HIDE, SHOW, ERASE_LINE = b"\x1b[?25l", b"\x1b[?25h", b"\x1b[2K"

# The shell's part: make the terminal the controlling one of a session of its own, then become the command.
IN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(2, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """One person's terminal and the command in it."""

    def __init__(self, brood: Brood, *arguments: str) -> None:
        self._brood = brood
        self._mine, theirs = pty.openpty()
        self.written = b""
        self.resize(24, 100)
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, UNDERSTUDY, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**brood.environment(), "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(theirs)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._mine, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, text: bytes, timeout_s: float = START_TIMEOUT_S) -> bytes:
        """Wait for a text that was not there before; what was written meanwhile."""
        start = len(self.written)

        def is_there() -> bool:
            self._read()
            return text in self.written[start:]

        self._brood.until(is_there, f"{text!r}; there is {self.written[-2000:]!r}", timeout_s)
        return self.written[start:]

    def until_end(self) -> int:
        def has_ended() -> bool:
            self._read()
            return self.process.poll() is not None

        self._brood.until(has_ended, "the end of the command", STOP_TIMEOUT_S)
        self._read()
        return self.process.returncode

    def press(self, keys: bytes) -> None:
        os.write(self._mine, keys)

    def close(self) -> None:
        if self._mine >= 0:
            os.close(self._mine)
            self._mine = -1

    def _read(self) -> None:
        while select.select([self._mine], [], [], 0)[0]:
            try:
                data = os.read(self._mine, 65536)
            except OSError:  # nobody has the other end any more
                return
            self.written += data
            if not data:
                return


@pytest.fixture
def terminal(brood: Brood) -> Iterator[Terminal]:
    """A node of a swarm of its own, on a terminal, once its picture is there."""
    seed = brood.start(
        [UNDERSTUDY, "bootstrap", "tiny", *LISTEN, "--dir", str(brood.folder), "--identity", str(brood.folder / "key")],
        brood.folder / "seed.log",
    )
    join = brood.folder / "join.txt"
    brood.until(join.exists, "the join string", START_TIMEOUT_S)
    options = ("--stage", "1", "--threads", "1", "--device", "cpu", "--identity", str(brood.folder / "node.key"))
    found = Terminal(brood, "node", "--join", f"@{join}", *LISTEN, *options)
    try:
        found.until(b"S1, incarnation 1")
        yield found
    finally:
        found.close()
        seed.send_signal(signal.SIGTERM)
        brood.until(lambda: seed.poll() is not None, "the end of the seed", STOP_TIMEOUT_S)


def test_a_node_shows_itself_and_leaves_the_terminal_clean(terminal: Terminal) -> None:
    assert b"asked for" in terminal.until(b"neighbours") + terminal.written  # why it has the stage
    for rows, columns in ((6, 30), (50, 200)):
        terminal.resize(rows, columns)
        terminal.until(b"S1, incarnation 1")
    terminal.press(b"\x03")
    assert terminal.until_end() == 0, terminal.written
    assert b"Traceback" not in terminal.written
    assert terminal.written.count(HIDE) == terminal.written.count(SHOW) >= 1
    goodbye = terminal.written.rindex(b"peer.left")
    after = terminal.written[goodbye:]
    assert after.count(ERASE_LINE) >= after.count(b"node   ") > 0  # pictures drawn again were taken away again
    assert terminal.written.rstrip().endswith(ERASE_LINE)


def test_a_closed_terminal_does_not_cost_the_swarm_a_stage(terminal: Terminal, brood: Brood) -> None:
    terminal.close()
    with pytest.raises(subprocess.TimeoutExpired):
        terminal.process.wait(timeout=3)
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(timeout=STOP_TIMEOUT_S) in (0, 120)  # 120: Python could not flush to the terminal
