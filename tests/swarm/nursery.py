"""Real node processes at the price of one import: a parent that has imported all, and forks.

Run as a script: each line of stdin is a `Birth`; when stdin closes, all children are killed. A child is
what ``python -m understudy.node`` is, but that it may be told in advance at which job to die.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from tests.swarm.processes import Brood

PR_SET_PDEATHSIG = 1


class Death(msgspec.Struct, frozen=True):
    """Die by SIGKILL when the owner of this stage begins its ``count``-th such job of the step, once.

    Whoever dies leaves its incarnation in FOLDER/NAME, so its successor, which does the step again, lives.
    """

    stage: int
    job: Literal["forward", "backward"]
    step: int
    count: int = 1

    @property
    def name(self) -> str:
        return f"death-of-{self.stage}-in-{self.job}-{self.step}"


class Sickness(msgspec.Struct, frozen=True):
    """While FOLDER/KIND is there the compute thread hangs, or each of its passes ends in NaN; in its first tenure only.

    The node itself does not see the NaN: to the others it is a liar.
    """

    kind: Literal["hangs", "spoils"]


class Birth(msgspec.Struct, frozen=True):
    """One process to start. Its output goes to FOLDER/NAME.log, its exit status to FOLDER/NAME.status."""

    name: str
    folder: str
    command: Literal["node", "bootstrap", "export"]
    arguments: tuple[str, ...]
    deaths: tuple[Death, ...] = ()
    sickness: Sickness | None = None

    def file(self, suffix: str) -> Path:
        return Path(self.folder) / f"{self.name}.{suffix}"


# --- the parent's side -------------------------------------------------------------------------


class Nursery:
    """The running script, and what its children left in files."""

    def __init__(self, brood: Brood) -> None:
        self.folder = brood.folder
        self._brood = brood
        self._births: list[Birth] = []
        self._process = brood.start(
            [sys.executable, "-m", "tests.swarm.nursery"],
            self.folder / "nursery.log",
            stdin=subprocess.PIPE,
            # One thread only: nothing but the thread that forks lives on in the child.
            variables={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        )

    def bear(self, birth: Birth) -> None:
        self._births.append(birth)
        self._send(birth)

    def _send(self, birth: Birth) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(birth) + b"\n")
        self._process.stdin.flush()

    def found(self, source: str, steps: int, name: str = "seed", more: Sequence[str] = ()) -> str:
        """Start the seed; its join string. A second run of one test needs another name."""
        folder = self.folder if name == "seed" else self.folder / f"run-{name}"
        arguments = (source, "--dir", str(folder), "--steps", str(steps), *self._place(name), *more)
        self.bear(Birth(name, str(self.folder), "bootstrap", arguments))
        join_path = folder / "join.txt"
        self._brood.until(lambda: join_path.exists() and join_path.read_text(), "the join string", 60.0)
        return join_path.read_text().strip()

    def join(
        self,
        name: str,
        join: str,
        stage: int | None = None,
        deaths: Sequence[Death] = (),
        port: int = 0,
        *,
        sickness: Sickness | None = None,
    ) -> None:
        """Start a node."""
        arguments = ("--join", join, "--stage", "auto" if stage is None else str(stage), *self._place(name, port))
        arguments += ("--events", str(self.folder / f"{name}.jsonl"), "--threads", "1", "--device", "cpu")
        self.bear(Birth(name, str(self.folder), "node", arguments, tuple(deaths), sickness))

    def export(self, name: str, join: str, folder: Path, *more: str) -> None:
        """Start an export."""
        arguments = (str(folder), "--join", join, "--host-maddr", "/ip4/127.0.0.1/tcp/0", *more)
        self.bear(Birth(name, str(self.folder), "export", arguments))

    def _place(self, name: str, port: int = 0) -> tuple[str, ...]:
        return ("--host-maddr", f"/ip4/127.0.0.1/tcp/{port}", "--identity", str(self.folder / f"{name}.key"))

    def kill(self, name: str) -> None:
        """Without warning, and as far as a supervisor sees it: the process is gone, perhaps not yet its daemon."""
        os.kill(self.process_id(name), signal.SIGKILL)
        self._brood.until(lambda: name in self.statuses(), f"the death of {name}", 10.0)

    def start_again(self, name: str) -> None:
        """The same command once more, as a supervisor does when its process ended."""
        birth = self._birth(name)
        birth.file("status").unlink()
        self._send(birth)

    def incarnation_at(self, death: Death) -> int | None:
        """Which incarnation of the stage died this death; None: nobody yet."""
        path = self.folder / death.name
        return int(path.read_text(encoding="ascii")) if path.exists() else None

    def events(self, name: str) -> list[dict[str, Any]]:
        """What a node wrote so far, but for a line that it is writing."""
        path = self.folder / f"{name}.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [msgspec.json.decode(line) for line in lines]

    def statuses(self) -> dict[str, int]:
        """Exit status of each child that ended; a killed one has minus the signal's number."""
        ended = {birth.name: birth.file("status") for birth in self._births}
        return {name: int(path.read_text()) for name, path in ended.items() if path.exists()}

    def process_id(self, name: str) -> int:
        return int(self._birth(name).file("pid").read_text())

    def _birth(self, name: str) -> Birth:
        (birth,) = [birth for birth in self._births if birth.name == name]
        return birth

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def close(self) -> None:
        """End whoever is left."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._brood.sweep()


# --- the script --------------------------------------------------------------------------------


def main() -> None:
    warnings.simplefilter("ignore")
    import understudy.bootstrap.__main__
    import understudy.bootstrap.seed
    import understudy.node.export.exporter
    import understudy.node.export.view
    import understudy.node.runtime  # noqa: F401

    _check_single_thread()
    children: dict[int, Birth] = {}
    signal.signal(signal.SIGCHLD, lambda *_: _reap(children))
    for line in sys.stdin:
        birth = msgspec.json.decode(line, type=Birth)
        process_id = os.fork()
        if process_id == 0:
            _live(birth)
        children[process_id] = birth
        birth.file("pid").write_text(str(process_id))
        _reap(children)
    for process_id in list(children):
        os.kill(process_id, signal.SIGKILL)


def _check_single_thread() -> None:
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("an import started a thread: forking is not safe")


def _reap(children: dict[int, Birth]) -> None:
    for process_id in list(children):
        ended, status = os.waitpid(process_id, os.WNOHANG)
        if ended:
            birth = children.pop(process_id)
            aside = birth.file("status.new")
            aside.write_text(str(os.waitstatus_to_exitcode(status)))
            aside.rename(birth.file("status"))


def _live(birth: Birth) -> None:
    """In the child: become the command."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    log = os.open(birth.file("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(source, target)
    from understudy.bootstrap.__main__ import bootstrap
    from understudy.node.__main__ import node
    from understudy.node.cli import run_command
    from understudy.node.export.command import export

    _arm(birth)
    sys.argv = [birth.command, *birth.arguments]
    run_command({"node": node, "bootstrap": bootstrap, "export": export}[birth.command])


