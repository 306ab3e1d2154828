"""The tables of docs/results.md as Markdown, from results alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.convergence.curves import (
    Results,
    Summary,
    checkpoint_costs,
    cost_of,
    find,
    first_step,
    mean_curve,
    redundant_costs,
    summarise,
    target_loss,
)
from benchmarks.convergence.strategies import STRATEGIES

PERCENTS = (0, 5, 10, 16)
CHECKPOINT_PERIODS = (100, 25)
PAPER = {
    "checkpoint every 100": ("558", "622", "634"),
    "redundant computation": ("420", "420", "420"),
    "CheckFree": ("368", "406", "563"),
    "CheckFree+": ("355", "368", "461"),
}
"""Hours to the target at 5, 10 and 16 %: arXiv 2506.15461, Table 2, the 500M model."""
_LOSES = {"none": "none", "middle": "S2..Sn-1", "all": "S1..Sn"}
Row = Sequence[str]


def render(header: Row, rows: Sequence[Row]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cell(summary: Summary) -> str:
    """Iterations and hours, or how many of the seeds arrived."""
    if not summary.seeds:
        return "not run"
    if summary.iterations is None or summary.hours is None:
        return f"{summary.arrived} of {summary.seeds} arrived"
    return f"{summary.iterations:.0f} it, {summary.hours:.1f} h"


def cost_table(results: Results) -> str:
    """Like the paper's Table 2: iterations and modelled hours to the target, by strategy and failure rate."""
    header = ["strategy", "can lose", *(f"{percent} %" for percent in PERCENTS), "paper: hours at 5, 10, 16 %"]
    return render(header, list(_cost_rows(results, target_loss(results))))


def _cost_rows(results: Results, target: float) -> Iterator[Row]:
    for every in CHECKPOINT_PERIODS:
        name = f"checkpoint every {every}"
        costs = [summarise(checkpoint_costs(results, target, every, percent)) for percent in PERCENTS]
        yield [name, "S1..Sn", *map(_cell, costs), _paper(name)]
    always = _cell(summarise(redundant_costs(results, target)))
    yield [
        "redundant computation",
        "S1..Sn, no two adjacent",
        *[always] * len(PERCENTS),
        _paper("redundant computation"),
    ]
    for name, title in (("checkfree", "CheckFree"), ("checkfree+", "CheckFree+")):
        costs = [_summary(results, name, percent, target) for percent in PERCENTS]
        yield [title, _LOSES[STRATEGIES[name].loses], *map(_cell, costs), _paper(title)]


def _summary(results: Results, strategy: str, percent: int, target: float) -> Summary:
    return summarise([cost_of(result, target) for result in find(results, strategy, percent)])


def _paper(name: str) -> str:
    return ", ".join(PAPER.get(name, ("not given",)))


def order_table(results: Results) -> str:
    """All strategies at 16 %: the loss at the end, what failures cost of it, iterations to the target."""
    target = target_loss(results)
    header = ["strategy at 16 %", "can lose", "seeds", "recoveries", "held-out loss", "over no failures", "iterations"]
    return render(header, [row for name in STRATEGIES for row in _order_row(results, name, target)])


def _order_row(results: Results, name: str, target: float) -> Iterator[Row]:
    found = find(results, name, 16)
    if not found:
        return
    strategy = STRATEGIES[name]
    calm = {result.seed: result for result in find(results, "none", 0)}
    ends = [result.validation[-1][1] for result in found]
    excess = [end - calm[result.seed].validation[-1][1] for end, result in zip(ends, found, strict=True)]
    summary = _summary(results, name, 16, target)
    reached = "none arrived" if not summary.arrived else f"{summary.arrived} of {summary.seeds} arrived"
    yield [
        strategy.title,
        _LOSES[strategy.loses],
        str(len(found)),
        f"{statistics.fmean(len(result.recoveries) for result in found):.0f}",
        f"{statistics.fmean(ends):.3f}",
        f"{statistics.fmean(excess):+.3f} ({', '.join(f'{value:+.3f}' for value in excess)})",
        reached if summary.iterations is None else f"{summary.iterations:.0f}",
    ]


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
        end = mean_curve([result.validation for result in found])[-1][1]
        steps = [first_step(result.validation, target) for result in found]
        reached = [step for step in steps if step is not None]
        said = f"{statistics.fmean(reached):.0f}" if len(reached) == len(steps) else "not all arrived"
        rows.append([title, str(len(found)), f"{end:.3f}", said])
    return render(["routes at 0 %", "seeds", "held-out loss", "iterations"], rows)


def origin_table(results: Results) -> str:
    """Where the runs come from."""
    kinds: dict[tuple[str, str, str], int] = {}
    for result in results.values():
        versions = ", ".join(f"{name} {version}" for name, version in sorted(result.origin.versions.items()))
        kind = (result.origin.commit, versions, result.origin.machine)
        kinds[kind] = kinds.get(kind, 0) + 1
    return render(["runs", "commit", "versions", "machine"], [[str(count), *kind] for kind, count in kinds.items()])
