"""The tables of docs/performance.md about recoveries, from results alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.origin import origin_table
from benchmarks.page import render
from benchmarks.recovery.results import PARTS, RecoveryResult

FETCH_RATIO_MAX = 1.2
REST_S_MAX = 3.0
"""The targets."""


def parts(results: Sequence[RecoveryResult]) -> dict[str, str]:
    """The generated parts of the page by name."""
    return {
        "recovery": recovery_table(results),
        "recovery-targets": target_table(results),
        "recovery-bandwidth": bandwidth_table(results),
        "recovery-origin": origin_table(result.origin for result in results),
    }


def recovery_table(results: Sequence[RecoveryResult]) -> str:
    """Median of each part, and the range of the whole."""
    header = ["scenario", "runs", "donors", "MB of each", "step", *PARTS, "standstill, median (min to max)"]
    return render(header, [_row(result) for result in results]) if results else "not run"


def _row(result: RecoveryResult) -> list[str]:
    runs = result.runs
    totals = [run.total_s for run in runs]
    return [
        result.scenario,
        str(len(runs)),
        str(runs[0].donors),
        f"{runs[0].payload_bytes / runs[0].donors / 1e6:.1f}",
        f"{_median([run.step_s for run in runs]):.2f}",
        *(f"{_median([run.parts[name] for run in runs]):.2f}" for name in PARTS),
        f"{_median(totals):.2f} ({min(totals):.2f} to {max(totals):.2f})",
    ]


def target_table(results: Sequence[RecoveryResult]) -> str:
    """Each target, and whether it is met."""
    rows = [row for result in results for row in _targets(result)]
    return render(["scenario", "figure", "target", "median", "range", "met"], rows) if rows else "not run"


def _targets(result: RecoveryResult) -> list[list[str]]:
    ratios = [run.fetch_ratio for run in result.runs if run.fetch_ratio is not None]
    rows = [
        _target(
            result.scenario, "all but fetch and interrupted step, s", REST_S_MAX, [run.rest_s for run in result.runs]
        )
    ]
    if ratios:
        rows.insert(0, _target(result.scenario, "fetch / (bytes / bandwidth)", FETCH_RATIO_MAX, ratios))
    return rows


def _target(scenario: str, what: str, most: float, values: Sequence[float]) -> list[str]:
    median = _median(values)
    span = f"{min(values):.2f} to {max(values):.2f}"
    return [scenario, what, f"at most {most:g}", f"{median:.2f}", span, "yes" if median <= most else "**no**"]


def bandwidth_table(results: Sequence[RecoveryResult]) -> str:
    """What raw streams carried beside the recoveries, and what the fetches did."""
    rows = [row for result in results if result.runs[0].raw_all_s for row in _bandwidths(result)]
    return render(["what", "streams", "MB", "median seconds", "MB/s together"], rows) if rows else "not run"


def _bandwidths(result: RecoveryResult) -> list[list[str]]:
    runs = result.runs
    donors, each = runs[0].donors, runs[0].payload_bytes / runs[0].donors
    ones = [seconds for run in runs for seconds in run.raw_one_s]
    alls = [seconds for run in runs for seconds in run.raw_all_s]
    fetches = [run.parts["fetch"] for run in runs]
    return [
        _bandwidth("raw bytes", 1, each, ones),
        _bandwidth("raw bytes", donors, each * donors, alls),
        _bandwidth("weights, verified", donors, each * donors, fetches),
    ]


def _bandwidth(what: str, streams: int, payload_bytes: float, seconds: Sequence[float]) -> list[str]:
    median = _median(seconds)
    return [what, str(streams), f"{payload_bytes / 1e6:.0f}", f"{median:.2f}", f"{payload_bytes / 1e6 / median:.0f}"]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)
