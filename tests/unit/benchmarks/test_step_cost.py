"""What a step costs the event loop, in operations of the interpreter: as much per microbatch however many there are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from tests.seals import NamedSeal
from understudy.protocol.actions import Action, Run, Send
from understudy.protocol.events import JobDone
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
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.wire.messages import Backward, Forward

ME = PeerId("me")
RESULTS: dict[type, Any] = {
    ForwardJob: "activation",
    LossJob: (1.0, "gradient"),
    BackwardJob: "gradient",
    ApplyJob: Applied(1.0),
}


def operations(work: Callable[[], None]) -> int:
    """How many operations of the interpreter the work takes within the protocol."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def node(stage: int, microbatches: int) -> NodeState:
    """The owner of a stage of three, all of which are served."""
    run = RunManifest(
        name="counted", model=ModelSettings(block_stages=2), step=StepSettings(microbatches=microbatches, window=8)
    )
    state = NodeState(NamedSeal(ME), run, Membership(run.stage_count, run.timing), now=10.0)
    state.tenure, state.tenure_state = Tenure(stage, 1, ME), "serving"
    for other in {0, 1, 2} - {stage}:
        state.membership.groups[other] = Group([Seat(other, PeerId(f"{other}"), 1, "serving", 0, Status.ALIVE, 10.0)])
    return state


def taken(state: NodeState) -> list[Action]:
    """What is to be done, as `Core.handle` would give it out."""
    actions, state.actions = state.actions, []
    return actions


def drive(microbatches: int) -> Callable[[], None]:
    """A coordinator's and its edge host's whole step. The stages answer at once."""
    state = node(0, microbatches)
    edge = EdgeHost(state, WorkQueue())
    coordinator = Coordinator(state, edge)

    def work() -> None:
        coordinator.advance()
        while edge.step == 1:
            for action in taken(state):
                answer(action)

    def answer(action: Action) -> None:
        match action:
            case Run(job):
                edge.on_job_done(JobDone(job, RESULTS.get(type(job))))
            case Send(message=Forward(step, index, attempt)):
                edge.on_forward(Forward(step, index, attempt, 2, 1), "activation")
            case Send(message=Backward(step, index, attempt)):
                edge.on_backward(Backward(step, index, attempt, 1, 1), "gradient")

    return work


def host(microbatches: int) -> Callable[[], None]:
    """A block stage's whole step, each microbatch sent twice as after a loss."""
    state = node(1, microbatches)
    stage = BlockStage(state, WorkQueue())

    def work() -> None:
        for index in range(microbatches):
            for counter in (0, 1):
                attempt = Attempt(1, counter)
                stage.on_forward(Forward(1, index, attempt, 0, 1), "activation")
                finish()
            stage.on_backward(Backward(1, index, attempt, 2, 1), "gradient")
            finish()

    def finish() -> None:
        for action in taken(state):
            if isinstance(action, Run):
                stage.on_job_done(JobDone(action.job, RESULTS[type(action.job)]))

    return work


@pytest.mark.parametrize(("step", "many"), [(drive, 4096), (host, 1024)])
def test_a_microbatch_costs_the_same_in_a_step_of_many(step: Callable[[int], Callable[[], None]], many: int) -> None:
    few = 128
    cost_of_few, cost_of_many = operations(step(few)) / few, operations(step(many)) / many
    assert cost_of_many < 1.1 * cost_of_few


def test_what_waits_for_a_stage_costs_the_same_when_much_of_it_waits() -> None:
    """A new attempt of each of many microbatches, while the jobs and messages of all others wait."""

    def park(waiting: int) -> Callable[[], None]:
        state = node(1, waiting)
        stage = BlockStage(state, WorkQueue())
        state.membership.groups[2].first.status = Status.DEAD
        for index in range(waiting):
            stage.on_forward(Forward(1, index, Attempt(1, 0), 0, 1), "activation")
            stage.io.deliver(2, Forward(1, index, Attempt(1, 0), 1, 1), "activation")

        def work() -> None:
            for index in range(waiting):
                stage.on_forward(Forward(1, index, Attempt(1, 1), 0, 1), "activation")

        return work

    assert operations(park(1024)) / 1024 < 1.3 * operations(park(64)) / 64
