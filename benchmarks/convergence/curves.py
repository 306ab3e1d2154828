"""What the results say: iterations to a target, costs, means over seeds, the loss around a recovery."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.convergence.failures import chance_of_loss
from benchmarks.convergence.results import Result, Run
from benchmarks.convergence.strategies import STRATEGIES, Loses, vulnerable
from benchmarks.convergence.timing import Cost, checkpointed, going_on, redundant

Results = Mapping[Run, Result]
END_MEASUREMENTS = 5
TARGET_SHARE = 0.45
"""The target is what a run without failures reaches after this share of its iterations.

In the paper it takes 10,000 iterations without failures and 22,000 with CheckFree at 16 % (Table 2): 0.45.
"""


def stand_in(run: Run, results: Mapping[Run, Result]) -> Run:
    """The run whose numbers this one must repeat to the bit, itself if there is none.

    Without failures plain CheckFree is an ordinary run, and clipping the norms changes no coefficient if no
    donor's norm was beyond the clip.
    """
    if run.strategy == "none" or (run.percent == 0 and STRATEGIES[run.strategy].method == "checkfree"):
        return Run("none", 0, run.seed)
    unclipped = Run(run.strategy.removesuffix("-clipped"), run.percent, run.seed)
    if unclipped == run or unclipped not in results:
        return run
    clip = results[unclipped].manifest.optimizer.clip_norm ** 2
    norms = (norm for recovery in results[unclipped].recoveries for norm in recovery.squared_norms)
    return run if any(norm is None or norm > clip for norm in norms) else unclipped


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


def checkpoint_costs(results: Results, target: float, every: int, percent: int, loses: Loses) -> list[Cost | None]:
    """What checkpointing is to be expected to need, by seed of the run without failures."""
    costs: list[Cost | None] = []
    for calm in find(results, "none", 0):
        stages = vulnerable(loses, calm.manifest.model.block_stages)
        chance = chance_of_loss(percent, len(stages), calm.failure_factor)
        steps = first_step(calm.validation, target)
        costs.append(None if steps is None else checkpointed(steps, every, chance))
    return costs


def redundant_costs(results: Results, target: float) -> list[Cost | None]:
    """What redundant computation would have needed, by seed."""
    steps = (first_step(result.validation, target) for result in find(results, "none", 0))
    return [None if step is None else redundant(step) for step in steps]


@dataclass(frozen=True, slots=True)
class Summary:
    """Means over seeds or schedules, given only if all of them reached the target."""

    count: int
    arrived: int
    iterations: float | None
    hours: float | None


def summarise(costs: Sequence[Cost | None]) -> Summary:
    arrived = [cost for cost in costs if cost is not None]
    if not arrived or len(arrived) < len(costs):
        return Summary(len(costs), len(arrived), None, None)
    iterations = statistics.fmean(cost.iterations for cost in arrived)
    return Summary(len(costs), len(arrived), iterations, statistics.fmean(cost.hours for cost in arrived))


def end_loss(result: Result) -> float:
    """The held-out loss at the end: the mean of the last measurements, because one of them is noisy."""
    return statistics.fmean(loss for _, loss in result.validation[-END_MEASUREMENTS:])


def excess_losses(results: Results, strategy: str, percent: int) -> list[float]:
    """By seed, how far the end loss is above that of the same seed without failures."""
    calm = {result.seed: end_loss(result) for result in find(results, "none", 0)}
    return [end_loss(result) - calm[result.seed] for result in find(results, strategy, percent) if result.seed in calm]


def rises(results: Results, strategy: str, before: int, after: int) -> list[list[float]]:
    """For each recovery at 16 %, the rise of the training loss from ``before`` steps before it to ``after`` behind it.

    What the run without failures did at the same steps, with the same microbatches, is taken off, and so is what was
    there already before the loss. Recoveries with another one in that span are left out.
    """
    calm = {result.seed: result for result in find(results, "none", 0)}
    pairs = [(result, calm[result.seed]) for result in find(results, strategy, 16) if result.seed in calm]
    return [rise for result, other in pairs for rise in _rises(result, other, before, after)]


def around_recoveries(results: Results, strategy: str, before: int, after: int) -> list[float]:
    """The mean of `rises`, step by step."""
    return [statistics.fmean(points) for points in zip(*rises(results, strategy, before, after), strict=True)]


def _rises(result: Result, calm: Result, before: int, after: int) -> Iterator[list[float]]:
    excess = [loss - other for loss, other in zip(result.losses, calm.losses, strict=True)]
    steps = [recovery.step for recovery in result.recoveries]
    for step in steps:
        is_alone = sum(abs(other - step) <= before + after for other in steps) == 1
        if is_alone and before <= step <= len(excess) - after:
            base = statistics.fmean(excess[step - before : step])
            yield [value - base for value in excess[step - before : step + after]]
