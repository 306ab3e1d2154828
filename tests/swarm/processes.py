"""The processes and sockets of one test, so that each can show that nothing of it is left."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest

from understudy.node.p2p.daemon import SOCKET_FOLDER

MARK = "UNDERSTUDY_TEST_MARK"
"""A variable in the environment, inherited by every descendant, orphans and new sessions included."""
POLL_S = 0.05
LOOK_EVERY_S = 0.5
GONE_TIMEOUT_S = 15.0


def until(condition: Callable[[], object], what: str, timeout_s: float) -> None:
    """Wait until something holds; a failed test says what did not come about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s:g} s in vain: {what}")
        time.sleep(POLL_S)


class Brood:
    """Every process of one test and every socket that one of them was seen to hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sockets: set[Path] = set()
        self._mark = secrets.token_hex(8)
        self._next_look = 0.0
        self._holders: list[int] = []

    def start(
        self,
        arguments: Sequence[str],
        log_path: Path,
        stdin: int = subprocess.DEVNULL,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.Popen[bytes]:
        """Start a command in an otherwise empty home; its output goes to the log file."""
        with log_path.open("wb") as log:
            return subprocess.Popen(
                list(arguments),
                stdin=stdin,
                stdout=log,
                stderr=log,
                cwd=self._empty("cwd"),
                env={**self.environment(), **variables},
                start_new_session=True,
            )

    def include_us(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """This process starts daemons and holds sockets itself."""
        monkeypatch.setenv(MARK, self._mark)
        self._holders = [os.getpid()]

    def environment(self) -> Mapping[str, str]:
        home = str(self._empty("home"))
        return {**os.environ, MARK: self._mark, "HOME": home, "XDG_DATA_HOME": home, "TMPDIR": str(self._empty("tmp"))}

    def processes(self) -> list[psutil.Process]:
        """Those that run now."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def look(self) -> None:
        """Note which sockets are held. Call it while the processes run; it looks now and then only."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_EVERY_S
        names = dict(_bound_sockets())
        for holder in [*self._holders, *(process.pid for process in self.processes())]:
            self.sockets |= {names[inode] for inode in _socket_inodes(holder) if inode in names}

    def until(self, condition: Callable[[], object], what: str, timeout_s: float) -> None:
        """Like `until`, looking meanwhile."""
        until(lambda: self.look() or condition(), what, timeout_s)

    def assert_gone(self, timeout_s: float = GONE_TIMEOUT_S) -> None:
        """No process, no socket, no file outside of the test's own folders."""
        until(lambda: not self.processes(), f"the end of {self.processes()}", timeout_s)
        assert [path for path in self.sockets if path.exists()] == []
        assert [path for name in ("cwd", "home", "tmp") for path in self._empty(name).rglob("*")] == []

    def sweep(self) -> None:
        """Remove the sockets of processes that were killed and could not do it themselves."""
        until(lambda: not self.processes(), f"the end of {self.processes()}", GONE_TIMEOUT_S)
        for path in self.sockets:
            path.unlink(missing_ok=True)

    def kill_all(self) -> None:
        """For a test that failed."""
        for process in self.processes():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue

    def _empty(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self._mark
        except psutil.Error:  # gone, a zombie, or another user's
            return False


def _bound_sockets() -> Iterator[tuple[str, Path]]:
    """Inode and path of what is bound in the folder that libp2p's daemon and hivemind use."""
    for line in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()[1:]:
        fields = line.split()
        if len(fields) == 8 and fields[7].startswith(f"{SOCKET_FOLDER}/hivemind-"):
            yield fields[6], Path(fields[7])


def _socket_inodes(process_id: int) -> Iterator[str]:
    try:
        for descriptor in Path(f"/proc/{process_id}/fd").iterdir():
            target = os.readlink(descriptor)
            if target.startswith("socket:["):
                yield target.removeprefix("socket:[").removesuffix("]")
    except OSError:  # the process, or the descriptor, is gone
        return