def _arm(birth: Birth) -> None:
    """Wrap the work of the compute thread."""
    from understudy.node.compute.stage import StageHost
    from understudy.protocol.jobs import BackwardJob, BlendJob, ForwardJob, InitialiseJob, Job

    work = StageHost.work
    tenure = (0, 0)
    begun: list[tuple[type, int]] = []

    def work_or_die(host: StageHost, job: Job) -> Any:
        nonlocal tenure
        if isinstance(job, InitialiseJob | BlendJob):
            tenure = (job.stage, job.incarnation)
            begun.clear()
        elif isinstance(job, ForwardJob | BackwardJob):
            begun.append((type(job), job.microbatch.step))
            kind = "forward" if isinstance(job, ForwardJob) else "backward"
            death = Death(tenure[0], kind, job.microbatch.step, begun.count(begun[-1]))
            if death in birth.deaths and _is_first(Path(birth.folder) / death.name, tenure[1]):
                os.kill(os.getpid(), signal.SIGKILL)
        if birth.sickness is not None and tenure[1] == 1 and isinstance(job, ForwardJob | BackwardJob):
            return _work_sick(Path(birth.folder) / birth.sickness.kind, lambda: work(host, job))
        return work(host, job)

    StageHost.work = work_or_die  # type: ignore[method-assign]


def _work_sick(cause: Path, work: Callable[[], Any]) -> Any:
    import torch

    while cause.name == "hangs" and cause.exists():
        threading.Event().wait(0.1)
    result = work()
    is_spoilt = cause.name == "spoils" and cause.exists()
    return torch.full_like(result, float("nan")) if is_spoilt else result


def _is_first(path: Path, incarnation: int) -> bool:
    try:
        with path.open("x", encoding="ascii") as file:
            file.write(str(incarnation))
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    main()
