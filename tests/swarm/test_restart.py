"""Volunteers whose supervisor starts them again at once: each takes its trained stage back, and says from what."""

from __future__ import annotations

import math
import socket
import time
from dataclasses import dataclass
from statistics import fmean

from tests.swarm.nursery import Nursery
from tests.swarm.processes import Brood
from tests.swarm.test_local import Event, of, only

START_TIMEOUT_S = 60.0
RECOVERY_TIMEOUT_S = 40.0
NAMES = ("first", "second", "third", "fourth")
WINDOW = 10
"""Commits over which a loss is averaged: a step of eight rows says little."""
LOSS_RISE_MAX = 0.5
RUN = """
name = "restarts"
[model]
hidden_size = 32
intermediate_size = 48
attention_heads = 2
block_stages = 3
context_length = 32
[recovery]
method = "checkfree"
standby_every = 0
[step]
microbatches = 2
microbatch_size = 4
[timing]
suspect_after_s = 6.0
dead_after_s = 12.0
"""
"""Deaths are noticed by refused connections, or told by who starts again; a busy machine's silence is none."""


@dataclass(frozen=True)
class Strike:
    """A process is killed, and started again after a while."""

    stage: int
    after_s: float
    method: str
    donors: tuple[int, ...]


STRIKES = (
    Strike(2, 0.0, "checkfree", (1, 3)),
    Strike(3, 3.0, "copy", (2,)),
    Strike(0, 0.0, "standby", (1, 3)),
)


class Swarm:
    """One node for each stage, each on a port of its own that it keeps; nobody waits as a spare.

    None asks for a stage: so each finds its own again by what the swarm says, not by its command line.
    """

    def __init__(self, brood: Brood, nursery: Nursery) -> None:
        self._brood, self._nursery = brood, nursery
        source = brood.folder / "run.toml"
        source.write_text(RUN, encoding="utf-8")
        join = nursery.found(str(source), 100_000)
        for name in NAMES:
            nursery.join(name, join, port=free_port())

    def events(self) -> list[Event]:
        """Of all nodes, oldest first."""
        merged = [event for name in NAMES for event in self._nursery.events(name)]
        return sorted(merged, key=lambda event: float(event["time"]))

    def commits_after(self, moment: float) -> list[Event]:
        return [event for event in of(self.events(), "step.committed") if event["time"] > moment]

    def until_commits(self, count: int, moment: float, timeout_s: float) -> None:
        self._brood.until(lambda: len(self.commits_after(moment)) >= count, f"{count} commits", timeout_s)

    def suffer(self, strike: Strike) -> None:
        """Kill an owner, start it again, and judge the run once it went on."""
        name = self._owner(strike.stage)
        killed_at = time.time()
        self._nursery.kill(name)
        self._brood.until(lambda: time.time() >= killed_at + strike.after_s, "the supervisor", strike.after_s + 5.0)
        self._nursery.start_again(name)
        served_at = self._until_served_again(strike.stage, killed_at)
        self.until_commits(WINDOW, served_at, RECOVERY_TIMEOUT_S)
        assert_taken_back(self.events(), strike, killed_at)
        assert_loss_stays(of(self.events(), "step.committed"), killed_at, served_at)

    def _owner(self, stage: int) -> str:
        peer = of(self.events(), "peer.serving", stage=stage)[-1]["peer"]
        (name,) = [name for name in NAMES if of(self._nursery.events(name), "peer.serving", stage=stage, peer=peer)]
        return name

    def _until_served_again(self, stage: int, killed_at: float) -> float:
        def served_again() -> list[Event]:
            return [event for event in of(self.events(), "peer.serving", stage=stage) if event["time"] > killed_at]

        self._brood.until(served_again, f"S{stage} to be served again", RECOVERY_TIMEOUT_S)
        return float(served_again()[0]["time"])


def free_port() -> int:
    """A volunteer has one port and keeps it; nobody else here asks for a port by its number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def losses(commits: list[Event]) -> float:
    return fmean(commit["loss"] for commit in commits)


def test_an_owner_that_is_started_again_takes_its_trained_stage_back(brood: Brood, nursery: Nursery) -> None:
    """A middle stage at once, the last stage after 3 s, S0 at once."""
    swarm = Swarm(brood, nursery)
    swarm.until_commits(40, 0.0, START_TIMEOUT_S)
    for strike in STRIKES:
        swarm.suffer(strike)
    assert_no_step_lost(of(swarm.events(), "step.committed"))
    assert nursery.statuses() == {}
    for name in NAMES:
        assert "Traceback" not in nursery.log(name)


def assert_taken_back(events: list[Event], strike: Strike, killed_at: float) -> None:
    """By the same peer, under a later incarnation, from its neighbours; and never claimed as if it were new."""
    held = [event for event in of(events, "peer.serving", stage=strike.stage) if event["time"] < killed_at][-1]
    later = [event for event in events if event["time"] > killed_at]
    (claim,) = of(later, "stage.claimed", stage=strike.stage)
    recovered = only(later, "stage.recovered", stage=strike.stage)
    again = only(later, "peer.serving", stage=strike.stage)
    # Not always the next one: of four that start at once two may claim a stage, and a withdrawn incarnation is spent.
    assert claim["incarnation"] == recovered["incarnation"] == again["incarnation"] > held["incarnation"]
    assert {event["peer"] for event in (claim, recovered, again)} == {held["peer"]}
    assert recovered["method"] == strike.method
    if strike.stage == 0:  # each part from whichever keeper has the newest pair
        assert set(recovered["donors"]) <= set(strike.donors)
    else:
        assert recovered["donors"] == list(strike.donors)
    assert recovered["step"] > 0


def assert_loss_stays(commits: list[Event], killed_at: float, served_at: float) -> None:
    before = [commit for commit in commits if commit["time"] < killed_at][-WINDOW:]
    after = [commit for commit in commits if commit["time"] > served_at][:WINDOW]
    assert losses(after) < losses(before) + LOSS_RISE_MAX


def assert_no_step_lost(commits: list[Event]) -> None:
    """A new S0 may decide its predecessor's last step again; no step is missing."""
    steps = [commit["step"] for commit in commits]
    assert sorted(set(steps)) == list(range(1, steps[-1] + 1))
    assert len(steps) - len(set(steps)) <= 1
    assert all(math.isfinite(commit["loss"]) for commit in commits)
