"""The driver finds how many microbatches in flight are fastest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from understudy.protocol.manifest import ModelSettings, RunManifest, StepSettings
from understudy.protocol.pipeline.window import SETTLED_STEPS, TRIAL_STEPS, Window


def window(microbatches: int = 16, block_stages: int = 7, fixed: int = 0) -> Window:
    step = StepSettings(microbatches=microbatches, window=fixed)
    return Window(RunManifest(name="w", model=ModelSettings(block_stages=block_stages), step=step))


def settle(tried: Window, seconds: Callable[[int], float]) -> list[int]:
    """Steps until the search ends; the sizes that were tried."""
    sizes = []
    for _ in range(20 * TRIAL_STEPS):
        if tried.size not in sizes:
            sizes.append(tried.size)
        if tried.note(seconds(tried.size)):
            return sizes
    raise AssertionError("the search does not end")


def test_it_begins_with_as_many_as_there_are_stages_or_nearly() -> None:
    assert window().size == 8
    assert window(block_stages=4).size == 4
    assert window(microbatches=3).size == 3
    assert window(microbatches=1).size == 1


@pytest.mark.parametrize("fastest", [2, 3, 4, 6, 8, 12, 16])
def test_it_finds_the_fastest(fastest: int) -> None:
    tried = window()
    settle(tried, lambda size: 1 + abs(size - fastest))
    assert tried.size == fastest


def test_a_long_line_gets_many_and_shared_cores_get_few() -> None:
    """Steps that are bound by latency, and steps to which every microbatch in flight adds."""
    far, shared = window(), window()
    settle(far, lambda size: 160 / size)
    settle(shared, lambda size: 5 + 0.5 * size)
    assert (far.size, shared.size) == (16, 2)


def test_a_line_that_carries_more_than_twice_the_stages_gets_them() -> None:
    """`narrow` at 200 ms and 100 Mbit/s: 1.15 s for a microbatch's way, 0.088 s for each on the line."""
    tried = window(microbatches=48, block_stages=3)
    settle(tried, lambda size: 48 * max(0.088, 1.15 / size) + 0.5)
    assert tried.size == 16


def test_more_than_usual_must_be_worth_its_memory() -> None:
    """Without a long way nobody goes beyond twice the stages, whatever some steps' luck says."""
    tried = window(microbatches=48, block_stages=3)
    assert tried.size == 4
    sizes = settle(tried, lambda size: max(1.0, 8 / size) * (0.96 if size > 8 else 1.0))
    assert (tried.size, max(sizes)) == (8, 12)


def test_of_equally_fast_sizes_the_smallest_is_kept() -> None:
    tried = window()
    settle(tried, lambda size: max(1.0, 4 / size) + 0.001 * (16 - size))
    assert tried.size == 4


def test_one_slow_step_does_not_decide() -> None:
    tried = window()
    steps = iter(range(1000))
    settle(tried, lambda size: 50.0 if next(steps) % TRIAL_STEPS == 1 else 1 + abs(size - 6))
    assert tried.size == 6


def test_once_found_it_is_kept_and_searched_again_later() -> None:
    tried = window()
    settle(tried, lambda size: 1 + abs(size - 6))
    for _ in range(SETTLED_STEPS):
        assert tried.size == 6
        assert not tried.note(99.0)
    assert 12 in settle(tried, lambda size: 1 + abs(size - 12))
    assert tried.size == 12


def test_a_window_that_was_set_stays() -> None:
    tried = window(fixed=5)
    assert [(tried.size, tried.note(1.0)) for _ in range(3 * TRIAL_STEPS)] == [(5, False)] * 3 * TRIAL_STEPS
    assert window(fixed=50).size == 16
