"""Whose words count: how far numbers rise, who was an owner, and how many have to say what is nobody's own."""

from __future__ import annotations

import pytest

from understudy.protocol.ids import INCARNATION_MAX, PeerId
from understudy.protocol.manifest import TimingSettings
from understudy.protocol.membership.authority import (
    APART_S,
    LEAP_MAX,
    OWNERS_REMEMBERED,
    RISE_MAX,
    FormerOwners,
    Incarnations,
    is_vouched,
)
from understudy.protocol.membership.seats import Observation, Seat, Status
from understudy.protocol.membership.view import Membership

TIMING = TimingSettings()
LIFETIME_S = TIMING.record_lifetime_s
OLD, NEW, OTHER = PeerId("old"), PeerId("new"), PeerId("other")
LOW = PeerId("a")


def seat(peer: PeerId = OLD, incarnation: int = 1, step: int = 5, now: float = 0.0, stage: int = 2) -> Seat:
    return Seat(stage, peer, incarnation, "serving", step, Status.ALIVE, now)


# --- numbers ---


def test_numbers_rise_a_little_at_any_time() -> None:
    numbers = Incarnations(TIMING)
    for incarnation in range(RISE_MAX, 10 * RISE_MAX, RISE_MAX):
        assert numbers.rise(2, incarnation, 0.0)
    assert numbers.known(2) == 9 * RISE_MAX


def test_numbers_leap_once_in_the_lifetime_of_a_record() -> None:
    numbers = Incarnations(TIMING)
    assert numbers.rise(2, 1000, 0.0)
    assert not numbers.rise(2, 2000, LIFETIME_S)
    assert numbers.known(2) == 1000
    assert numbers.rise(2, 2000, LIFETIME_S + 0.1)


def test_no_leap_reaches_the_last_number() -> None:
    numbers = Incarnations(TIMING)
    assert not numbers.rise(2, INCARNATION_MAX, 0.0)
    assert not numbers.rise(2, LEAP_MAX + 1, 0.0)
    assert numbers.known(2) == 0


def test_numbers_never_fall() -> None:
    numbers = Incarnations(TIMING)
    numbers.rise(2, 3, 0.0)
    assert numbers.rise(2, 1, 0.0)
    assert numbers.known(2) == 3


@pytest.mark.parametrize("is_direct", [True, False])
def test_an_incredible_tenure_takes_no_seat(is_direct: bool) -> None:
    view = Membership(5, TIMING)
    view.observe(seat(), is_direct=True)
    assert view.observe(seat(NEW, INCARNATION_MAX), is_direct=is_direct) is Observation.INCREDIBLE
    assert (view.serving_peer(2), view.known_incarnation(2)) == (OLD, 1)


# --- one incarnation ---


def test_under_one_incarnation_nobody_is_deposed() -> None:
    view = Membership(5, TIMING)
    view.observe(seat(), is_direct=True)
    assert view.observe(seat(LOW), is_direct=True) is Observation.OUTDATED
    assert view.serving_peer(2) == OLD


def test_before_the_first_step_the_lower_peer_id_wins() -> None:
    view = Membership(5, TIMING)
    view.observe(seat(step=0), is_direct=True)
    assert view.observe(seat(LOW, step=0), is_direct=True) is Observation.NEW_OWNER


@pytest.mark.parametrize(("peer", "observation"), [(LOW, Observation.NEW_OWNER), (OTHER, Observation.OUTDATED)])
def test_where_another_owner_came_back_there_may_be_two_sides(peer: PeerId, observation: Observation) -> None:
    """But not for the one that came back: it would be its own witness."""
    view = Membership(5, TIMING)
    view.observe(seat(PeerId("z")), is_direct=True)
    view.observe(seat(OTHER, stage=3), is_direct=True)
    view.mark_dead(3, 1, 1.0)
    assert view.observe(seat(OTHER, stage=3, now=2.0), is_direct=True) is Observation.REVIVED
    assert view.observe(seat(peer, now=3.0), is_direct=True) is observation


# --- owners of before ---


def test_an_owner_that_was_replaced_is_an_owner_still() -> None:
    owners = FormerOwners(TIMING)
    owners.note(seat())
    owners.note_replaced([seat()], 1.0)
    assert owners.is_owner(OLD)
    assert not owners.is_owner(NEW)


def test_so_many_are_remembered() -> None:
    owners = FormerOwners(TIMING)
    for number in range(OWNERS_REMEMBERED + 1):
        owners.note(seat(PeerId(f"p{number}"), number + 1))
    assert not owners.is_owner(PeerId("p0"))
    assert owners.is_owner(PeerId("p1"))


@pytest.mark.parametrize(
    ("is_direct", "heard", "is_back"),
    [(True, 2.0, True), (False, 2.0, False), (False, 1.0 + LIFETIME_S + 0.1, True)],
)
def test_who_was_replaced_is_back_when_it_speaks_or_stored_a_record_since(
    is_direct: bool, heard: float, is_back: bool
) -> None:
    owners = FormerOwners(TIMING)
    owners.note(seat())
    owners.note_replaced([seat()], 1.0)
    owners.note_outdated(seat(now=heard), is_direct=is_direct)
    assert owners.were_apart(heard, besides={NEW}) is is_back
    assert not owners.were_apart(heard, besides={OLD})
    assert not owners.were_apart(heard + APART_S + 0.1, besides={NEW})


def test_a_stranger_does_not_come_back() -> None:
    owners = FormerOwners(TIMING)
    owners.note_outdated(seat(NEW, now=9.0), is_direct=True)
    assert not owners.were_apart(9.0, besides=())


# --- vouching ---


@pytest.mark.parametrize(
    ("vouchers", "others", "is_enough"),
    [(0, 0, False), (1, 0, True), (1, 1, True), (1, 2, False), (2, 2, True), (2, 9, True)],
)
def test_two_have_to_say_it_or_all(vouchers: int, others: int, is_enough: bool) -> None:
    assert is_vouched(range(vouchers), others) is is_enough
