"""The pictures of docs/results.md. Needs matplotlib: the extra ``study``."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.convergence.curves import (
    Results,
    around_recoveries,
    checkpoint_costs,
    cost_of,
    find,
    mean_curve,
    redundant_costs,
    summarise,
    target_loss,
)
from benchmarks.convergence.live import LiveResult
from benchmarks.convergence.strategies import STRATEGIES
from benchmarks.convergence.tables import AFTER, BEFORE

BARS = (5, 10, 16)

mpl.use("Agg")

STYLES = ("-", "--", ":", "-.")
"""Of ten lines each."""


def draw_all(results: Results, live: list[LiveResult], folder: Path) -> list[Path]:
    """Draw what the results allow; the pictures' files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [
        (folder / "convergence-loss.png", _draw_losses(results)),
        (folder / "convergence-hours.png", _draw_hours(results)),
        (folder / "convergence-recovery.png", _draw_recoveries(results)),
    ]
    if len(live) == 2:
        drawn.append((folder / "convergence-live.png", _draw_live(*live)))
    for path, figure in drawn:
        figure.savefig(path, dpi=120, metadata={"Software": None})
        plt.close(figure)
    return [path for path, _ in drawn]


def _draw_losses(results: Results) -> Figure:
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for number, (name, strategy) in enumerate(STRATEGIES.items()):
        found = find(results, name, 16)
        if found:
            steps, losses = zip(*mean_curve([result.validation for result in found]), strict=True)
            axes.plot(steps, losses, label=strategy.title, color=f"C{number % 10}", linestyle=STYLES[number // 10])
    axes.axhline(target_loss(results), color="grey", linewidth=0.8, linestyle=":", label="target")
    axes.set(
        xlabel="iteration", ylabel="held-out loss (nats per byte), mean over seeds", title="16 % failures per hour"
    )
    axes.legend(fontsize=8)
    return figure


def _draw_hours(results: Results) -> Figure:
    target = target_loss(results)
    bars = {
        "checkpoint every 100": [checkpoint_costs(results, target, 100, percent, "all") for percent in BARS],
        "redundant computation": [redundant_costs(results, target) for _ in BARS],
        "CheckFree": [[cost_of(r, target) for r in find(results, "checkfree", percent)] for percent in BARS],
        "CheckFree+": [[cost_of(r, target) for r in find(results, "checkfree+", percent)] for percent in BARS],
    }
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for number, (title, costs) in enumerate(bars.items()):
        hours = [summarise(each).hours for each in costs]
        places = [place + 0.2 * number for place in range(len(BARS))]
        axes.bar(places, [hour or 0 for hour in hours], width=0.18, label=title)
        for place, hour in zip(places, hours, strict=True):
            axes.annotate(
                "none" if hour is None else f"{hour:.0f}", (place, hour or 0), ha="center", va="bottom", fontsize=8
            )
    axes.set_xticks([place + 0.3 for place in range(len(BARS))], [f"{percent} % per hour" for percent in BARS])
    axes.set(
        ylabel="modelled hours to the target", title="Time to the target (none: not reached by every seed, or not run)"
    )
    axes.legend(fontsize=8)
    return figure


def _draw_recoveries(results: Results) -> Figure:
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for number, (name, strategy) in enumerate(STRATEGIES.items()):
        if strategy.loses == "none":
            continue
        rises = around_recoveries(results, name, BEFORE, AFTER)
        if rises:
            style = STYLES[number // 10]
            axes.plot(range(-BEFORE, AFTER), rises, label=strategy.title, color=f"C{number % 10}", linestyle=style)
    axes.axvline(0, color="grey", linewidth=0.8, linestyle=":", label="lost")
    axes.set(
        xlabel="iterations after a stage was lost and rebuilt",
        ylabel="rise of the training loss (nats per byte)",
        title="Around a recovery: against the same microbatches without failures",
    )
    axes.legend(fontsize=8)
    return figure


def _draw_live(calm: LiveResult, churned: LiveResult) -> Figure:
    """Losses over steps and over time, side by side."""
    figure, (over_steps, over_time) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    for result, title in ((calm, "nobody killed"), (churned, f"{len(churned.recoveries)} peers killed")):
        over_steps.plot(range(1, len(result.losses) + 1), result.losses, label=title, linewidth=1)
        over_time.plot(result.seconds, result.losses, label=title, linewidth=1)
    for recovery in churned.recoveries:
        over_steps.axvline(recovery.step, color="grey", linewidth=0.6, linestyle=":")
        over_time.axvline(churned.seconds[recovery.step - 1], color="grey", linewidth=0.6, linestyle=":")
    over_steps.set(xlabel="step", ylabel="training loss (nats per byte)")
    over_time.set(xlabel="seconds since the first commit")
    over_steps.legend()
    figure.suptitle("A live swarm of five peers, preset tiny: dotted lines are kills")
    return figure
