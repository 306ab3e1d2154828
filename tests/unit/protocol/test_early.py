"""Whose word closes a block stage's step, and whose attempts it works on."""

from __future__ import annotations

import pytest

from tests.seals import NamedSeal
from understudy.protocol.actions import Run, Send
from understudy.protocol.ids import Attempt, PeerId, Tenure
from understudy.protocol.jobs import ApplyJob, ForwardJob, Job
from understudy.protocol.manifest import ModelSettings, RunManifest, StepSettings
from understudy.protocol.membership.groups import Group
from understudy.protocol.membership.seats import Seat, Status
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.wire.messages import Commit, CommitAck, Forward

ME, DRIVER = PeerId("me"), PeerId("0")
RUN = RunManifest(name="early", model=ModelSettings(block_stages=3), step=StepSettings(microbatches=4))
FIRST, NOBODYS = Attempt(1, 0), Attempt(2**53, 0)


class Owner:
    """The owner of a block stage that works on step 6; all others serve under incarnation 1."""

    def __init__(self, stage: int = 2) -> None:
        self.state = NodeState(NamedSeal(ME), RUN, Membership(RUN.stage_count, RUN.timing), now=10.0, committed=5)
        self.state.tenure, self.state.tenure_state = Tenure(stage, 1, ME), "serving"
        for other in {0, 1, 2, 3} - {stage}:
            self.set_owner(other)
        self.host = BlockStage(self.state, WorkQueue())
        self.before = stage - 1

    def set_owner(self, stage: int, incarnation: int = 1, status: Status = Status.ALIVE) -> None:
        found = Seat(stage, PeerId(f"{stage}"), incarnation, "serving", 5, status, 10.0)
        self.state.membership.groups[stage] = Group([found])

    def forward(self, step: int = 6, index: int = 0, attempt: Attempt = FIRST, payload: str = "in") -> list[Job]:
        """From the stage before it on the route: what is computed now?"""
        return self.jobs_of(Forward(step, index, attempt, self.before, 1), payload)

    def jobs_of(self, message: Forward | Commit, payload: str = "in") -> list[Job]:
        self.state.actions.clear()
        if isinstance(message, Commit):
            self.host.on_commit(DRIVER, message)
        else:
            self.host.on_forward(message, payload)
        return [action.job for action in self.state.actions if isinstance(action, Run)]


def works_on(jobs: list[Job]) -> list[tuple[int, int, Attempt, str]]:
    forwards = [job for job in jobs if isinstance(job, ForwardJob)]
    return [(job.microbatch.step, job.microbatch.index, job.attempt, job.payload) for job in forwards]


# --- activations of the next step ---


def test_an_activation_of_the_next_step_waits_for_the_drivers_commit() -> None:
    owner = Owner()
    assert owner.forward(step=7) == []
    assert owner.host.step == 6, "no neighbour closes our step"
    jobs = owner.jobs_of(Commit(1, 6))
    assert isinstance(jobs[0], ApplyJob)
    assert works_on(jobs) == [(7, 0, Attempt(1, 0), "in")]
    assert owner.host.step == 7


def test_what_waited_is_taken_once() -> None:
    owner = Owner()
    owner.forward(step=7)
    owner.jobs_of(Commit(1, 6))
    assert owner.forward(step=7) == []
    assert owner.host._early == {}


def test_one_activation_of_each_microbatch_waits_however_many_come() -> None:
    owner = Owner()
    for number in range(100):
        for index in range(4):
            assert owner.forward(7, index, Attempt(1, number), f"{index}, {number}") == []
    waiting = owner.host._early
    assert sorted(waiting) == [0, 1, 2, 3]
    assert works_on(owner.jobs_of(Commit(1, 6))) == [(7, 0, Attempt(1, 99), "0, 99")], "two jobs at a time"


