"""The tables of docs/performance.md about slow links, from results alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.links.bounds import bytes_per_step
from benchmarks.links.results import SWARM, TARGET, UNSHAPED, LinkResult
from benchmarks.origin import origin_table
from benchmarks.page import render


def parts(results: Sequence[LinkResult]) -> dict[str, str]:
    """The generated parts of the page by name."""
    return {
        "links": step_table(results),
        "links-bounds": bound_table(results),
        "links-origin": origin_table(result.origin for result in results),
    }


def step_table(results: Sequence[LinkResult]) -> str:
    """Everybody's step, and the swarm's speed as a multiple of it."""
    header = ["model", "links, Mbit/s", "contender", "s per step", "the swarm is as fast: median (by round)"]
    return render(header, [_step_row(result, name) for result in results for name in result.contenders])


def bound_table(results: Sequence[LinkResult]) -> str:
    """The swarm's step beside what links and processors allow."""
    header = [
        "model", "links, Mbit/s", "TCP carries, Mbit/s", "MB per step", "compute, s", "transfer, s", "plain bound, s",
        "with fill, s", "swarm, s", "plain bound / swarm", "with fill / swarm",
    ]  # fmt: skip
    return render(header, [_bound_row(result) for result in results])


def _step_row(result: LinkResult, name: str) -> list[str]:
    ratios = result.ratios(name)
    by_round = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    compared = "" if name in {SWARM, UNSHAPED} else f"{statistics.median(ratios):.2f} ({by_round})"
    return [result.manifest.name, result.links, name, f"{result.step_s(name):.2f}", compared]


def _bound_row(result: LinkResult) -> list[str]:
    payload_bytes, swarm_s = bytes_per_step(result.manifest), result.step_s(SWARM)
    transfer_s = payload_bytes / result.bytes_per_s
    seconds = [result.step_s(UNSHAPED), transfer_s, result.plain_bound_s, result.filled_bound_s, swarm_s]
    return [
        result.manifest.name,
        result.links,
        f"{result.bytes_per_s * 8 / 1e6:.1f}",
        f"{payload_bytes / 1e6:.1f}",
        *(f"{value:.2f}" for value in seconds),
        _share(result.plain_bound_s / swarm_s),
        _share(result.filled_bound_s / swarm_s),
    ]


def _share(share: float) -> str:
    return f"{share:.2f}" if share >= TARGET else f"**{share:.2f}**"
