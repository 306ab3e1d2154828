"""Routes and who is whose neighbour on them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.protocol.ids import DRIVER_STAGE
from understudy.protocol.routing import following, neighbours, partners, preceding, route, routes

METHODS = st.sampled_from(["checkfree", "checkfree+"])
BLOCK_STAGES = st.integers(1, 12)


@pytest.mark.parametrize(
    ("method", "block_stages", "expected"),
    [
        ("checkfree", 1, [(1,)]),
        ("checkfree", 4, [(1, 2, 3, 4)]),
        ("checkfree+", 1, [(1,)]),
        ("checkfree+", 2, [(1, 2), (2, 1)]),
        ("checkfree+", 3, [(1, 2, 3), (2, 1, 3), (1, 2, 3), (1, 3, 2)]),
        ("checkfree+", 4, [(1, 2, 3, 4), (2, 1, 4, 3)]),
        ("checkfree+", 6, [(1, 2, 3, 4, 5, 6), (2, 1, 3, 4, 6, 5)]),
    ],
)
def test_routes(method: str, block_stages: int, expected: list[tuple[int, ...]]) -> None:
    assert list(routes(method, block_stages)) == expected


def test_odd_microbatches_are_swapped() -> None:
    assert [route("checkfree+", 4, index) for index in range(4)] == [(1, 2, 3, 4), (2, 1, 4, 3)] * 2
    assert {route("checkfree", 4, index) for index in range(4)} == {(1, 2, 3, 4)}


@given(METHODS, BLOCK_STAGES, st.integers(0, 100))
def test_a_microbatch_visits_every_block_stage_once(method: str, block_stages: int, index: int) -> None:
    assert sorted(route(method, block_stages, index)) == list(range(1, block_stages + 1))


@given(METHODS, BLOCK_STAGES, st.integers(0, 100))
def test_a_route_begins_and_ends_at_s0(method: str, block_stages: int, index: int) -> None:
    path, walked, stage = route(method, block_stages, index), [], DRIVER_STAGE
    while (stage := following(path, stage)) != DRIVER_STAGE:
        walked.append(stage)
    assert tuple(walked) == path


@given(METHODS, BLOCK_STAGES, st.integers(0, 100))
def test_gradients_travel_the_route_in_reverse(method: str, block_stages: int, index: int) -> None:
    path = route(method, block_stages, index)
    for stage in (DRIVER_STAGE, *path):
        assert preceding(path, following(path, stage)) == stage


@pytest.mark.parametrize(
    ("method", "stage", "expected"),
    [
        ("checkfree", 0, {1, 4}),
        ("checkfree", 1, {0, 2}),
        ("checkfree", 4, {3, 0}),
        ("checkfree+", 0, {1, 2, 3, 4}),
        ("checkfree+", 1, {0, 2, 4}),
        ("checkfree+", 2, {0, 1, 3}),
        ("checkfree+", 3, {0, 2, 4}),
        ("checkfree+", 4, {0, 1, 3}),
    ],
)
def test_neighbours(method: str, stage: int, expected: set[int]) -> None:
    assert neighbours(method, 4, stage) == expected


@given(METHODS, BLOCK_STAGES)
def test_being_neighbours_is_mutual(method: str, block_stages: int) -> None:
    for stage in range(block_stages + 1):
        for other in neighbours(method, block_stages, stage):
            assert other != stage
            assert stage in neighbours(method, block_stages, other)


@pytest.mark.parametrize(
    ("method", "block_stages", "expected"),
    [
        ("checkfree", 4, [set(), set(), set(), set()]),
        ("checkfree+", 1, [set()]),
        ("checkfree+", 2, [{2}, {1}]),
        ("checkfree+", 3, [{2}, {1, 3}, {2}]),
        ("checkfree+", 4, [{2}, {1}, {4}, {3}]),
        ("checkfree+", 6, [{2}, {1}, set(), set(), {6}, {5}]),
    ],
)
def test_partners_change_places(method: str, block_stages: int, expected: list[set[int]]) -> None:
    assert [partners(method, block_stages, stage) for stage in range(1, block_stages + 1)] == expected
