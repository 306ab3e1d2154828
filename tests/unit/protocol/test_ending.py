"""When the run is over, for a node that did not see its last step."""

from __future__ import annotations

import pytest

from tests.seals import NamedSeal
from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.manifest import ModelSettings, RunManifest, StepSettings
from understudy.protocol.membership.ending import WORDS_NEEDED, Ending
from understudy.protocol.membership.seats import Seat, Status
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState

ME = PeerId("me")
STEPS = 10


def peer(stage: int) -> PeerId:
    return PeerId(f"peer-{stage}")


class Onlooker:
    """A spare, or the owner of S2, that knows the owners of all other stages, at step 5."""

    def __init__(self, blocks: int = 4, *, is_owner: bool = False, committed: int = 5) -> None:
        run = RunManifest(name="ending", model=ModelSettings(block_stages=blocks), step=StepSettings(total_steps=STEPS))
        self.membership = Membership(run.stage_count, run.timing)
        self.state = NodeState(NamedSeal(ME), run, self.membership, now=10.0, committed=committed)
        for stage in range(run.stage_count):
            self.say(stage, 5, ME if is_owner and stage == 2 else peer(stage))
        if is_owner:
            self.state.tenure, self.state.tenure_state = Tenure(2, 1, ME), "serving"
        self.ending = Ending(self.state)

    def say(self, stage: int, step: int, owner: PeerId | None = None, incarnation: int = 1) -> None:
        found = Seat(stage, owner or peer(stage), incarnation, "serving", step, Status.ALIVE, self.state.now)
        self.membership.titles.note_proven(found.tenure)
        self.membership.observe(found, is_direct=True)

    def kill(self, *stages: int) -> None:
        for stage in stages:
            self.membership.mark_dead(stage, 1, self.state.now)


@pytest.mark.parametrize("is_owner", [False, True])
def test_two_owners_are_believed_and_one_is_not(is_owner: bool) -> None:
    node = Onlooker(is_owner=is_owner)
    assert WORDS_NEEDED == 2
    node.ending.note(peer(0))
    node.ending.note(peer(0))
    assert not node.ending.is_credible, "however often it says so"
    node.ending.note(peer(3))
    assert node.ending.is_credible


def test_strangers_are_not_counted() -> None:
    node = Onlooker()
    for name in ("a", "b", "c", ME):
        node.ending.note(PeerId(name))
    assert not node.ending.is_credible


def test_an_owners_own_step_is_its_word() -> None:
    node = Onlooker()
    node.say(0, STEPS)
    node.say(3, STEPS - 1)
    assert not node.ending.is_credible
    node.ending.note(peer(0))
    assert not node.ending.is_credible, "it is the same peer's"
    node.say(3, STEPS)
    assert node.ending.is_credible


def test_an_owner_of_before_saw_the_end_too() -> None:
    node = Onlooker()
    node.say(0, 6, PeerId("next"), incarnation=2)
    node.ending.note(peer(0))
    node.ending.note(PeerId("next"))
    assert node.ending.is_credible


def test_our_own_word_is_none() -> None:
    node = Onlooker(is_owner=True)
    node.say(2, STEPS, ME)
    node.ending.note(ME)
    node.ending.note(peer(0))
    assert not node.ending.is_credible


@pytest.mark.parametrize(("committed", "is_credible"), [(STEPS - 2, False), (STEPS - 1, True), (STEPS, True)])
def test_who_is_at_the_last_step_itself_asks_nobody(committed: int, is_credible: bool) -> None:
    assert Onlooker(is_owner=True, committed=committed).ending.is_credible is is_credible


def test_a_spare_has_committed_nothing_whatever_it_read() -> None:
    assert not Onlooker(committed=STEPS).ending.is_credible


def test_where_nobody_else_is_left_one_is_enough() -> None:
    node = Onlooker()
    node.kill(1, 2, 3, 4)
    assert not node.ending.is_credible
    node.ending.note(peer(0))
    assert node.ending.is_credible
    again = Onlooker()
    again.kill(1, 2, 3)
    again.ending.note(peer(0))
    assert not again.ending.is_credible, "S4's owner would have to say it too"


def test_of_two_stages_the_other_is_enough() -> None:
    node = Onlooker(blocks=1)
    node.state.tenure, node.state.tenure_state = Tenure(1, 1, ME), "serving"
    assert not node.ending.is_credible
    node.ending.note(peer(0))
    assert node.ending.is_credible
