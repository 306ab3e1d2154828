"""How much an accuser's word is worth to somebody who hears the accused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.protocol.test_core import OTHER, Node, owner, peer
from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.membership.credit import BELIEVED_S, CREDIT_S, Credit
from understudy.protocol.recovery.quorum import majority_of
from understudy.protocol.wire.messages import Heartbeat, Lost

ACCUSER = PeerId("accuser")
ONE, SECOND, ANOTHER = Tenure(2, 1, PeerId("old")), Tenure(2, 2, PeerId("new")), Tenure(3, 1, PeerId("another"))


def test_one_accusation_is_believed_for_a_while() -> None:
    credit = Credit(5)
    assert credit.is_good(ACCUSER, ONE, 10.0)
    assert credit.is_good(ACCUSER, ONE, 10.0 + BELIEVED_S)
    assert not credit.is_good(ACCUSER, ONE, 10.1 + BELIEVED_S)


@pytest.mark.parametrize("other", [SECOND, ANOTHER])
def test_a_second_is_not_be_it_of_a_successor(other: Tenure) -> None:
    credit = Credit(5)
    assert credit.is_good(ACCUSER, ONE, 10.0)
    assert not credit.is_good(ACCUSER, other, 10.0)
    assert not credit.is_good(ACCUSER, other, 10.0 + CREDIT_S)
    assert credit.is_good(ACCUSER, other, 10.1 + CREDIT_S)
    assert not credit.is_good(ACCUSER, ONE, 10.2 + CREDIT_S)


def test_each_accuser_has_credit_of_its_own() -> None:
    credit = Credit(5)
    assert credit.is_good(ACCUSER, ONE, 10.0)
    assert credit.is_good(PeerId("another accuser"), ANOTHER, 10.0)


def test_who_accuses_more_than_may_be_lost_is_told_by_what_it_says() -> None:
    credit = Credit(5)
    assert credit.overreach(ACCUSER, (1, 1), 10.0, 12.0) == []
    assert credit.overreach(ACCUSER, (3, 1), 10.0, 12.0) == []
    assert credit.overreach(ACCUSER, (4, 2), 11.0, 13.0) == [(1, 1), (3, 1), (4, 2)]
    assert credit.overreach(ACCUSER, (4, 2), 12.5, 13.0) == []
    assert Credit(7).overreach(ACCUSER, (4, 2), 12.5, 13.0) == []


@pytest.mark.parametrize(("stages", "lost"), [(2, 1), (3, 1), (4, 1), (5, 2), (6, 2), (7, 3)])
def test_as_many_may_be_lost_as_leave_a_majority(stages: int, lost: int) -> None:
    credit = Credit(stages)
    said = [credit.overreach(ACCUSER, (stage, 1), 10.0, 12.0) for stage in range(lost + 1)]
    assert [bool(found) for found in said] == [False] * lost + [True]
    assert stages - lost >= majority_of(stages)


# --- one who hears them all ---


def hearing() -> Node:
    """The owner of S2, to whom all others have just spoken."""
    node = owner()
    for stage in (0, 1, 3, 4):
        node.hear(peer(stage), Heartbeat(stage, 1, "serving", 5))
    return node


def is_there(node: Node, stage: int) -> bool:
    return node.core.state.membership.is_present(stage)


def accused_by_one(node: Node, *stages: int) -> list[bool]:
    """Which of them are there after S1's owner called them all dead."""
    for stage in stages:
        node.hear(peer(1), Lost(stage, 1, peer(stage)))
    return [is_there(node, stage) for stage in stages]


def test_who_accuses_two_whom_we_hear_brings_one_of_them_down() -> None:
    assert accused_by_one(hearing(), 3, 0) == [False, True]


def test_of_those_whom_we_do_not_hear_it_is_believed() -> None:
    assert accused_by_one(owner(), 3, 0) == [False, False]


@pytest.mark.parametrize("node", [hearing, owner])
def test_who_accuses_more_than_may_be_lost_takes_nobody_with_it(node: Callable[[], Node]) -> None:
    assert accused_by_one(node(), 3, 0, 4) == [True, True, True]


def test_the_driver_is_believed_of_whomever_it_accuses() -> None:
    """It knows who keeps the work."""
    node = hearing()
    for stage in (1, 3):
        node.hear(peer(0), Lost(stage, 1, peer(stage)))
    assert [is_there(node, stage) for stage in (1, 3)] == [False, False]


@pytest.mark.parametrize(("named", "is_believed"), [(OTHER, False), (peer(3), True), (None, True)])
def test_who_means_another_owner_of_the_same_incarnation_says_nothing_of_ours(
    named: PeerId | None, is_believed: bool
) -> None:
    """After a split there may be two."""
    node = hearing()
    node.hear(peer(1), Lost(3, 1, named))
    assert is_there(node, 3) is not is_believed
