"""S0's host: which steps tell it how many microbatches to have in flight."""

from __future__ import annotations

from typing import TypeVar

import pytest

from understudy.protocol.driving import Driver
from understudy.protocol.events import ApplyJob, BackwardJob, ForwardJob, JobDone, LossJob, Run, SnapshotJob
from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.manifest import ModelSettings, RunManifest, StepSettings
from understudy.protocol.membership import Membership
from understudy.protocol.messages import Backward, Forward
from understudy.protocol.node_state import NodeState
from understudy.protocol.seats import Seat, Status
from understudy.protocol.window import Window

ME = PeerId("me")
RUN = RunManifest(name="driven", model=ModelSettings(block_stages=2), step=StepSettings(microbatches=1))
J = TypeVar("J", ForwardJob, LossJob, BackwardJob)
RESULTS: dict[type, object] = {
    ForwardJob: "activation",
    LossJob: (1.0, "gradient"),
    BackwardJob: None,
    ApplyJob: 1.0,
    SnapshotJob: (4, "digest"),
}


class Swarm:
    """A driver whose one microbatch travels at our word; every step takes a second."""

    def __init__(self) -> None:
        self.state = NodeState(ME, RUN, Membership(RUN.stage_count, RUN.timing), now=10.0)
        self.state.tenure, self.state.tenure_state = Tenure(0, 1, ME), "serving"
        for stage in (1, 2):
            self.state.membership.seats[stage] = Seat(stage, PeerId(f"{stage}"), 1, "serving", 0, Status.ALIVE, 10.0)
        self._finished = 0
        self.driver = Driver(self.state)
        self.driver.advance()

    def _finish(self, kind: type[J]) -> J:
        """Let the compute thread work until a job of this kind is done."""
        while True:
            runs = [act for act in self.state.actions if isinstance(act, Run)]
            job = runs[self._finished].job
            self._finished += 1
            self.driver.on_job_done(JobDone(job, RESULTS[type(job)]))
            if isinstance(job, kind):
                return job

    def go_out(self) -> None:
        job = self._finish(ForwardJob)
        step, index = job.microbatch.step, job.microbatch.index
        self.driver.on_forward(Forward(step, index, job.attempt, 2, 1), "activation")

    def lose_microbatch(self) -> None:
        """It goes out and is not heard of again until its deadline."""
        self._finish(ForwardJob)
        self.state.now += RUN.step.microbatch_timeout_s
        self.driver.on_tick()

    def come_home(self) -> None:
        job = self._finish(LossJob)
        step, index = job.microbatch.step, job.microbatch.index
        self.driver.on_backward(Backward(step, index, job.attempt, 1, 1), "gradient")
        self.state.now += 1.0
        self._finish(BackwardJob)

    def step(self) -> None:
        self.go_out()
        self.come_home()

    def set_status(self, status: Status) -> None:
        """Of S1's owner."""
        self.state.membership.seats[1].status = status
        self.driver.advance()


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The durations by which the window is judged."""
    seconds: list[float] = []
    monkeypatch.setattr(Window, "note", lambda _, step_seconds: seconds.append(step_seconds))
    return seconds


def test_every_step_counts_but_a_drivers_first(noted: list[float]) -> None:
    swarm = Swarm()
    for _ in range(3):
        swarm.step()
    assert noted == [1.0, 1.0]


def test_a_step_that_was_issued_again_does_not_count(noted: list[float]) -> None:
    swarm = Swarm()
    swarm.step()
    swarm.lose_microbatch()
    swarm.step()
    assert noted == []
    swarm.step()
    assert noted == [1.0]


def test_a_step_that_had_to_wait_for_a_stage_does_not_count(noted: list[float]) -> None:
    """Even if nothing had to be issued again: the stage was lost behind the last microbatch of the step before."""
    swarm = Swarm()
    swarm.step()
    swarm.go_out()
    swarm.set_status(Status.DEAD)
    swarm.come_home()
    swarm.state.now += 5.0
    swarm.set_status(Status.ALIVE)
    swarm.step()
    assert noted == []
    swarm.step()
    assert noted == [1.0]
