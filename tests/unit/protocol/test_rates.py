"""Budgets that fill with time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.protocol.wire import rates
from understudy.protocol.wire.rates import LINES_BURST, LINES_IN_ALL_BURST, Budgets, Quiet, TokenBucket


def test_a_burst_passes_at_once_and_the_rest_at_its_rate() -> None:
    bucket = TokenBucket(rate_per_s=10.0, burst=3)
    assert [bucket.take(0.0) for _ in range(5)] == pytest.approx([0.0, 0.0, 0.0, 0.1, 0.2])
    assert bucket.take(0.3) == pytest.approx(0.0)
    assert bucket.take(0.3) == pytest.approx(0.1)


def test_after_a_rest_it_is_full_and_no_more_than_that() -> None:
    bucket = TokenBucket(rate_per_s=10.0, burst=3)
    for _ in range(3):
        bucket.take(0.0)
    assert not bucket.is_full(0.2)
    assert bucket.is_full(1000.0)
    assert [bucket.may_take(1000.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.may_take(1000.11)


@given(st.lists(st.floats(0.0, 10.0), max_size=200))
def test_nobody_gets_more_than_rate_and_burst(pauses: list[float]) -> None:
    bucket, now, passed = TokenBucket(rate_per_s=5.0, burst=4), 0.0, 0
    for pause in pauses:
        now += pause
        passed += bucket.may_take(now)
        assert passed <= 4 + 5.0 * now + 1e-6


def test_each_name_has_its_own_budget() -> None:
    budgets = Budgets(rate_per_s=1.0, burst=1)
    assert budgets.of("anne", 0.0).may_take(0.0)
    assert not budgets.of("anne", 0.0).may_take(0.0)
    assert budgets.of("bill", 0.0).may_take(0.0)


def test_many_names_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "NAMES_MAX", 2)
    budgets = Budgets(rate_per_s=1.0, burst=1)
    assert [budgets.of(name, 0.0).may_take(0.0) for name in "abcd"] == [True, True, True, False]
    assert len(budgets._buckets) == 2
    assert budgets.of("d", 5.0).may_take(5.0)
    assert list(budgets._buckets) == ["d"]


def test_lines_of_one_kind_about_one_peer_are_few_and_counted() -> None:
    quiet = Quiet()
    written = [quiet.admit("anne", "misbehaved", second / 400) for second in range(4000)]
    assert written.count(None) >= 4000 - LINES_BURST - 2
    assert written[:LINES_BURST] == [0] * LINES_BURST
    assert sum(count for count in written if count) + len([w for w in written if w is not None]) <= 4000
    assert quiet.admit("anne", "other", 10.0) is not None
    assert quiet.admit("bill", "misbehaved", 10.0) == 0


def test_many_peers_fill_no_disk_either() -> None:
    quiet = Quiet()
    written = [quiet.admit(f"peer {number}", "misbehaved", 0.0) for number in range(10_000)]
    assert len([w for w in written if w is not None]) == LINES_IN_ALL_BURST