def test_no_more_microbatches_wait_than_the_driver_has_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds an activation."""
    monkeypatch.setattr(RunManifest, "window", 2)
    owner = Owner()
    for index in range(4):
        owner.forward(7, index)
    owner.forward(7, 1, Attempt(1, 5), "newer")
    assert [(index, held[0].attempt) for index, held in owner.host._early.items()] == [(0, FIRST), (1, Attempt(1, 5))]


@pytest.mark.parametrize("step", [8, 9, 2**53])
def test_what_is_further_ahead_does_not_wait(step: int) -> None:
    owner = Owner()
    assert owner.forward(step) == []
    assert (owner.host._early, owner.host.step) == ({}, 6)


def test_the_drivers_own_activation_says_that_the_step_is_decided() -> None:
    """It overtook its commit."""
    owner = Owner(stage=1)
    jobs = owner.forward(step=7)
    assert isinstance(jobs[0], ApplyJob)
    assert works_on(jobs) == [(7, 0, Attempt(1, 0), "in")]


def test_while_nobody_drives_a_neighbour_says_that_the_step_is_decided() -> None:
    """The commit may have died with the driver: nobody else repeats it."""
    owner = Owner()
    owner.set_owner(0, status=Status.DEAD)
    jobs = owner.forward(step=7)
    assert isinstance(jobs[0], ApplyJob)
    assert works_on(jobs) == [(7, 0, Attempt(1, 0), "in")]


# --- attempts of a driver that nobody knows ---


def test_an_attempt_of_a_later_driver_than_the_one_that_serves_is_nobodys() -> None:
    owner = Owner()
    assert owner.forward(attempt=NOBODYS) == []
    assert works_on(owner.forward()) == [(6, 0, Attempt(1, 0), "in")], "it outdates none of the driver's"
    assert works_on(owner.forward(7, attempt=NOBODYS)) == []
    assert owner.host._early == {}, "and it waits for no commit"


def test_while_nobody_drives_a_successors_attempts_are_taken() -> None:
    """News of who drives may come later than its work."""
    owner = Owner()
    owner.set_owner(0, status=Status.DEAD)
    assert works_on(owner.forward(attempt=Attempt(2, 0))) == [(6, 0, Attempt(2, 0), "in")]


@pytest.mark.parametrize("is_same", [False, True])
def test_a_driver_that_is_known_again_outdates_attempts_of_nobody(is_same: bool) -> None:
    """Made up while nobody drove: they must not keep the driver's own out, be it a new one or the one of before."""
    owner = Owner()
    owner.set_owner(0, status=Status.DEAD)
    assert works_on(owner.forward(attempt=NOBODYS)) != []
    incarnation = 1 if is_same else 2
    owner.set_owner(0, incarnation)
    if is_same:
        owner.host.owner_revived(0)
    else:
        owner.host.owner_changed(0)
    assert owner.host._ledger.phase_of(0, NOBODYS) is None
    owner.host.io.queue.finished()
    assert works_on(owner.forward(attempt=Attempt(incarnation, 0))) == [(6, 0, Attempt(incarnation, 0), "in")]
    jobs = owner.jobs_of(Commit(incarnation, 6))
    assert owner.host.step == 7, "its word counts"
    assert jobs == [] or isinstance(jobs[0], ApplyJob)


def test_another_stages_owner_sets_nothing_back() -> None:
    owner = Owner()
    owner.set_owner(0, 2)
    owner.forward(attempt=Attempt(2, 0))
    owner.set_owner(3, 2)
    owner.host.owner_changed(3)
    assert owner.host._ledger.phase_of(0, Attempt(2, 0)) is not None


def test_a_step_that_was_applied_is_told_to_the_driver_alone() -> None:
    """It asks for the step before ours: it does it again, and need not."""
    owner = Owner()
    owner.forward(step=5)
    assert [a for a in owner.state.actions if isinstance(a, Send)] == [Send(DRIVER, CommitAck(2, 1, 5))]
