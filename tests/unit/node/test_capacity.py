"""What spares are ranked by: the machine, not the moment."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable

import pytest
import torch

from understudy.node.compute import capacity as module
from understudy.node.compute.capacity import MEASURED_S, ROUNDS_MIN, SIZE_ON_CPU, measure_capacity

CORE_S = 0.0003
"""What a product takes when nobody disturbs it."""


class Clock:
    """Time that passes by products only."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.now, self.rounds = 0.0, 0
        self._seconds = seconds

    def perf_counter(self) -> float:
        return self.now

    def multiply(self, matrix: torch.Tensor) -> None:
        assert torch.get_num_threads() == 1, "others would be waited for"
        self.now += self._seconds()
        self.rounds += 1


def measure(seconds: Callable[[], float], monkeypatch: pytest.MonkeyPatch) -> tuple[float, Clock]:
    clock = Clock(seconds)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "_multiply", clock.multiply)
    return measure_capacity("cpu", 1), clock


@pytest.mark.parametrize("seed", range(5))
def test_a_machine_that_is_disturbed_most_of_the_time_measures_like_an_idle_one(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.7, 70.8, 0.7 and 60.4 were measured on one machine."""
    draw = random.Random(seed)
    idle, _ = measure(lambda: CORE_S, monkeypatch)
    busy, clock = measure(lambda: CORE_S * draw.choice([1.0, 1.05, 5.0, 20.0, 100.0]), monkeypatch)
    assert idle == pytest.approx(SIZE_ON_CPU**3 / CORE_S / 1e9, rel=0.01)
    assert busy == pytest.approx(idle, rel=0.2)
    assert clock.now < 1.0


def test_the_first_rounds_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    cold = itertools.chain([CORE_S / 100] * module.WARM_UP_ROUNDS, itertools.repeat(CORE_S))
    capacity, _ = measure(lambda: next(cold), monkeypatch)
    assert capacity == pytest.approx(SIZE_ON_CPU**3 / CORE_S / 1e9, rel=0.01)


def test_a_slow_machine_is_measured_by_a_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    _, clock = measure(lambda: 2 * MEASURED_S, monkeypatch)
    assert clock.rounds == module.WARM_UP_ROUNDS + ROUNDS_MIN


def test_the_threads_that_the_node_may_use_count_as_far_as_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_best_rate", lambda device, size: 10.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert [measure_capacity("cpu", threads) for threads in (1, 3, 4, 64)] == [10.0, 30.0, 40.0, 40.0]


def test_a_real_measurement_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    assert measure_capacity("cpu", 1) > 0
    assert torch.get_num_threads() == before
