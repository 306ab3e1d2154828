"""``understudy local`` as a person runs it: what its events must say, and that nothing of it is left."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import psutil
import pytest

from tests.swarm.processes import Brood, until
from understudy.bootstrap.local.run import EventTail

LOSS_RISE_MAX = 0.1
"""Of the four steps after a recovery over the four before it, in nats per token: one step is noise."""
UNDERSTUDY = str(Path(sys.executable).with_name("understudy"))
RUN_TIMEOUT_S = 200.0
START_TIMEOUT_S = 90.0

Event = dict[str, Any]

SMALLEST_RUN = """
name = "smallest"
[model]
hidden_size = 32
intermediate_size = 48
attention_heads = 2
block_stages = 1
context_length = 64
[recovery]
method = "checkfree"
standby_every = 0
[step]
microbatches = 2
microbatch_size = 4
"""


class LocalRun:
    """One ``understudy local`` and its events, while it runs and after."""

    def __init__(self, brood: Brood, *arguments: str) -> None:
        self.brood = brood
        self.folder = brood.folder / "run"
        self.log_path = brood.folder / "local.log"
        command = [UNDERSTUDY, "local", *arguments, "--dir", str(self.folder)]
        self.process: subprocess.Popen[bytes] = brood.start(command, self.log_path)
        self._tail = EventTail(self.folder / "nodes")

    def until(self, condition: Callable[[list[Event]], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait for something in the nodes' events; the run must not end before."""

        def is_reached() -> bool:
            self._tail.read()
            assert self.process.poll() is None, self.log
            return condition(self._tail.events)

        self.brood.until(is_reached, what, timeout_s)

    def until_commit(self, step: int) -> None:
        self.until(lambda events: bool(of(events, "step.committed", step=step)), f"the commit of step {step}")

    def finish(self) -> list[Event]:
        """Wait for the end, which must be a success; the merged events."""
        self.brood.until(lambda: self.process.poll() is not None, "the run to end", RUN_TIMEOUT_S)
        assert self.process.returncode == 0, self.log
        assert "Traceback" not in self.log
        return [msgspec.json.decode(line) for line in (self.folder / "events.jsonl").read_bytes().splitlines()]

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")


def of(events: list[Event], name: str, **fields: object) -> list[Event]:
    """The events of a name that have these fields."""
    return [event for event in events if event["event"] == name and fields.items() <= event.items()]


def only(events: list[Event], name: str, **fields: object) -> Event:
    (event,) = of(events, name, **fields)
    return event


def assert_all_committed(events: list[Event], steps: int) -> None:
    """Every step, once, in order, each with a finite loss."""
    commits = of(events, "step.committed")
    assert [commit["step"] for commit in commits] == list(range(1, steps + 1))
    assert all(math.isfinite(commit["loss"]) and commit["seconds"] > 0 for commit in commits)


def smallest_run(brood: Brood) -> str:
    path = brood.folder / "run.toml"
    path.write_text(SMALLEST_RUN, encoding="utf-8")
    return str(path)


def test_a_killed_peer_is_replaced_and_no_step_is_lost(brood: Brood) -> None:
    """The command of the README, word for word but for the folder."""
    run = LocalRun(brood, "tiny", "--steps", "40", "--spares", "1", "--kill", "2@15")
    events = run.finish()

    assert_all_committed(events, 40)
    assert_as_it_was(events, only(events, "stage.recovered", stage=2))
    killed = only(events, "fault.killed", stage=2)
    assert killed["step"] >= 15
    assert only(events, "stage.recovered")["step"] >= 15
    losses = [event["loss"] for event in of(events, "step.committed")]
    assert fmean(losses[-5:]) < fmean(losses[:5])
    assert "Every step from 1 to 40 was committed." in run.log
    assert "S2 was killed after step" in run.log
    left = {event["peer"] for event in of(events, "peer.left", reason="done")}
    assert len(left) == 5
    assert killed["peer"] not in left
    assert len(brood.sockets) >= 13  # of seven daemons and of the six nodes that serve streams


