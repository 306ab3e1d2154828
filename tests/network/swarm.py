"""A run whose seed and nodes live on machines of the test network."""

from __future__ import annotations

import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

from benchmarks.links.machines import Machine
from tests.swarm.processes import Brood
from tests.swarm.test_local import Event, of
from understudy.bootstrap.local.run import EventTail

COMMAND = (sys.executable, "-P", "-m")
LISTEN_AT_HOME = "/ip4/0.0.0.0/tcp/4001"
"""As somebody writes it who knows no address of his own that others could use."""
FOUND_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 10.0


class Volunteers:
    """The seed, the nodes, and what they say."""

    def __init__(self, brood: Brood, folder: Path) -> None:
        self.brood, self.folder = brood, folder
        (folder / "nodes").mkdir(parents=True)
        self._tail = EventTail(folder / "nodes")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def found(self, machine: Machine, *arguments: str, preset: str = "tiny", steps: int = 100_000) -> str:
        """Start the seed, called ``seed``; the join string."""
        join_file = self.folder / "join.txt"
        own = [preset, "--dir", str(self.folder), "--identity", str(self.folder / "key"), "--steps", str(steps)]
        self._start("seed", machine, "understudy.bootstrap", [*own, *arguments])
        self.brood.until(join_file.exists, "the join string", FOUND_TIMEOUT_S)
        return join_file.read_text(encoding="utf-8").strip()

    def join(self, name: str, machine: Machine, stage: str | int, *arguments: str) -> None:
        """Start a node. A name that is used again is the same peer, and its events and its log go on."""
        files = self.folder / "nodes" / name
        own = ["--join", f"@{self.folder / 'join.txt'}", "--stage", str(stage), "--threads", "1", "--device", "cpu"]
        own += ["--identity", f"{files}.key", "--events", f"{files}.jsonl", "--wait", "60"]
        self._start(name, machine, "understudy.node", [*own, *arguments])

    def events(self) -> list[Event]:
        """Of all nodes, as they were read."""
        self._tail.read()
        return self._tail.events

    def of(self, event: str, *, after: float = 0.0, **fields: object) -> list[Event]:
        """The events of a name that have these fields and came after a moment, in seconds since 1970."""
        return [found for found in of(self.events(), event, **fields) if found["time"] > after]

    def until(self, event: str, timeout_s: float, *, after: float = 0.0, **fields: object) -> Event:
        """Wait for an event; the first one."""
        what = f"{event} {fields or ''}"
        self.brood.until(lambda: self.of(event, after=after, **fields), what, timeout_s)
        return self.of(event, after=after, **fields)[0]

    def until_commits(self, count: int, timeout_s: float, *, after: float = 0.0) -> list[int]:
        """Wait for so many steps, each counted once whoever tells of it; which they are."""
        self.brood.until(lambda: len(self._steps(after)) >= count, f"{count} commits", timeout_s)
        return self._steps(after)

    def kill(self, name: str) -> float:
        """SIGKILL: no goodbye. When it was, in seconds since 1970."""
        process = self._processes.pop(name)
        killed_at = time.time()
        process.kill()
        process.wait(timeout=KILL_TIMEOUT_S)
        return killed_at

    def log(self, name: str) -> str:
        """What a process said."""
        return self._log_path(name).read_text(encoding="utf-8", errors="replace")

    def peer(self, name: str) -> str:
        """The id of a node that has said something."""
        (peer,) = {event["peer"] for event in self._said_by(name)}
        return str(peer)

    def end(self) -> None:
        """Whatever the test has shown by now; how nodes leave is shown elsewhere."""
        self.brood.kill_all()
        for process in self._processes.values():
            process.wait(timeout=KILL_TIMEOUT_S)
        self.brood.sweep()

    def _steps(self, after: float) -> list[int]:
        return sorted({event["step"] for event in self.of("step.committed", after=after)})

    def _said_by(self, name: str) -> list[Event]:
        tail = EventTail(self.folder / "nodes" / name)
        return tail.read()

    def _start(self, name: str, machine: Machine, module: str, arguments: list[str]) -> None:
        command = [*machine.place.prefix, *COMMAND, module, *arguments, "--host-maddr", listen(machine)]
        self._processes[name] = self.brood.start(command, self._log_path(name))

    def _log_path(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def listen(machine: Machine) -> str:
    """What somebody gives as --host-maddr there."""
    return LISTEN_AT_HOME if ip_address(machine.address).is_private else machine.place.listen
