"""Updates that are skipped: said every time, and not endured for ever."""

from __future__ import annotations

import pytest

from tests.seals import NamedSeal
from understudy.protocol.actions import Emit
from understudy.protocol.ids import Microbatch, PeerId, Tenure
from understudy.protocol.jobs import Applied
from understudy.protocol.manifest import RunManifest
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.numbers import Spoilt
from understudy.protocol.pipeline.updates import OWN_SKIPS_MAX, SKIPS_MAX, Updates

RUN = RunManifest(name="updated")


@pytest.fixture
def state() -> NodeState:
    found = NodeState(NamedSeal(PeerId("me")), RUN, Membership(RUN.stage_count, RUN.timing))
    found.tenure = Tenure(2, 1, found.me)
    return found


def test_a_skipped_update_is_said_and_clears_the_norm(state: NodeState) -> None:
    updates = Updates(state)
    updates.applied(7, Applied(4.0))
    assert (state.committed, state.squared_gradient_norm, state.actions) == (7, 4.0, [])
    updates.applied(8, Applied(is_skipped=True))
    assert (state.committed, state.squared_gradient_norm) == (8, None)
    (said,) = state.actions
    assert isinstance(said, Emit)
    assert said.name == "update.skipped"
    assert {"step": 8, "stage": 2, "in_a_row": 1, "is_own": False}.items() <= said.fields.items()


SENT = Spoilt(Microbatch(8, 3), False, Tenure(1, 4, PeerId("them")))


@pytest.mark.parametrize("is_skipped", [True, False])
def test_who_sent_what_is_not_finite_is_named(state: NodeState, is_skipped: bool) -> None:
    norm = None if is_skipped else 2.0
    Updates(state).applied(8, Applied(norm, is_skipped=is_skipped, left_out=2), SENT)
    (said,) = state.actions
    assert isinstance(said, Emit)
    assert said.name == ("update.skipped" if is_skipped else "update.reduced")
    assert {"step": 8, "left_out": 2, "sender": "them", "sender_stage": 1}.items() <= said.fields.items()
    assert state.squared_gradient_norm == norm


def test_a_stage_that_spoils_some_of_every_step_ends_as_well(state: NodeState) -> None:
    updates = Updates(state)
    for step in range(1, OWN_SKIPS_MAX + 1):
        assert state.failure is None
        updates.applied(step, Applied(2.0, is_own=True, left_out=1))
    assert state.failure is not None


def test_an_update_of_nothing_leaves_the_norm(state: NodeState) -> None:
    updates = Updates(state)
    updates.applied(7, Applied(4.0))
    updates.applied(8, Applied())
    assert state.squared_gradient_norm == 4.0


@pytest.mark.parametrize(("is_own", "limit"), [(True, OWN_SKIPS_MAX), (False, SKIPS_MAX)])
def test_many_in_a_row_are_a_reason_to_end(state: NodeState, is_own: bool, limit: int) -> None:
    updates = Updates(state)
    for step in range(1, limit):
        updates.applied(step, Applied(is_skipped=True, is_own=is_own))
    assert state.failure is None
    updates.applied(limit, Applied(is_skipped=True, is_own=is_own))
    assert state.failure is not None
    assert f"{limit} updates of S2 in a row were not finite" in state.failure


def test_one_good_update_among_them_is_none(state: NodeState) -> None:
    updates = Updates(state)
    for step in range(1, 3 * SKIPS_MAX):
        is_skipped = step % OWN_SKIPS_MAX != 0
        updates.applied(step, Applied(is_skipped=is_skipped, is_own=is_skipped))
    assert state.failure is None