def test_five_losses_one_swarm(brood: Brood) -> None:
    """S0, the last stage, one that only sleeps, the first stage, and one more than there are spares.

    The sleeper is the only one who can take S1, and a volunteer who joins by hand the only one who can take S3.
    """
    faults = ("--kill", "0@5", "--kill", "4@8", "--pause", "2@11:8", "--kill", "1@15", "--kill", "3@18")
    run = LocalRun(brood, "tiny", "--steps", "21", "--spares", "3", *faults)
    run.until(
        lambda events: len(of(events, "stage.recovered")) == 4 and is_waiting_for(events, [3]),
        "the swarm to wait for an owner of S3",
        RUN_TIMEOUT_S,
    )
    volunteer, files = volunteer_by_hand(run)
    events = run.finish()
    until(lambda: volunteer.poll() is not None, "the volunteer to leave", 20.0)
    assert volunteer.returncode == 0

    assert_all_committed(events, 21)
    assert [event["stage"] for event in of(events, "stage.recovered")] == [0, 4, 2, 1, 3]
    assert_exact_copy(events, only(events, "stage.recovered", stage=0))
    by_drivers = [event["incarnation"] for event in of(events, "step.committed")]
    assert sorted(set(by_drivers)) == [1, 2]
    assert by_drivers == sorted(by_drivers)
    for stage in (4, 2, 1, 3):
        assert_as_it_was(events, only(events, "stage.recovered", stage=stage))
    assert_retired_and_served_again(events, only(events, "fault.paused", stage=2)["peer"])
    by_volunteer = msgspec.json.decode(Path(f"{files}.jsonl").read_bytes().splitlines()[0])["peer"]
    assert only(events, "stage.recovered", stage=3)["peer"] == by_volunteer
    waiting = of(events, "swarm.waiting", stages=[3])[-1]
    assert waiting["time"] < only(events, "stage.recovered", stage=3)["time"]


def test_four_kills_come_back_as_they_were(brood: Brood) -> None:
    """S2 and S3 together, then S0 and S1 together. Four spares: each kill uses one up."""
    struck = ((2, 14), (3, 14), (0, 22), (1, 22))
    kills = [word for stage, step in struck for word in ("--kill", f"{stage}@{step}")]
    events = LocalRun(brood, "tiny", "--steps", "27", "--spares", "4", *kills).finish()
    assert_all_committed(events, 27)
    losses = {event["step"]: event["loss"] for event in of(events, "step.committed")}
    for stage, step in struck:
        recovered = only(events, "stage.recovered", stage=stage)
        assert recovered["method"] == "standby", recovered["reason"]
        before, after = (fmean(losses[step + k] for k in steps) for steps in (range(-3, 1), range(1, 5)))
        assert after - before < LOSS_RISE_MAX


def volunteer_by_hand(run: LocalRun) -> tuple[subprocess.Popen[bytes], Path]:
    """A node with the run's join string, and the path of its files but for their endings."""
    join = (run.folder / "join.txt").read_text(encoding="utf-8").strip()
    files = run.folder / "nodes" / "volunteer"
    arguments = ["--join", join, "--host-maddr", "/ip4/127.0.0.1/tcp/0", "--threads", "1", "--device", "cpu"]
    arguments += ["--identity", f"{files}.key", "--events", f"{files}.jsonl"]
    return run.brood.start([sys.executable, "-m", "understudy.node", *arguments], Path(f"{files}.log")), files


def is_waiting_for(events: list[Event], stages: list[int]) -> bool:
    """Whether the last word of the driver is that it waits for these."""
    words = [event for event in events if event["event"] in ("swarm.waiting", "swarm.complete")]
    return bool(words) and words[-1].get("stages") == stages


