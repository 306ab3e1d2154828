"""The tables of docs/results.md as Markdown, from results alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import origin
from benchmarks.convergence.curves import (
    Results,
    Summary,
    checkpoint_costs,
    cost_of,
    end_loss,
    excess_losses,
    find,
    first_step,
    redundant_costs,
    rises,
    summarise,
    target_loss,
)
from benchmarks.convergence.strategies import STRATEGIES, Loses
from benchmarks.convergence.timing import ITERATION_S
from benchmarks.page import Row, render

PERCENTS = (0, 5, 10, 16)
SEEDS = 3
PAPER_CALM_HOURS = 10_000 * ITERATION_S / 3600
PAPER = {
    "checkpoint every 100": (558, 622, 634),
    "redundant computation": (420, 420, 420),
    "CheckFree": (368, 406, 563),
    "CheckFree+": (355, 368, 461),
}
"""Hours to the target at 5, 10, 16 %: arXiv 2506.15461, Table 2, 500M; it takes 10,000 iterations without failures."""
BEFORE, AFTER = 5, 30
"""Iterations before and after a recovery that are looked at."""
SPANS = ((0, 5), (5, 15), (20, 30))
_LOSES: dict[Loses, str] = {"none": "none", "middle": "S2..Sn-1", "all": "S1..Sn", "pairs": "S1..Sn, two at once"}


def cost_table(results: Results) -> str:
    """Like the paper's Table 2: iterations and modelled hours to the target, as multiples of a run without failures."""
    calm = summarise(redundant_costs(results, target_loss(results))).iterations
    if calm is None:
        return "not run"
    header = ["strategy", "can lose", *(f"{percent} %" for percent in PERCENTS), "paper: hours at 5, 10, 16 %"]
    rows = [[*row[:2], *(_cell(summary, calm) for summary in row[2]), _paper(row[0])] for row in _cost_rows(results)]
    return render(header, rows)


def _cost_rows(results: Results) -> Iterator[tuple[str, str, list[Summary]]]:
    target = target_loss(results)
    periods: tuple[tuple[int, Loses], ...] = ((100, "middle"), (100, "all"), (25, "middle"), (25, "all"))
    for every, loses in periods:
        costs = [summarise(checkpoint_costs(results, target, every, percent, loses)) for percent in PERCENTS]
        yield f"checkpoint every {every}", _LOSES[loses], costs
    always = summarise(redundant_costs(results, target))
    yield "redundant computation", "no two adjacent", [always] * len(PERCENTS)
    for name, title in (
        ("checkfree", "CheckFree"),
        ("checkfree-all", "CheckFree, edges copied"),
        ("checkfree+", "CheckFree+"),
    ):
        costs = [summarise([cost_of(r, target) for r in find(results, name, percent)]) for percent in PERCENTS]
        yield title, _LOSES[STRATEGIES[name].loses], costs


def _cell(summary: Summary, calm: float) -> str:
    """Multiples of the iterations and the hours of a run without failures, or why there are none."""
    if not summary.count:
        return "not run"
    missing = f" ({summary.count} of {SEEDS} seeds)" if summary.count < SEEDS else ""
    if summary.iterations is None or summary.hours is None:
        return f"{summary.arrived} of {summary.count} arrived"
    hours = summary.hours * 3600 / (calm * ITERATION_S)
    return f"{summary.iterations / calm:.2f} it, {hours:.2f} h{missing}"


def _paper(name: str) -> str:
    return ", ".join(f"{hours / PAPER_CALM_HOURS:.2f}" for hours in PAPER.get(name, ())) or "not given"


def order_table(results: Results) -> str:
    """All strategies at 16 %: the loss at the end, what failures cost of it, iterations to the target."""
    target = target_loss(results)
    header = ["strategy at 16 %", "can lose", "seeds", "recoveries", "held-out loss", "over no failures", "iterations"]
    return render(header, [_order_row(results, name, target) for name in STRATEGIES if find(results, name, 16)])


