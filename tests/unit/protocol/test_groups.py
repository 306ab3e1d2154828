"""What is asked of a stage is asked of its group: every member counts, and the first stands for it."""

from __future__ import annotations

import pytest

from understudy.protocol.ids import PeerId
from understudy.protocol.membership.groups import Group, Groups
from understudy.protocol.membership.seats import Seat, Status

ANN, BEA = PeerId("ann"), PeerId("bea")


def seat(peer: PeerId, status: Status = Status.ALIVE, step: int = 5, state: str = "serving") -> Seat:
    return Seat(2, peer, 3, state, step, status, 0.0)  # type: ignore[arg-type]


def groups(*members: Seat) -> Groups:
    view = Groups(5)
    view.groups[2] = Group(list(members))
    return view


def test_a_stage_without_a_group_has_nobody() -> None:
    view = Groups(5)
    assert (view.seat(2), view.serving_peers(2), view.is_present(2), view.known_incarnation(2)) == (None, [], False, 0)
    assert view.missing([2]) == [2]


def test_a_group_of_one_is_its_member() -> None:
    ann = seat(ANN)
    view = groups(ann)
    assert (view.seat(2), view.serving_peer(2), view.known_incarnation(2)) == (ann, ANN, 3)
    assert view.groups[2].standing == ann.standing


def test_a_group_serves_while_one_member_does() -> None:
    view = groups(seat(ANN, Status.DEAD), seat(BEA))
    assert view.is_serving(2)
    assert (view.serving_peers(2), view.serving_peer(2)) == ([BEA], BEA)
    assert [found.peer for found in view.seats()] == [ANN, BEA]
    view.groups[2].members[1].status = Status.LEFT
    assert not view.is_present(2)
    assert view.missing([2]) == [2]


def test_a_group_is_where_its_foremost_member_is() -> None:
    view = groups(seat(ANN, step=5), seat(BEA, step=6))
    assert view.beyond(1, 6) == ([2], 1)
    assert (view.groups[2].step, view.groups[2].standing.step) == (6, 6)


@pytest.mark.parametrize(
    ("peer", "incarnation", "is_member"), [(BEA, 3, True), (BEA, 2, False), (PeerId("x"), 3, False)]
)
def test_a_member_is_of_this_very_configuration(peer: PeerId, incarnation: int, is_member: bool) -> None:
    assert (groups(seat(ANN), seat(BEA)).groups[2].member(peer, incarnation) is not None) is is_member


def test_a_claim_is_a_group_in_which_nobody_serves_yet() -> None:
    assert Group([seat(ANN, state="recovering")]).is_claim
    assert not Group([seat(ANN), seat(BEA, state="recovering")]).is_claim