def assert_as_it_was(events: list[Event], recovered: Event) -> None:
    """The stage stands on the bytes of its last copy that was confirmed, or of a later one, with its optimizer's state.

    Steps are short here: a copy is on its way for some of them.
    """
    stage = recovered["stage"]
    copies = [event for event in of(events, "standby.copied", stage=stage) if event["time"] <= recovered["time"]]
    of_weights = [event["digest"] for event in copies if event["part"] == "stage"]
    assert recovered["method"] == "standby"
    assert recovered["step"] - max(event["copied_step"] for event in copies) <= 6
    assert len(recovered["digests"]) == 2, "the weights, and the optimizer's state"
    used = int(recovered["reason"].removeprefix("its own copy as of step ").partition(",")[0])
    assert recovered["digests"][0] in of_weights or used > max(event["copied_step"] for event in copies)


def assert_exact_copy(events: list[Event], recovered: Event) -> None:
    """S0 stands on the bytes of the last commit of which both keepers confirmed their copy, or of a later one."""
    assert recovered["method"] == "standby"
    assert set(recovered["donors"]) <= {1, 4}, (
        "its keepers, or nobody: the spare that took it may hold the newest itself"
    )
    killed = only(events, "fault.killed", stage=0)
    confirmed = [
        event for event in of(events, "standby.copied", stage=0, incarnation=1) if event["time"] <= killed["time"]
    ]
    by_part = {part: {e["copied_step"] for e in confirmed if e["part"] == part} for part in ("embedding", "head")}
    last_confirmed = max(by_part["embedding"] & by_part["head"])
    of_that_commit = {event["digest"] for event in confirmed if event["copied_step"] == last_confirmed}
    weights = set(recovered["digests"][:2])  # behind them the state of the optimizer, which is some commits older
    if weights != of_that_commit:
        # A copy can have reached both keepers while its confirmation died with S0.
        assert f"as of step {last_confirmed + 1}" in recovered["reason"]
        assert not of_that_commit & weights
    assert recovered["reason"].startswith("embedding and head as of step")


def assert_retired_and_served_again(events: list[Event], sleeper: str) -> None:
    """Its stage was taken while it slept; awake it gave the stage up before anything else, and took S1 as a spare."""
    awake_at = only(events, "fault.resumed")["time"]
    assert only(events, "stage.recovered", stage=2)["peer"] != sleeper
    assert only(events, "stage.recovered", stage=2)["time"] < awake_at

    retired = only(events, "peer.retired", peer=sleeper)
    assert (retired["stage"], retired["incarnation"]) == (2, 1)
    assert retired["time"] > awake_at
    after = [event for event in events if event["peer"] == sleeper and event["time"] > awake_at]
    # A copy of its weights that was under way when it fell asleep is published when it is done.
    own = [event for event in after if "observer" not in event and event["event"] != "weights.published"]
    assert [event["event"] for event in own if event.get("stage") == 2] == ["peer.retired"]  # it commits nothing more
    assert own[0]["event"] == "peer.retired"
    assert only(events, "stage.recovered", stage=1)["peer"] == sleeper
    assert only(events, "stage.recovered", stage=1)["peer"] == sleeper
    assert only(events, "peer.left", peer=sleeper, reason="done")["stage"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_leaves_nothing(brood: Brood, number: signal.Signals) -> None:
    run = LocalRun(brood, smallest_run(brood), "--steps", "100000", "--spares", "0")
    run.until_commit(3)
    assert brood.sockets
    run.process.send_signal(number)
    brood.until(lambda: run.process.poll() is not None, f"the end after {number.name}", 20.0)

    assert run.process.returncode == 0, run.log
    assert "Traceback" not in run.log
    brood.assert_gone(timeout_s=0)
    events = [msgspec.json.decode(line) for line in (run.folder / "events.jsonl").read_bytes().splitlines()]
    owners = {event["peer"] for event in of(events, "peer.serving")}
    assert {event["peer"] for event in of(events, "peer.left", reason="asked")} == owners


def test_killed_without_warning_it_takes_its_children_along(brood: Brood) -> None:
    run = LocalRun(brood, smallest_run(brood), "--steps", "100000", "--spares", "0")
    run.until_commit(2)
    children = [process for process in brood.processes() if process.pid != run.process.pid]
    assert sorted(process.name() for process in children).count("p2pd") == 3
    run.process.kill()
    run.process.wait(timeout=5)
    _, alive = psutil.wait_procs(children, timeout=15)
    assert alive == []
