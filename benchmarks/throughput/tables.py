"""The tables of docs/performance.md about throughput, from results alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.origin import origin_table
from benchmarks.page import render
from benchmarks.throughput.results import SWARM, Contest


def parts(contests: Sequence[Contest]) -> dict[str, str]:
    """The generated parts of the page by name."""
    return {
        "throughput": speed_table(contests),
        "throughput-origin": origin_table(contest.origin for contest in contests),
    }


def speed_table(contests: Sequence[Contest]) -> str:
    """Step and speed of each contender, and the swarm's speed as a multiple of it."""
    header = ["model", "contender", "ms per step", "tokens/s", "the swarm is as fast: median (by round)"]
    return render(header, [_row(contest, name) for contest in contests for name in contest.seconds])


def _row(contest: Contest, name: str) -> list[str]:
    seconds, ratios = contest.median_s(name), contest.ratios(name)
    by_round = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return [
        contest.manifest.name,
        name,
        f"{1000 * seconds:.0f}",
        f"{contest.manifest.tokens_per_step / seconds:.0f}",
        "" if name == SWARM else f"{statistics.median(ratios):.2f} ({by_round})",
    ]
