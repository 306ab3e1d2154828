"""A tensor that was lost, and known to be: what its sender does about it, and when S0 makes it again."""

from __future__ import annotations

from typing import Any

import pytest

from tests.seals import NamedSeal
from understudy.protocol.actions import Run, Send
from understudy.protocol.events import JobDone, SendFailed
from understudy.protocol.ids import Attempt, PeerId, Tenure
from understudy.protocol.manifest import ModelSettings, RunManifest, StepSettings
from understudy.protocol.membership.groups import Group
from understudy.protocol.membership.seats import Seat, Status
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.dropping import PAUSE_S, Drops, dropped
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.wire.messages import Backward, DataMessage, Dropped, Forward

ME = PeerId("me")
RUN = RunManifest(name="lossy", model=ModelSettings(block_stages=3), step=StepSettings(microbatches=2))
FIRST, SECOND, THIRD = (Attempt(1, counter) for counter in range(3))
FORWARD = Forward(1, 0, FIRST, 2, 1)
BACKWARD = Backward(1, 0, FIRST, 2, 1)


class Middle:
    """S2, which has passed microbatch 0 on, on its way out and back, and can be told what became of it."""

    def __init__(self) -> None:
        self.state = NodeState(NamedSeal(ME), RUN, Membership(RUN.stage_count, RUN.timing), now=10.0)
        self.state.tenure, self.state.tenure_state = Tenure(2, 1, ME), "serving"
        for stage in (0, 1, 3):
            self.set_owner(stage, f"{stage}")
        self.host = BlockStage(self.state, WorkQueue())
        self.host.on_forward(Forward(1, 0, FIRST, 1, 1), "in")
        self._finish()

    def _finish(self) -> None:
        """Let the compute thread do the job it was given last."""
        run = [action for action in self.state.actions if isinstance(action, Run)][-1]
        self.host.on_job_done(JobDone(run.job, "out"))

    def come_back(self) -> None:
        self.host.on_backward(Backward(1, 0, FIRST, 3, 1), "in")
        self._finish()

    def set_owner(self, stage: int, peer: str, status: Status = Status.ALIVE) -> None:
        self.state.membership.groups[stage] = Group([Seat(stage, PeerId(peer), 1, "serving", 0, status, 10.0)])

    def fail(self, peer: str, message: DataMessage) -> list[Any]:
        """It is told that the message did not reach the peer: what does it send?"""
        self.state.actions.clear()
        self.host.on_send_failed(SendFailed(PeerId(peer), message, "out"))
        return [
            (action.peer, action.message, action.payload) for action in self.state.actions if isinstance(action, Send)
        ]


def test_s0_is_told_what_its_receiver_cannot_be_sent() -> None:
    middle = Middle()
    assert middle.fail("3", FORWARD) == [("0", Dropped(2, 1, 1, 0, FIRST, False), None)]
    middle.come_back()
    assert middle.fail("1", BACKWARD) == [("0", Dropped(2, 1, 1, 0, FIRST, True), None)]


def test_nothing_is_done_about_what_matters_no_more() -> None:
    middle = Middle()
    assert middle.fail("3", Forward(1, 0, SECOND, 2, 1)) == []  # another attempt
    assert middle.fail("3", Forward(2, 0, FIRST, 2, 1)) == []  # another step
    assert middle.fail("3", Forward(1, 1, FIRST, 2, 1)) == []  # one that never came
    assert middle.fail("1", BACKWARD) == []  # it is not on its way back yet
    middle.come_back()
    assert middle.fail("3", FORWARD) == []  # it got there after all: its gradient came
    middle.host.on_forward(Forward(1, 0, SECOND, 1, 1), "in")
    assert middle.fail("1", BACKWARD) == []  # a newer attempt has begun


def test_an_activation_goes_to_the_new_owner_and_a_gradient_is_of_no_use_to_it() -> None:
    middle = Middle()
    middle.set_owner(3, "new")
    assert middle.fail("3", FORWARD) == [("new", FORWARD, "out")]
    middle.come_back()
    middle.set_owner(1, "new")
    assert middle.fail("1", BACKWARD) == []  # S0 issues everything again


@pytest.mark.parametrize("message", [FORWARD, BACKWARD])
def test_what_has_no_receiver_waits_for_it_to_come_back(message: DataMessage) -> None:
    middle, stage = Middle(), 3 if message is FORWARD else 1
    if message is BACKWARD:
        middle.come_back()
    middle.set_owner(stage, f"{stage}", Status.DEAD)
    assert middle.fail(f"{stage}", message) == []
    middle.set_owner(stage, f"{stage}")
    middle.host.io.owner_revived(stage)
    sent = [action for action in middle.state.actions if isinstance(action, Send)]
    assert [(send.peer, send.message) for send in sent] == [(f"{stage}", message)]


# --- S0's account ---


def test_the_first_loss_is_made_good_at_once_and_later_ones_wait_longer_each_time() -> None:
    drops, now, waited = Drops(), 100.0, []
    for counter in range(6):
        drops.note(1, 0, Attempt(1, counter), now)
        began = now
        while not (due := drops.take_due(1, now)):
            now += PAUSE_S / 4
        assert due == [(0, Attempt(1, counter))]
        assert drops.take_due(1, now) == []
        waited.append(now - began)
    assert waited == [0.0, *(PAUSE_S * factor for factor in (1, 2, 4, 8, 8))]


def test_being_told_twice_of_one_attempt_is_no_news() -> None:
    drops = Drops()
    drops.note(1, 0, SECOND, 0.0)
    assert drops.take_due(1, 0.0) == [(0, SECOND)]
    for attempt in (SECOND, FIRST):
        drops.note(1, 0, attempt, 0.0)
    assert drops.take_due(1, 100.0) == []
    drops.note(1, 0, THIRD, 0.0)
    assert drops.take_due(1, PAUSE_S) == [(0, THIRD)]


def test_every_step_and_every_microbatch_has_an_account_of_its_own() -> None:
    drops = Drops()
    drops.note(1, 0, FIRST, 0.0)
    drops.note(1, 1, FIRST, 0.0)
    assert drops.take_due(1, 0.0) == [(0, FIRST), (1, FIRST)]
    drops.note(1, 0, SECOND, 0.0)
    assert drops.take_due(2, 100.0) == []
    drops.note(2, 0, FIRST, 0.0)
    assert drops.take_due(2, 0.0) == [(0, FIRST)]


def test_what_is_told_of_a_lost_message_names_it() -> None:
    assert dropped(FORWARD) == Dropped(2, 1, 1, 0, FIRST, is_gradient=False)
    assert dropped(BACKWARD) == Dropped(2, 1, 1, 0, FIRST, is_gradient=True)