def _order_row(results: Results, name: str, target: float) -> Row:
    found, strategy = find(results, name, 16), STRATEGIES[name]
    excess = excess_losses(results, name, 16)
    summary = summarise([cost_of(result, target) for result in found])
    arrived = f"{summary.arrived} of {summary.count} arrived"
    is_derived = name != "none" and any(result.strategy != name for result in found)
    return [
        strategy.title + (" *" if is_derived else ""),
        _LOSES[strategy.loses],
        str(len(found)),
        f"{statistics.fmean(len(result.recoveries) for result in found):.0f}",
        f"{statistics.fmean(end_loss(result) for result in found):.3f}",
        f"{statistics.fmean(excess):+.3f} ({', '.join(f'{value:+.3f}' for value in excess)})",
        arrived if summary.iterations is None else f"{summary.iterations:.0f}",
    ]


COPIED = ("checkfree-all", "checkfree+", "checkfree-pairs")
"""What lost the same stages as the standby copies that it is put beside."""


def age_table(results: Results) -> str:
    """Standby copies by their age at 16 %, beside what rebuilt the same losses from neighbours.

    Iterations to the target as a multiple of those of the same seed without failures: not every row has all seeds.
    """
    header = ["S1..Sn are lost", "losses", "over no failures, by seed", "times the iterations, by seed", "mean"]
    names = [name for name, strategy in STRATEGIES.items() if strategy.standby_every or name in COPIED]
    target = target_loss(results)
    return render(header, [_age_row(results, name, target) for name in names if find(results, name, 16)])


def _age_row(results: Results, name: str, target: float) -> Row:
    found = find(results, name, 16)
    calm = {result.seed: first_step(result.validation, target) for result in find(results, "none", 0)}
    steps = {result.seed: first_step(result.validation, target) for result in found}
    ratios = [step / known for seed, step in steps.items() if step and (known := calm.get(seed))]
    excess = excess_losses(results, name, 16)
    return [
        STRATEGIES[name].title,
        f"{statistics.fmean(len(result.recoveries) for result in found):.0f}",
        ", ".join(f"{value:+.3f}" for value in excess),
        ", ".join(f"{ratio:.3f}" for ratio in ratios) or "none arrived",
        f"{statistics.fmean(ratios):.3f}" if len(ratios) == len(found) else "not all arrived",
    ]


def rise_table(results: Results) -> str:
    """What a recovery costs the training loss, soon and later: mean and standard error over recoveries."""
    header = ["strategy at 16 %", "recoveries alone", *(f"rise, iterations {a + 1} to {b}" for a, b in SPANS)]
    found = {name: rises(results, name, BEFORE, AFTER) for name in STRATEGIES if name != "none"}
    return render(header, [_rise_row(name, each) for name, each in found.items() if len(each) > 1])


def _rise_row(name: str, found: list[list[float]]) -> Row:
    cells = []
    for begin, end in SPANS:
        means = [statistics.fmean(rise[BEFORE + begin : BEFORE + end]) for rise in found]
        cells.append(f"{statistics.fmean(means):+.3f} ± {statistics.stdev(means) / len(means) ** 0.5:.3f}")
    return [STRATEGIES[name].title, str(len(found)), *cells]


def swapping_cost(results: Results) -> str:
    """What CheckFree+'s swapped routes cost when nothing fails."""
    plain, swapped = (find(results, name, 0) for name in ("none", "checkfree+"))
    if not swapped:
        return "not run"
    target = target_loss(results)
    rows = []
    for title, found in (
        ("in order (none, CheckFree)", plain),
        ("half of the microbatches swapped (CheckFree+)", swapped),
    ):
        end = statistics.fmean(end_loss(result) for result in found)
        steps = [first_step(result.validation, target) for result in found]
        reached = [step for step in steps if step is not None]
        said = f"{statistics.fmean(reached):.0f}" if len(reached) == len(steps) else "not all arrived"
        rows.append([title, str(len(found)), f"{end:.3f}", said])
    return render(["routes at 0 %", "seeds", "held-out loss", "iterations"], rows)


def origin_table(results: Results) -> str:
    """Where the runs come from."""
    return origin.origin_table(result.origin for result in results.values())
