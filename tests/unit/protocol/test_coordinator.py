"""S0's host: which steps tell it how many microbatches to have in flight."""

from __future__ import annotations

from typing import TypeVar

import pytest

from tests.seals import NamedSeal
from understudy.protocol.actions import Emit, Run, Send
from understudy.protocol.events import JobDone, SendFailed
from understudy.protocol.ids import Attempt, PeerId, Tenure
from understudy.protocol.jobs import Applied, ApplyJob, BackwardJob, ForwardJob, LossJob
from understudy.protocol.manifest import ModelSettings, RunManifest, StepSettings
from understudy.protocol.membership.groups import Group
from understudy.protocol.membership.seats import Seat, Status
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.coordinator import Coordinator
from understudy.protocol.pipeline.edge_host import EdgeHost
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.pipeline.window import Window
from understudy.protocol.wire.messages import Backward, Commit, Dropped, Forward

ME = PeerId("me")
RUN = RunManifest(name="driven", model=ModelSettings(block_stages=2), step=StepSettings(microbatches=1))
J = TypeVar("J", ForwardJob, LossJob, BackwardJob)
RESULTS: dict[type, object] = {
    ForwardJob: "activation",
    LossJob: (1.0, "gradient"),
    BackwardJob: None,
    ApplyJob: Applied(1.0),
}


class Swarm:
    """A driver whose one microbatch travels at our word; every step takes a second."""

    def __init__(self, run: RunManifest = RUN, incarnation: int = 1) -> None:
        self.state = NodeState(NamedSeal(ME), run, Membership(run.stage_count, run.timing), now=10.0)
        self.state.tenure, self.state.tenure_state = Tenure(0, incarnation, ME), "serving"
        for stage in (1, 2):
            self.state.membership.groups[stage] = Group(
                [Seat(stage, PeerId(f"{stage}"), 1, "serving", 0, Status.ALIVE, 10.0)]
            )
        self._finished = self._seen = 0
        self.edge = EdgeHost(self.state, WorkQueue())
        self.coordinator = Coordinator(self.state, self.edge)
        self.coordinator.advance()

    def _finish(self, kind: type[J]) -> J:
        """Let the compute thread work until a job of this kind is done."""
        while True:
            runs = [act for act in self.state.actions if isinstance(act, Run)]
            job = runs[self._finished].job
            self._finished += 1
            self.edge.on_job_done(JobDone(job, RESULTS[type(job)]))
            if isinstance(job, kind):
                return job

    def go_out(self) -> None:
        job = self._finish(ForwardJob)
        step, index = job.microbatch.step, job.microbatch.index
        self.edge.on_forward(Forward(step, index, job.attempt, 2, 1), "activation")

    def lose_microbatch(self) -> None:
        """It goes out and is not heard of again until its deadline."""
        self._finish(ForwardJob)
        self.state.now += RUN.step.microbatch_timeout_s
        self.coordinator.on_tick()

    def come_home(self) -> None:
        job = self._finish(LossJob)
        step, index = job.microbatch.step, job.microbatch.index
        self.edge.on_backward(Backward(step, index, job.attempt, 1, 1), "gradient")
        self.state.now += 1.0
        self._finish(BackwardJob)

    def step(self) -> None:
        self.go_out()
        self.come_home()

    def set_status(self, status: Status) -> None:
        """Of S1's owner."""
        self.state.membership.groups[1].first.status = status
        self.coordinator.advance()

    def reissued(self) -> list[str]:
        """Why microbatches were issued again, since the last time."""
        events = [act for act in self.state.actions if isinstance(act, Emit) and act.name == "microbatch.reissued"]
        again, self._seen = events[self._seen :], len(events)
        return [event.fields["reason"] for event in again]


def lost(attempt: Attempt, *, is_gradient: bool) -> Dropped:
    return Dropped(1, 1, 1, 0, attempt, is_gradient)


FIRST, SECOND, THIRD = (Attempt(1, counter) for counter in range(3))


def test_what_a_stage_lost_is_issued_again_at_once_and_then_after_a_pause() -> None:
    swarm = Swarm()
    swarm.go_out()
    swarm.edge.on_dropped(lost(FIRST, is_gradient=False))
    assert swarm.reissued() == []  # it came to us all the same
    swarm = Swarm()
    swarm._finish(ForwardJob)
    for message in (lost(SECOND, is_gradient=False), lost(FIRST, is_gradient=True)):
        swarm.edge.on_dropped(message)
        assert swarm.reissued() == []  # there is no such attempt; it is not on its way back
    swarm.edge.on_dropped(lost(FIRST, is_gradient=False))
    assert swarm.reissued() == ["it was lost on the way"]
    swarm._finish(ForwardJob)
    swarm.edge.on_dropped(lost(SECOND, is_gradient=False))
    swarm.state.now += 0.5
    swarm.coordinator.on_tick()
    assert swarm.reissued() == []
    swarm.state.now += 0.5
    swarm.coordinator.on_tick()
    assert swarm.reissued() == ["it was lost on the way"]


