"""What came in: not finite, or a thousand times as large as usual."""

from __future__ import annotations

import math

import pytest

from tests.seals import NamedSeal
from understudy.protocol.actions import Emit
from understudy.protocol.events import JobDone
from understudy.protocol.ids import Attempt, Microbatch, PeerId, Tenure
from understudy.protocol.jobs import ApplyJob, BackwardJob, ForwardJob, Job, LossJob
from understudy.protocol.manifest import RunManifest
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.numbers import SAMPLES, Numbers, Spoilt

RUN = RunManifest(name="numbers")
FIRST = Attempt(1, 0)
BEFORE, AFTER = Tenure(1, 3, PeerId("before")), Tenure(3, 1, PeerId("after"))


@pytest.fixture
def state() -> NodeState:
    found = NodeState(NamedSeal(PeerId("me")), RUN, Membership(RUN.stage_count, RUN.timing))
    found.tenure = Tenure(2, 1, found.me)
    return found


def forward(step: int, index: int = 0) -> ForwardJob:
    return ForwardJob(Microbatch(step, index), FIRST, "in", BEFORE)


def backward(step: int, index: int = 0) -> BackwardJob:
    return BackwardJob(Microbatch(step, index), FIRST, "in", is_counted=True, origin=AFTER)


def came(numbers: Numbers, job: Job, magnitude: float | None) -> Spoilt | None:
    return numbers.note(JobDone(job, None, 0.1, magnitude))


def said(state: NodeState) -> list[dict[str, object]]:
    return [dict(act.fields) for act in state.actions if isinstance(act, Emit) and act.name == "numbers.strange"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_of_a_step_that_is_not_finite_is_kept_with_its_sender(state: NodeState, bad: float) -> None:
    numbers = Numbers(state)
    assert came(numbers, forward(5), 1.0) is None
    first = came(numbers, backward(5, 1), bad)
    assert first == Spoilt(Microbatch(5, 1), True, AFTER)
    assert came(numbers, forward(5, 2), bad) == Spoilt(Microbatch(5, 2), False, BEFORE)
    assert numbers.first_of(5) == first
    assert numbers.first_of(6) is None
    assert numbers.first_of(7) is None
    assert numbers.first_of(5) is None, "nobody asks for a step of long ago"


def test_jobs_with_which_nothing_came_say_nothing(state: NodeState) -> None:
    numbers = Numbers(state)
    assert came(numbers, ForwardJob(Microbatch(1, 0), FIRST), None) is None
    assert came(numbers, ApplyJob(1, 1), math.nan) is None
    assert numbers.first_of(1) is None


@pytest.mark.parametrize(("factor", "is_strange"), [(999.0, False), (1001.0, True), (1 / 999, False), (1 / 1001, True)])
def test_a_thousand_times_off_is_said_once_a_step(state: NodeState, factor: float, is_strange: bool) -> None:
    numbers = Numbers(state)
    for index in range(SAMPLES):
        came(numbers, forward(1, index), 2.0)
        came(numbers, backward(1, index), 1e-6)
    for index in range(2):
        came(numbers, forward(2, index), 2.0 * factor)
    assert len(said(state)) == is_strange
    if is_strange:
        (event,) = said(state)
        expected = {"sender": "before", "sender_stage": 1, "is_gradient": False, "usual": 2.0, "step": 2}
        assert expected.items() <= event.items()
    came(numbers, backward(2), 1e-6)
    assert len(said(state)) == is_strange, "each hop has a median of its own"


def test_nothing_is_strange_before_there_is_something_to_compare_with(state: NodeState) -> None:
    numbers = Numbers(state)
    for index in range(SAMPLES // 2):
        came(numbers, forward(1, index), 10.0 ** (4 * index % 12))
    assert not said(state)


def test_what_stays_strange_is_usual_after_a_while(state: NodeState) -> None:
    numbers = Numbers(state)
    for step in range(4 * SAMPLES):
        came(numbers, forward(step), 1.0 if step < SAMPLES else 1e6)
    assert 0 < len(said(state)) <= SAMPLES


def test_a_loss_job_is_a_hop_as_well(state: NodeState) -> None:
    job = LossJob(Microbatch(1, 0), FIRST, "in", is_counted=True, origin=AFTER)
    assert came(Numbers(state), job, math.nan) == Spoilt(Microbatch(1, 0), False, AFTER)
