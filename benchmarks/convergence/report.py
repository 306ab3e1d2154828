"""Writes the generated parts of docs/results.md, and the pictures."""

from __future__ import annotations

from pathlib import Path

from benchmarks.convergence.curves import Results, target_loss
from benchmarks.convergence.live import LiveResult, live_table, replay_note
from benchmarks.convergence.tables import age_table, cost_table, order_table, origin_table, rise_table, swapping_cost
from benchmarks.page import write_parts


def parts(results: Results, live: list[LiveResult]) -> dict[str, str]:
    """The generated parts of the page by name."""
    return {
        "ages": age_table(results),
        "cost": cost_table(results),
        "order": order_table(results),
        "rise": rise_table(results),
        "swapping": swapping_cost(results),
        "target": f"Target: {target_loss(results):.3f} nats per byte.",
        "live": live_table(live),
        "replay": replay_note(live),
        "origin": origin_table(results),
    }


def write_page(page: Path, results: Results, live: list[LiveResult]) -> None:
    """Bring the page up to date with the results."""
    write_parts(page, parts(results, live))