def test_a_loss_that_something_else_has_healed_meanwhile_is_nothing() -> None:
    swarm = Swarm()
    for attempt in (FIRST, SECOND):
        swarm._finish(ForwardJob)
        swarm.edge.on_dropped(lost(attempt, is_gradient=False))
    swarm.reissued()
    swarm.edge.on_forward(Forward(1, 0, SECOND, 2, 1), "activation")  # it was there after all
    swarm.come_home()
    swarm.state.now += 5.0
    swarm.coordinator.on_tick()
    assert swarm.reissued() == []


def test_a_loss_whose_microbatch_was_issued_again_meanwhile_is_nothing() -> None:
    swarm = Swarm()
    for attempt in (FIRST, SECOND):
        swarm._finish(ForwardJob)
        swarm.edge.on_dropped(lost(attempt, is_gradient=False))
    swarm.reissued()
    swarm.state.now += RUN.step.microbatch_timeout_s
    swarm.coordinator.on_tick()
    assert swarm.reissued() == ["its deadline passed"]


def test_a_loss_whose_microbatch_came_home_meanwhile_is_nothing() -> None:
    """It is done, though the step is not: there is nothing to issue."""
    swarm = Swarm(RunManifest(name="driven", model=ModelSettings(block_stages=2), step=StepSettings(microbatches=2)))
    swarm._finish(ForwardJob)
    swarm.edge.on_dropped(lost(FIRST, is_gradient=False))
    swarm._finish(ForwardJob)  # of the other microbatch
    swarm._finish(ForwardJob)
    swarm.edge.on_dropped(lost(SECOND, is_gradient=False))
    swarm.reissued()
    swarm.edge.on_forward(Forward(1, 0, SECOND, 2, 1), "activation")
    swarm.come_home()
    swarm.state.now += 5.0
    swarm.coordinator.on_tick()
    assert swarm.reissued() == []


def test_while_a_stage_is_missing_a_loss_waits_for_it_like_everything_else() -> None:
    swarm = Swarm()
    swarm._finish(ForwardJob)
    swarm.set_status(Status.DEAD)
    swarm.edge.on_dropped(lost(FIRST, is_gradient=False))
    assert swarm.reissued() == []
    swarm.set_status(Status.ALIVE)
    assert swarm.reissued() == ["a stage was lost"]


def test_what_s0_lost_itself_it_issues_again() -> None:
    swarm = Swarm()
    swarm._finish(ForwardJob)
    sent = Forward(1, 0, FIRST, 0, 1)
    swarm.edge.on_send_failed(SendFailed(PeerId("1"), sent, "activation"))
    assert swarm.reissued() == ["it was lost on the way"]


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


def applied(swarm: Swarm) -> list[ApplyJob]:
    return [act.job for act in swarm.state.actions if isinstance(act, Run) and isinstance(act.job, ApplyJob)]


def commits(swarm: Swarm) -> list[tuple[PeerId, int]]:
    sent = (act for act in swarm.state.actions if isinstance(act, Send))
    return [(act.peer, act.message.step) for act in sent if isinstance(act.message, Commit)]


@pytest.mark.parametrize(("is_counted", "head"), [(False, 0), (True, 1)])
def test_a_new_driver_takes_over_a_decided_step_however_far_it_is_with_it(is_counted: bool, head: int) -> None:
    """Its head counted the microbatch, its embedding did not: each sum is divided by its own."""
    swarm = Swarm(incarnation=2)
    if is_counted:
        swarm.go_out()
        swarm._finish(LossJob)
    swarm.coordinator.on_stage_step(2, 1)
    assert applied(swarm) == [ApplyJob(1, 0, head)]
    assert swarm.edge.step == 2
    assert commits(swarm) == [(PeerId("1"), 1), (PeerId("2"), 1)]
    swarm.coordinator.on_stage_step(1, 1)
    assert swarm.edge.step == 2, "once"


def test_only_a_drivers_first_step_can_have_been_decided_by_another() -> None:
    swarm = Swarm(incarnation=2)
    swarm.step()
    swarm.coordinator.on_stage_step(1, 2)
    assert swarm.edge.step == 2


def test_the_first_driver_has_no_predecessor_to_take_over_from() -> None:
    """A stage that is ahead of it followed a rival, on the other side of a split."""
    swarm = Swarm()
    swarm.coordinator.on_stage_step(2, 1)
    assert swarm.edge.step == 1


def test_a_new_driver_takes_over_what_the_record_of_a_stage_that_left_says() -> None:
    swarm = Swarm(incarnation=2)
    swarm.state.membership.groups[2].first.step = 1
    swarm.set_status(Status.ALIVE)
    assert swarm.edge.step == 2


def test_a_loss_that_is_not_finite_is_said_and_reported_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RESULTS, LossJob, (float("nan"), "gradient"))
    swarm = Swarm()
    swarm.step()
    said = {act.name: act.fields for act in swarm.state.actions if isinstance(act, Emit)}
    assert said["step.committed"]["loss"] is None
    assert said["loss.not_finite"]["microbatches"] == 1
    assert said["loss.not_finite"]["reason"] == "S0 made of finite numbers a loss that is not"
    assert said["step.committed"]["why_no_loss"] == said["loss.not_finite"]["reason"]
    assert swarm.state.progress is not None
    assert swarm.state.progress.loss is None
    assert swarm.state.progress.why_no_loss == said["loss.not_finite"]["reason"]
