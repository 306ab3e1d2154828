"""Child processes of a local swarm: started, struck, stopped, never left behind.

A child holds the reading end of a pipe as its stdin and leaves when it closes, so even a SIGKILL of
this process ends the swarm.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from understudy.node.process import COMPLAINT

STOP_TIMEOUT_S = 15.0
KILL_TIMEOUT_S = 5.0


class Child:
    """One process of ours and its log file."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log_path: Path) -> None:
        self.name, self.log_path = name, log_path
        self.is_struck = False
        """We killed it ourselves."""
        self._process = process

    @classmethod
    async def start(
        cls, name: str, module: str, arguments: Sequence[str], log_path: Path, prefix: Sequence[str] = ()
    ) -> Child:
        """Start ``python -P -m module``, behind the words of ``prefix``; its output goes to the log file.

        -P: whatever lies in the current directory is not imported.
        """
        with log_path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *prefix,
                sys.executable,
                "-P",
                "-m",
                module,
                *arguments,
                "--stop-with-stdin",
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return cls(name, process, log_path)

    @property
    def exit_status(self) -> int | None:
        return self._process.returncode

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    @property
    def last_line(self) -> str:
        """The last line it said, for when it failed; without what stands in front of it.

        Python draws a frame around some tracebacks, and our commands begin with our name.
        """
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in (line.strip(" |+-") for line in lines) if line]
        return said[-1].removeprefix(COMPLAINT) if said else "it said nothing"

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        self.is_struck = True
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: the process does not know."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    async def wait(self, timeout_s: float) -> bool:
        """Whether it ended in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._process.wait()
        return not self.is_running

    async def stop(self) -> None:
        """SIGTERM; SIGKILL if it does not leave."""
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        if not await self.wait(STOP_TIMEOUT_S):
            self._signal(signal.SIGKILL)
            await self.wait(KILL_TIMEOUT_S)

    def _signal(self, number: signal.Signals) -> None:
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
