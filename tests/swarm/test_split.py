"""A swarm that falls into two and comes together again: real nodes in network namespaces, joined by bridges."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.links.machines import Machine
from benchmarks.links.namespaces import check_here, open_links, parted
from tests.swarm.processes import Brood
from tests.swarm.test_local import Event, of
from understudy.bootstrap.local.run import EventTail
from understudy.protocol.errors import SettingsError

COMMAND = (sys.executable, "-P", "-m")
START_TIMEOUT_S = 120.0
HEAL_LIMIT_S = 10.0
"""Within this time after the two sides see each other again, the swarm commits; on idle processors within 5 s."""
MAJORITY = ("S0", "S1", "S2", "spare-a", "spare-b")
MINORITY = ("S3", "S4", "spare-c")


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """One for the seed and one for each node. Without namespaces the test is skipped, but not in CI."""
    try:
        check_here()
    except SettingsError as error:
        (pytest.fail if os.environ.get("CI", "").lower() in ("1", "true") else pytest.skip)(str(error))
    with open_links(1 + len(MAJORITY) + len(MINORITY), None, "reno") as found:
        yield found


class Islands:
    """A run whose nodes live on two sides."""

    def __init__(self, brood: Brood, machines: list[Machine]) -> None:
        self.brood, self.folder = brood, brood.folder / "run"
        (self.folder / "nodes").mkdir(parents=True)
        self.tail = EventTail(self.folder / "nodes")
        self._processes: list[subprocess.Popen[bytes]] = []
        seed, *others = machines
        self.minority = others[len(MAJORITY) :]
        places = dict(zip((*MAJORITY, *MINORITY), others, strict=True))
        run = ["tiny", "--dir", str(self.folder), "--identity", str(self.folder / "key"), "--steps", "100000"]
        self._start(seed, "seed", "understudy.bootstrap", run)
        brood.until((self.folder / "join.txt").exists, "the join string", START_TIMEOUT_S)
        owners = sorted(name for name in places if name.startswith("S"))
        for stage, name in enumerate(owners):
            self._join(places[name], name, str(stage))
        # Only then the spares: one that comes first takes a stage, and the sides are not those that the test is about.
        brood.until(lambda: self._serving() == set(range(len(owners))), "every stage to be served", START_TIMEOUT_S)
        for name in sorted(set(places) - set(owners)):
            self._join(places[name], name, "auto")
        brood.until(lambda: len(self._waiting()) == len(places) - len(owners), "the spares", START_TIMEOUT_S)

    def _serving(self) -> set[int]:
        return {event["stage"] for event in of(self.events(), "peer.serving")}

    def _waiting(self) -> set[str]:
        """Who says that it is a spare, and never served."""
        waiting, served = ({e["peer"] for e in of(self.events(), name)} for name in ("peer.spare", "peer.serving"))
        return waiting - served

    def _join(self, machine: Machine, name: str, stage: str) -> None:
        files = self.folder / "nodes" / name
        arguments = ["--join", f"@{self.folder / 'join.txt'}", "--stage", stage, "--threads", "1", "--device", "cpu"]
        arguments += ["--identity", f"{files}.key", "--events", f"{files}.jsonl", "--wait", "60"]
        self._start(machine, name, "understudy.node", arguments)

    def _start(self, machine: Machine, name: str, module: str, arguments: list[str]) -> None:
        host = ["--host-maddr", f"/ip4/{machine.address}/tcp/0"]
        command = [*machine.place.prefix, *COMMAND, module, *arguments, *host]
        self._processes.append(self.brood.start(command, self.folder / f"{name}.log"))

    def end(self) -> None:
        """Whatever the test has shown by now; how nodes leave is shown elsewhere."""
        self.brood.kill_all()
        for process in self._processes:
            process.wait(timeout=10.0)
        self.brood.sweep()

    def events(self) -> list[Event]:
        self.tail.read()
        return self.tail.events

    def commits_after(self, moment: float) -> list[Event]:
        return [event for event in of(self.events(), "step.committed") if event["time"] > moment]

    def peers(self, names: tuple[str, ...]) -> set[str]:
        """What these nodes are called among the others: whoever writes to their event files, about itself."""
        files = [self.folder / "nodes" / f"{name}.jsonl" for name in names]
        lines = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
        return {line["peer"] for line in lines if line["event"] in ("peer.serving", "peer.spare")}

    def until_commits(self, count: int, moment: float, timeout_s: float) -> None:
        self.brood.until(lambda: len(self.commits_after(moment)) >= count, f"{count} commits", timeout_s)


def split_and_heal(islands: Islands, seconds: float) -> tuple[float, float]:
    """Cut the minority off for a while. When that was, and in how many seconds after the heal the next commits came."""
    islands.until_commits(10, time.time(), START_TIMEOUT_S)
    with ExitStack() as cut:
        cut.enter_context(parted(islands.minority))
        parted_at = time.time()
        islands.brood.until(lambda: time.time() > parted_at + seconds, "the end of the split", seconds + 5.0)
    healed_at = time.time()
    islands.until_commits(3, healed_at, 60.0)
    return parted_at, islands.commits_after(healed_at)[0]["time"] - healed_at


def test_of_a_split_swarm_the_majority_goes_on_and_the_others_follow(brood: Brood, machines: list[Machine]) -> None:
    """S3, S4 and a spare apart from S0, S1, S2 and two spares: these rebuild what they lack, the others wait."""
    islands = Islands(brood, machines)
    try:
        parted_at, seconds = split_and_heal(islands, 20.0)
        assert seconds < HEAL_LIMIT_S
        _assert_the_majority_went_on(islands, parted_at)
        _assert_one_swarm(islands)
    finally:
        islands.end()


def _assert_the_majority_went_on(islands: Islands, parted_at: float) -> None:
    """The minority had a spare and trained neighbours for it, and rebuilt nothing; no step was committed twice."""
    minority = islands.peers(MINORITY)
    assert {event["stage"] for event in of(islands.events(), "stage.recovered")} == {3, 4}
    claimed = [event for event in of(islands.events(), "stage.claimed") if event["time"] > parted_at]
    assert [event for event in claimed if event["peer"] in minority] == []
    reasons = [e["reason"] for e in of(islands.events(), "swarm.waiting") if e["peer"] in minority and "reason" in e]
    assert any(reason.startswith("2 of 5 owners are there, and a recovery needs 3") for reason in reasons)
    steps = [event["step"] for event in islands.commits_after(parted_at)]
    assert len(steps) > 10
    assert steps == list(range(steps[0], steps[0] + len(steps)))


def _assert_one_swarm(islands: Islands) -> None:
    """There were trained neighbours for all that was rebuilt, and they were used; nobody crashed."""
    rebuilt = [event for event in of(islands.events(), "stage.recovered") if event["step"] > 0]
    assert rebuilt
    assert [event for event in rebuilt if event["method"] == "seed"] == []
    tracebacks = [path.name for path in Path(islands.folder).glob("*.log") if "Traceback" in path.read_text("utf-8")]
    assert tracebacks == []
