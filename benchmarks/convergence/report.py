"""Writes the generated parts of docs/results.md, and the pictures."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.convergence.curves import Results, target_loss
from benchmarks.convergence.live import LiveResult, live_table, replay_note
from benchmarks.convergence.tables import cost_table, order_table, origin_table, swapping_cost
from protocol.errors import SettingsError


def fill_in(text: str, parts: dict[str, str]) -> str:
    """Replace what stands between the marks ``<!-- name -->`` and ``<!-- /name -->``.

    Raises `SettingsError` unless each is there once.
    """
    for name, content in parts.items():
        pieces = re.split(rf"(<!-- /?{name} -->)", text)
        if pieces[1::2] != [f"<!-- {name} -->", f"<!-- /{name} -->"]:
            raise SettingsError(
                f"the page needs the marks <!-- {name} --> and <!-- /{name} -->, once and in this order"
            )
        pieces[2] = f"\n\n{content}\n\n"
        text = "".join(pieces)
    return text


def parts(results: Results, live: list[LiveResult]) -> dict[str, str]:
    """The generated parts of the page by name."""
    return {
        "cost": cost_table(results),
        "order": order_table(results),
        "swapping": swapping_cost(results),
        "target": f"Target: {target_loss(results):.3f} nats per byte.",
        "live": live_table(live),
        "replay": replay_note(live),
        "origin": origin_table(results),
    }


def write_page(page: Path, results: Results, live: list[LiveResult]) -> None:
    """Bring the page up to date with the results."""
    page.write_text(fill_in(page.read_text(encoding="utf-8"), parts(results, live)), encoding="utf-8")
