"""What the results say: iterations to a target, costs, means over seeds, the loss around a recovery. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.convergence.results import Result, Run
from benchmarks.convergence.study import stand_in
from benchmarks.convergence.timing import Churn, Cost, checkpointed, going_on, redundant

Results = Mapping[Run, Result]
TARGET_SHARE = 0.45
"""The target is what a run without failures reaches after this share of its iterations.

In the paper it takes 10,000 iterations without failures and 22,000 with CheckFree at 16 % (Table 2): 0.45.
"""


def find(results: Results, strategy: str, percent: int) -> list[Result]:
    """The results of all seeds, stand-ins included."""
    seeds = sorted({run.seed for run in results})
    wanted = (stand_in(Run(strategy, percent, seed), results) for seed in seeds)
    return [results[run] for run in wanted if run in results]


def mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """The mean over seeds of (step, loss) curves that were measured at the same steps."""
    return [(points[0][0], statistics.fmean(loss for _, loss in points)) for points in zip(*curves, strict=True)]


def target_loss(results: Results) -> float:
    """The held-out loss that every strategy is measured by."""
    curve = mean_curve([result.validation for result in find(results, "none", 0)])
    return loss_at(curve, TARGET_SHARE * curve[-1][0])


def loss_at(curve: Sequence[tuple[int, float]], step: float) -> float:
    """Linear between the two measurements around a step."""
    for (left, loss_left), (right, loss_right) in pairwise(curve):
        if left <= step <= right:
            return loss_left + (loss_right - loss_left) * (step - left) / (right - left)
    raise ValueError(f"step {step} is not between {curve[0][0]} and {curve[-1][0]}")


def first_step(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """Where a curve first falls to the target, linear between measurements; None if it does not."""
    for (left, loss_left), (right, loss_right) in pairwise(curve):
        if loss_right <= target:
            share = max(0.0, (loss_left - target) / (loss_left - loss_right)) if loss_left > loss_right else 1.0
            return left + share * (right - left)
    return None


def cost_of(result: Result, target: float) -> Cost | None:
    """What one run of a strategy that goes on needed to reach the target; None if it did not."""
    reached = first_step(result.validation, target)
    if reached is None:
        return None
    donors = [len(recovery.donors) for recovery in result.recoveries if recovery.step < reached]
    return going_on(reached, donors)


def checkpoint_costs(results: Results, target: float, every: int, percent: int) -> list[Cost | None]:
    """What checkpointing would have needed, by seed."""
    return list(_later(results, target, every, percent))


def _later(results: Results, target: float, every: int, percent: int) -> Iterator[Cost | None]:
    for result in find(results, "none", 0):
        reached = first_step(result.validation, target)
        stages = tuple(range(1, result.manifest.model.block_stages + 1))
        churn = Churn(percent, result.seed, stages, result.failure_factor)
        yield None if reached is None else checkpointed(reached, every, churn)


def redundant_costs(results: Results, target: float) -> list[Cost | None]:
    """What redundant computation would have needed, by seed."""
    steps = (first_step(result.validation, target) for result in find(results, "none", 0))
    return [None if step is None else redundant(step) for step in steps]


@dataclass(frozen=True, slots=True)
class Summary:
    """Means over the seeds."""

    seeds: int
    arrived: int
    """Of the seeds, as many reached the target. The means are over these, and only given if all did."""
    iterations: float | None
    hours: float | None
    failures: float | None


def summarise(costs: Sequence[Cost | None]) -> Summary:
    arrived = [cost for cost in costs if cost is not None]
    if not arrived or len(arrived) < len(costs):
        return Summary(len(costs), len(arrived), None, None, None)
    return Summary(
        len(costs),
        len(arrived),
        statistics.fmean(cost.iterations for cost in arrived),
        statistics.fmean(cost.hours for cost in arrived),
        statistics.fmean(cost.failures for cost in arrived),
    )


def around_recoveries(results: Results, strategy: str, before: int, after: int) -> list[float]:
    """The mean rise of the training loss from ``before`` steps before a recovery to ``after`` steps behind it.

    What the run without failures did at the same steps, with the same microbatches, is taken off, and so is what was
    there already before the loss. Recoveries with another one in that span are left out.
    """
    rises = [rise for result in find(results, strategy, 16) for rise in _rises(result, results, before, after)]
    return [statistics.fmean(points) for points in zip(*rises, strict=True)]


def _rises(result: Result, results: Results, before: int, after: int) -> Iterator[list[float]]:
    calm = results[Run("none", 0, result.seed)].losses
    excess = [loss - other for loss, other in zip(result.losses, calm, strict=True)]
    steps = [recovery.step for recovery in result.recoveries]
    for step in steps:
        is_alone = sum(abs(other - step) <= before + after for other in steps) == 1
        if is_alone and before <= step <= len(excess) - after:
            base = statistics.fmean(excess[step - before : step])
            yield [value - base for value in excess[step - before : step + after]]
