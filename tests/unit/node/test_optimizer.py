"""The stage's optimizer: mean, norm before clipping, warm-up, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from understudy.node.compute.optimizer import StageOptimizer, squared_l2_norm
from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.manifest import OptimizerSettings

torch.set_num_threads(1)

PLAIN = OptimizerSettings(learning_rate=0.1, warmup_steps=0, clip_norm=1e9)


def parameters(*rows: list[float]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(row)) for row in rows]


def give(targets: list[nn.Parameter], *gradients: list[float] | None) -> None:
    for target, gradient in zip(targets, gradients, strict=True):
        target.grad = None if gradient is None else torch.tensor(gradient)


def reference_adamw(value: float, gradients: list[float], settings: OptimizerSettings, rates: list[float]) -> float:
    """AdamW (arXiv 1711.05101) on one number, written out."""
    first = second = 0.0
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        first = settings.beta1 * first + (1 - settings.beta1) * gradient
        second = settings.beta2 * second + (1 - settings.beta2) * gradient**2
        unbiased = second / (1 - settings.beta2**t)
        value -= rate * settings.weight_decay * value
        value -= rate * first / (1 - settings.beta1**t) / (math.sqrt(unbiased) + settings.epsilon)
    return value


@pytest.mark.parametrize(
    ("warmup_steps", "scale", "step", "expected"),
    [
        (10, 1.0, 1, 0.01),
        (10, 1.0, 5, 0.05),
        (10, 1.0, 10, 0.1),
        (10, 1.0, 11, 0.1),
        (10, 1.1, 5, 0.055),
        (10, 1.1, 30, 0.11),
        (0, 1.0, 1, 0.1),
        (1, 1.0, 1, 0.1),
    ],
)
def test_the_rate_warms_up_and_stays(warmup_steps: int, scale: float, step: int, expected: float) -> None:
    settings = OptimizerSettings(learning_rate=0.1, warmup_steps=warmup_steps)
    optimizer = StageOptimizer(parameters([1.0]), settings, scale)
    for earlier in range(1, step):
        optimizer.apply(earlier, 1)
    assert optimizer.learning_rate(step) == pytest.approx(expected)


def test_a_fresh_optimizer_warms_up_again_in_the_middle_of_a_run() -> None:
    optimizer = StageOptimizer(parameters([1.0]), OptimizerSettings(learning_rate=0.1, warmup_steps=10), 1.1)
    rates = []
    for step in range(5000, 5012):
        rates.append(optimizer.learning_rate(step))
        optimizer.apply(step, 1)
    assert rates == pytest.approx([0.011 * min(age, 10) for age in range(1, 13)])


@pytest.mark.parametrize("step", [0, -1])
def test_steps_count_from_one(step: int) -> None:
    with pytest.raises(LocalProtocolError, match="steps count from 1"):
        StageOptimizer(parameters([1.0]), PLAIN).learning_rate(step)


def test_the_update_is_adamw_of_the_mean_at_the_warmed_up_rate() -> None:
    settings = OptimizerSettings(learning_rate=0.1, warmup_steps=4, weight_decay=0.3, clip_norm=1e9)
    (weight,) = owned = parameters([2.0])
    optimizer = StageOptimizer(owned, settings, learning_rate_scale=1.1)
    # The sums of different numbers of microbatches; epsilon 1e-8 keeps AdamW blind to a constant factor, so vary it.
    for step, (total, counted) in enumerate([(3.0, 3), (8.0, 2), (-5.0, 1)], start=1):
        give(owned, [total])
        optimizer.apply(step, counted)
    expected = reference_adamw(2.0, [1.0, 4.0, -5.0], settings, [0.0275, 0.055, 0.0825])
    assert weight.item() == pytest.approx(expected, rel=1e-6)


def test_the_norm_is_of_the_mean_before_clipping_and_gradients_are_dropped() -> None:
    settings = OptimizerSettings(learning_rate=0.1, warmup_steps=0, clip_norm=1.0)
    owned = parameters([0.0, 0.0], [0.0])
    give(owned, [6.0, 0.0], [8.0])
    assert StageOptimizer(owned, settings).apply(1, 2) == pytest.approx(25.0)
    assert all(weight.grad is None for weight in owned)


def test_gradients_are_clipped_to_the_joint_norm() -> None:
    settings = OptimizerSettings(learning_rate=0.1, warmup_steps=0, clip_norm=1.0)
    owned = parameters([1.0], [1.0])
    optimizer = StageOptimizer(owned, settings)
    for step, total in enumerate([1.0, 10.0], start=1):  # mean gradients: (0.3, 0.4), then (3, 4) clipped to (0.6, 0.8)
        give(owned, [0.6 * total], [0.8 * total])
        optimizer.apply(step, 2)
    assert owned[0].item() == pytest.approx(reference_adamw(1.0, [0.3, 0.6], settings, [0.1, 0.1]), rel=1e-6)
    assert owned[1].item() == pytest.approx(reference_adamw(1.0, [0.4, 0.8], settings, [0.1, 0.1]), rel=1e-6)


def test_the_norm_is_summed_in_float64() -> None:
    assert squared_l2_norm([torch.tensor([1e30, 0.0]), torch.tensor([1e30])]) == pytest.approx(2e60)
    assert squared_l2_norm([torch.tensor([4096.0, 1.0])]) == 4096.0**2 + 1


def test_nothing_counted_changes_nothing() -> None:
    owned = parameters([1.0])
    optimizer = StageOptimizer(owned, PLAIN)
    give(owned, [3.0])
    assert optimizer.apply(1, 0) is None
    assert owned[0].item() == 1.0
    assert owned[0].grad is None
    # Nor did it touch the moments: the next step is a first step.
    give(owned, [3.0])
    optimizer.apply(2, 1)
    assert owned[0].item() == pytest.approx(0.9)


def test_a_negative_count_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError, match="-1 microbatches"):
        StageOptimizer(parameters([1.0]), PLAIN).apply(1, -1)


def test_each_parameter_is_divided_by_what_it_counted() -> None:
    apart, together = parameters([1.0], [1.0]), parameters([1.0], [1.0])
    give(apart, [6.0], [3.0])
    give(together, [3.0], [3.0])
    assert StageOptimizer(apart, PLAIN).apply(1, [2, 1]) == StageOptimizer(together, PLAIN).apply(1, 1)
    assert [weight.item() for weight in apart] == [weight.item() for weight in together]


def test_what_counted_nothing_has_a_gradient_of_zero() -> None:
    owned = parameters([1.0], [1.0])
    give(owned, [2.0], [0.0])
    assert StageOptimizer(owned, PLAIN).apply(1, [1, 0]) == pytest.approx(4.0)
    assert owned[1].item() == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_costs_the_step_not_the_weights(bad: float) -> None:
    owned = parameters([1.0, 2.0], [3.0])
    optimizer = StageOptimizer(owned, PLAIN)
    give(owned, [0.5, bad], [0.5])
    squared_norm = optimizer.apply(1, 1)
    assert squared_norm is not None
    assert not math.isfinite(squared_norm)
    assert [weight.tolist() for weight in owned] == [[1.0, 2.0], [3.0]]
    assert all(weight.grad is None for weight in owned)
    give(owned, [1.0, 1.0], [1.0])
    assert optimizer.apply(2, 1) == pytest.approx(3.0)
    torch.testing.assert_close(owned[0].detach(), torch.tensor([0.9, 1.9]))


def test_no_gradient_is_a_gradient_of_zero() -> None:
    owned, twin = parameters([1.0], [1.0]), parameters([1.0], [1.0])
    missing, zero = StageOptimizer(owned, PLAIN), StageOptimizer(twin, PLAIN)
    for step, second in enumerate([[2.0], None], start=1):
        give(owned, [2.0], second)
        give(twin, [2.0], second or [0.0])
        assert missing.apply(step, 1) == zero.apply(step, 1)
    assert [weight.item() for weight in owned] == [weight.item() for weight in twin]
    assert owned[1].item() != pytest.approx(0.9, abs=1e-3)  # momentum went on


def test_a_raised_rate_decays_to_the_runs_over_its_own_updates() -> None:
    optimizer = StageOptimizer(parameters([1.0]), PLAIN, learning_rate_scale=1.1, decay_steps=4)
    rates = []
    for step in range(900, 906):
        rates.append(optimizer.learning_rate(step))
        optimizer.apply(step, 1)
    assert rates == pytest.approx([0.1075, 0.105, 0.1025, 0.1, 0.1, 0.1])
