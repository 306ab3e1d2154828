"""What those hear who observe the steps of a stage, and where their own work comes in the queue."""

from __future__ import annotations

import pytest

from tests.seals import NamedSeal
from understudy.protocol.actions import Run
from understudy.protocol.events import JobDone
from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.jobs import Applied, ApplyJob, Job, LeaseJob
from understudy.protocol.manifest import ModelSettings, RunManifest, StepSettings
from understudy.protocol.membership.groups import Group
from understudy.protocol.membership.seats import Seat, Status
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.coordinator import Coordinator
from understudy.protocol.pipeline.edge_host import EdgeHost
from understudy.protocol.pipeline.observer import StepObserver
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.wire.messages import Commit

ME, PEER = PeerId("me"), PeerId("peer")
RUN = RunManifest(name="observed", model=ModelSettings(block_stages=2), step=StepSettings(microbatches=1))


def node(stage: int) -> NodeState:
    """The second owner of its stage, at the first step: whatever is said of it is believed."""
    state = NodeState(NamedSeal(ME), RUN, Membership(RUN.stage_count, RUN.timing), now=10.0)
    state.tenure, state.tenure_state = Tenure(stage, 2, ME), "serving"
    for other in {0, 1, 2} - {stage}:
        state.membership.groups[other] = Group([Seat(other, PEER, 1, "serving", 0, Status.ALIVE, 10.0)])
    return state


class Diary(StepObserver):
    """Writes down what it hears, and has the weights copied whenever a step is closed."""

    def __init__(self, state: NodeState, queue: WorkQueue) -> None:
        self._state, self._queue = state, queue
        self.heard: list[tuple[str, int]] = []

    def closed(self, step: int) -> None:
        self.heard.append(("closed", step))
        self._queue.push(LeaseJob(step))

    def applied(self, step: int) -> None:
        assert self._state.committed == step
        self.heard.append(("applied", step))

    def owner_changed(self, stage: int) -> None:
        self.heard.append(("owner changed", stage))


def close_first_step(state: NodeState, host: EdgeHost | BlockStage) -> None:
    if isinstance(host, EdgeHost):
        Coordinator(state, host).take_over(1)
    else:
        host.on_commit(PEER, Commit(1, 1))


@pytest.mark.parametrize(("stage", "kind"), [(0, EdgeHost), (1, BlockStage)])
def test_what_an_observer_orders_comes_right_behind_the_update(stage: int, kind: type[EdgeHost | BlockStage]) -> None:
    state, queue = node(stage), WorkQueue()
    diary = Diary(state, queue)
    host = kind(state, queue, [diary])
    close_first_step(state, host)
    jobs: list[Job] = [action.job for action in state.actions if isinstance(action, Run)]
    assert jobs[:2] == [ApplyJob(1, 0), LeaseJob(1)]
    host.on_job_done(JobDone(jobs[0], Applied(1.0)))
    assert diary.heard == [("closed", 1), ("applied", 1)]


@pytest.mark.parametrize(("stage", "kind"), [(0, EdgeHost), (1, BlockStage)])
def test_all_observers_hear_of_a_new_owner(stage: int, kind: type[EdgeHost | BlockStage]) -> None:
    state, queue = node(stage), WorkQueue()
    diaries = [Diary(state, queue), Diary(state, queue)]
    kind(state, queue, diaries).owner_changed(2)
    assert [diary.heard for diary in diaries] == [[("owner changed", 2)]] * 2


def test_who_has_no_use_for_a_word_ignores_it() -> None:
    state, queue = node(1), WorkQueue()
    host = BlockStage(state, queue, [StepObserver()])
    close_first_step(state, host)
    assert [action.job for action in state.actions if isinstance(action, Run)] == [ApplyJob(1, 0)]
