"""How large pieces in the background are, and how long the line is left alone after each."""

from __future__ import annotations

import pytest

from understudy.node.links.pacing import (
    PAUSE_S_MAX,
    PIECE_BYTES_FIRST,
    PIECE_BYTES_MAX,
    PIECE_BYTES_MIN,
    Pace,
    check_piece,
    next_piece_bytes,
    pause_s,
)
from understudy.protocol.errors import RemoteProtocolError


@pytest.mark.parametrize(
    ("piece_bytes", "line_s", "expected"),
    [
        (100_000, 0.1, 100_000),
        (100_000, 0.2, 50_000),
        (100_000, 0.08, 125_000),
        (100_000, 0.01, 200_000),
        (100_000, 0.0, 200_000),
        (100_000, -0.3, 200_000),
        (100_000, 60.0, PIECE_BYTES_MIN),
        (PIECE_BYTES_MIN, 60.0, PIECE_BYTES_MIN),
        (3 << 20, 0.001, PIECE_BYTES_MAX),
        (PIECE_BYTES_MAX, 0.001, PIECE_BYTES_MAX),
    ],
)
def test_a_piece_grows_or_shrinks_to_a_tenth_of_a_second(piece_bytes: int, line_s: float, expected: int) -> None:
    assert next_piece_bytes(piece_bytes, line_s) == expected


@pytest.mark.parametrize(("piece_s", "expected"), [(0.0, 0.0), (0.1, 0.4), (0.5, 2.0), (1.0, 4.0), (60.0, 4.0)])
def test_a_pause_is_four_times_the_piece_within_a_bound(piece_s: float, expected: float) -> None:
    assert pause_s(piece_s, 1) == pytest.approx(expected)
    assert pause_s(piece_s, 1) <= PAUSE_S_MAX


def test_no_piece_is_too_small_to_be_worked_for() -> None:
    check_piece(PIECE_BYTES_MIN)
    for piece_bytes in (1, PIECE_BYTES_MIN - 1):
        with pytest.raises(RemoteProtocolError, match="in pieces of"):
            check_piece(piece_bytes)


def test_the_way_there_and_back_makes_no_piece_smaller_but_pauses_longer() -> None:
    pace = Pace(1)
    pace.asked(10.0)
    assert pace.left == PIECE_BYTES_FIRST
    pace.answered(10.3)
    pace.came(PIECE_BYTES_FIRST // 2, 10.35)
    assert pace.left == PIECE_BYTES_FIRST // 2
    pace.came(PIECE_BYTES_FIRST // 2, 10.4)
    assert pace.rest() == pytest.approx(4 * 0.4)
    assert pace.piece_bytes == pytest.approx(PIECE_BYTES_FIRST, abs=1)
    pace.asked(12.0)
    pace.came(pace.left, 12.5)
    assert pace.rest() == pytest.approx(4 * 0.5)
    assert pace.piece_bytes == pytest.approx(PIECE_BYTES_FIRST / 2, abs=1)


@pytest.mark.parametrize("bytes_per_s", [20_000, 400_000, 2_500_000, 100_000_000])
@pytest.mark.parametrize("round_trip_s", [0.0, 0.1])
def test_on_any_line_a_fifth_of_it_is_used_at_most(bytes_per_s: int, round_trip_s: float) -> None:
    pace, now, came = Pace(1), 0.0, 0
    pace.asked(now)
    pace.answered(now + round_trip_s)
    for _ in range(200):
        now += round_trip_s + pace.left / bytes_per_s
        came += pace.left
        pace.came(pace.left, now)
        now += pace.rest()
        pace.asked(now)
    assert came / now <= bytes_per_s / 5 * 1.01
    expected = min(max(bytes_per_s // 10, PIECE_BYTES_MIN), PIECE_BYTES_MAX)
    assert pace.piece_bytes == pytest.approx(expected, rel=0.01)


def test_transfers_that_share_a_line_take_no_more_of_it_than_one() -> None:
    for share in (1, 2, 6):
        assert share * 0.1 / (0.1 + pause_s(0.1, share)) == pytest.approx(0.2)
