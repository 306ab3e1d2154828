"""Which tenure wins, who vouches for a hole, which spare takes it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.protocol.ids import PeerId
from understudy.protocol.membership.placement import (
    CLAIM_PATIENCE_S,
    FRONT_MAX,
    STEPS_APART_MAX,
    Standing,
    by_copies,
    choose_hole,
    dead_stretch,
    had_their_turn,
    is_in_front,
    jitter,
    nearest_survivors,
    rank_holes,
    rank_spares,
    supersedes,
    watched,
)
from understudy.protocol.wire.contact import Contact
from understudy.protocol.wire.records import SpareRecord

ME, OTHER, THIRD = PeerId("a"), PeerId("b"), PeerId("c")
TENURES = st.builds(
    Standing,
    st.integers(1, 3),
    st.sampled_from(["serving", "recovering", "left"]),
    st.sampled_from("abc").map(PeerId),
    st.integers(7, 7 + STEPS_APART_MAX),
)
LIVING = st.sets(st.integers(0, 6))


# --- which tenure wins ---


def test_tenures_from_best_to_worst() -> None:
    order = [
        Standing(1, "serving", THIRD, 9),
        Standing(3, "serving", OTHER, 7),
        Standing(2, "serving", ME, 7),
        Standing(2, "serving", OTHER, 8),
        Standing(2, "recovering", ME, 0),
        Standing(2, "recovering", OTHER, 0),
        Standing(2, "left", ME, 7),
        Standing(1, "serving", ME, 7),
    ]
    for better, worse in pairwise(order):
        assert supersedes(better, worse)
        assert not supersedes(worse, better)


@given(TENURES, TENURES, TENURES)
def test_winning_is_a_total_order_of_the_tenures_of_one_swarm(one: Standing, two: Standing, three: Standing) -> None:
    """Not of two sides of a split: there the side that got further wins, however often each recovered the stage."""
    assert supersedes(one, two) + supersedes(two, one) == (one[:3] != two[:3])
    if supersedes(one, two) and supersedes(two, three):
        assert supersedes(one, three)


# --- who vouches ---


@pytest.mark.parametrize(
    ("stage", "living", "expected"),
    [
        (2, {0, 1, 3, 4}, [1, 3]),
        (0, {1, 2, 3, 4}, [1, 4]),
        (1, {0, 2, 3, 4}, [0, 2]),
        (4, {0, 1, 2, 3}, [0, 3]),
        (2, {0, 1, 4}, [1, 4]),
        (2, {0}, [0]),
        (2, {2}, []),
        (2, set(), []),
    ],
)
def test_nearest_survivors(stage: int, living: set[int], expected: list[int]) -> None:
    assert nearest_survivors(stage, 5, living.__contains__) == expected


@pytest.mark.parametrize(
    ("stage", "living", "expected"),
    [
        (0, {0, 1, 2, 3, 4}, []),
        (1, {0, 1, 3, 4}, [2]),
        (3, {0, 1, 3, 4}, [2]),
        (4, {0, 1, 3, 4}, []),
        (1, {0, 1, 4}, [2, 3]),
        (4, {0, 1, 4}, [3, 2]),
        (0, {0}, [4, 3, 2, 1]),
    ],
)
def test_dead_stretch(stage: int, living: set[int], expected: list[int]) -> None:
    assert dead_stretch(stage, 5, living.__contains__) == expected


@given(st.integers(2, 7), LIVING)
def test_witnesses_and_stretches_are_two_views_of_one_thing(count: int, living: set[int]) -> None:
    """An owner is a witness of a hole if and only if the hole lies in its dead stretch."""
    living = {stage for stage in living if stage < count}
    for hole in set(range(count)) - living:
        witnesses = set(nearest_survivors(hole, count, living.__contains__))
        assert witnesses == {owner for owner in living if hole in dead_stretch(owner, count, living.__contains__)}


@given(st.integers(2, 7), st.integers(0, 6), LIVING)
def test_an_owner_knows_its_route_its_holes_and_both_survivors(count: int, stage: int, living: set[int]) -> None:
    stage %= count
    known = watched(stage, count, {(stage + 1) % count}, living.__contains__)
    assert {0, stage, (stage + 1) % count} <= known
    assert set(dead_stretch(stage, count, living.__contains__)) <= known
    assert set(nearest_survivors(stage, count, living.__contains__)) <= known


def test_what_an_owner_must_know_does_not_grow_with_the_swarm() -> None:
    assert watched(500, 1000, {499, 501}, lambda stage: True) == {0, 499, 500, 501}


# --- who takes what ---


def test_spares_by_capacity_then_by_peer_id() -> None:
    records = [SpareRecord("c", 2.0), SpareRecord("b", 1.0), SpareRecord("a", 1.0), SpareRecord("d", 9.0, "left")]
    assert rank_spares(records) == ["c", "a", "b"]


def test_a_spare_that_only_a_relay_gets_to_comes_last() -> None:
    relayed = SpareRecord("a", 9.0, contact=Contact(reachability="relayed"))
    punchable = SpareRecord("b", 1.0, contact=Contact(reachability="punchable"))
    assert rank_spares([relayed, SpareRecord("c", 2.0), punchable]) == ["c", "b", "a"]


def test_holes_by_need() -> None:
    assert rank_holes([3, 2], [0, 1]) == [0, 2, 3, 1]
    assert rank_holes([3, 0], [1]) == [0, 3, 1]
    assert rank_holes([2], [2]) == [2]


@pytest.mark.parametrize(("spare", "hole"), [(ME, 2), (OTHER, 3), (THIRD, None)])
def test_the_kth_spare_takes_the_kth_hole(spare: PeerId, hole: int | None) -> None:
    assert choose_hole(spare, [ME, OTHER, THIRD], [2, 3], {2: 0.0, 3: 0.0}) == hole


@pytest.mark.parametrize(("patiences", "hole"), [(0.0, None), (0.99, None), (1.0, 2), (9.0, 2)])
def test_patience_moves_a_spare_up(patiences: float, hole: int | None) -> None:
    waited_s = patiences * CLAIM_PATIENCE_S
    assert choose_hole(THIRD, [ME, OTHER, THIRD], [2, 3], {2: waited_s, 3: waited_s}) == hole


def test_a_hole_that_nobody_can_fill_draws_no_spare_from_its_own() -> None:
    assert choose_hole(OTHER, [ME, OTHER, THIRD], [0, 3], {0: 1000.0, 3: 0.0}) == 3
    assert choose_hole(THIRD, [ME, OTHER, THIRD], [3], {3: 0.0}) is None, "each hole has a clock of its own"


@pytest.mark.parametrize(("patiences", "claims"), [(0.0, 1), (1.0, 4), (2.0, 16), (3.0, 64), (1000.0, 200)])
def test_any_number_of_spares_that_do_nothing_cost_seconds(patiences: float, claims: int) -> None:
    ranking = [PeerId(f"{number:03}") for number in range(200)]
    waited_s = {2: patiences * CLAIM_PATIENCE_S}
    assert [choose_hole(spare, ranking, [2], waited_s) for spare in ranking].count(2) == claims


@pytest.mark.parametrize(("patiences", "over"), [(0.0, 0), (0.99, 0), (1.0, 1), (2.0, 4), (3.0, 16)])
def test_who_had_its_turn_for_long_enough_has_lost_it(patiences: float, over: int) -> None:
    ranking = [PeerId(f"{number:03}") for number in range(200)]
    waited_s = {2: patiences * CLAIM_PATIENCE_S, 3: 0.0}
    assert had_their_turn(ranking, [2], waited_s) == ranking[:over]
    assert had_their_turn(ranking, [3, 2], waited_s) == ranking[: over + 1 if over else 0]
    assert had_their_turn(ranking, [], {}) == []


def test_who_is_no_spare_takes_nothing() -> None:
    assert choose_hole(ME, [OTHER], [2, 3], {2: 100.0, 3: 100.0}) is None


def test_without_a_hole_there_is_nothing_to_take() -> None:
    assert choose_hole(ME, [ME], [], {}) is None


def spares(count: int, capacity: float = 2.0, *, can_drive: bool = True) -> list[SpareRecord]:
    return [SpareRecord(f"spare-{number:03}", capacity, can_drive=can_drive) for number in range(count)]


def test_the_first_wait_in_front_and_the_others_in_reserve() -> None:
    everybody = spares(FRONT_MAX + 5)
    assert [is_in_front(me, everybody) for me in everybody] == [True] * FRONT_MAX + [False] * 5
    assert is_in_front(SpareRecord("zz", 3.0), everybody), "the more capable comes first"
    assert not is_in_front(SpareRecord("zz", 1.0), everybody)
    assert is_in_front(SpareRecord("zz", 1.0), everybody[: FRONT_MAX - 1])


def test_a_spare_counts_as_what_it_is_now_and_whoever_left_does_not_count() -> None:
    me = SpareRecord("spare-000", 2.0)
    assert is_in_front(me, [SpareRecord("spare-000", 0.1), *spares(FRONT_MAX)[1:], SpareRecord("a", 1.0)])
    gone = [SpareRecord(spare.peer, 2.0, "left") for spare in spares(FRONT_MAX)]
    assert is_in_front(SpareRecord("zz", 1.0), gone)


def test_those_who_cannot_drive_keep_nobody_who_can_in_reserve() -> None:
    others = spares(FRONT_MAX + 5, can_drive=False)
    assert is_in_front(SpareRecord("zz", 1.0), others)
    assert not is_in_front(SpareRecord("zz", 1.0, can_drive=False), others)
    assert not is_in_front(SpareRecord("zz", 1.0), spares(FRONT_MAX))


def test_those_without_room_for_a_block_stage_keep_nobody_who_has_it_in_reserve() -> None:
    others = [SpareRecord(spare.peer, 2.0, can_hold_blocks=False) for spare in spares(FRONT_MAX + 5)]
    assert is_in_front(SpareRecord("zz", 1.0, can_drive=False), others)
    assert not is_in_front(SpareRecord("zz", 1.0, can_hold_blocks=False), others)


def test_peers_are_spread_evenly_and_always_alike() -> None:
    places = [jitter(PeerId(f"peer-{number}")) for number in range(1000)]
    assert all(0 <= place < 1 for place in places)
    assert all(200 < sum(int(place * 4) == quarter for place in places) < 300 for quarter in range(4))
    assert jitter(PeerId("peer-0")) == places[0]


# --- who holds copies ---


@pytest.mark.parametrize(
    ("holes", "holding", "order"),
    [
        ([2], {}, "abc"),
        ([2], {"b": (2,)}, "bac"),
        ([2], {"b": (2,), "c": (2,)}, "bac"),
        ([2, 3], {"c": (3,)}, "acb"),
        ([2, 3], {"a": (3,)}, "bac"),
        ([2, 3], {"a": (2, 3), "b": (3,)}, "abc"),
        ([2, 3, 4, 5], {"c": (2,)}, "cab"),
        ([], {"c": (2,)}, "abc"),
        ([2, 3, 4, 5], {"a": (5,)}, "abc"),
    ],
)
def test_who_holds_a_copy_comes_where_its_hole_is(holes: list[int], holding: dict[str, Any], order: str) -> None:
    known = {PeerId(peer): stages for peer, stages in holding.items()}
    assert by_copies([PeerId(peer) for peer in "abc"], holes, known) == list(order)


@given(
    st.permutations("abc"),
    st.lists(st.integers(0, 5), unique=True),
    st.dictionaries(st.sampled_from("abc"), st.sets(st.integers(0, 5))),
)
def test_nobody_is_lost_by_its_copies(ranking: list[str], holes: list[int], holding: dict[str, set[int]]) -> None:
    """Where there are more holes than spares, too."""
    known = {PeerId(peer): stages for peer, stages in holding.items()}
    for count in range(len(ranking) + 1):
        some = [PeerId(peer) for peer in ranking[:count]]
        assert sorted(by_copies(some, holes, known)) == sorted(some)
