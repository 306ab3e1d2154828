"""The tables of docs/performance.md about memory, from results alone."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.memory.expected import expected
from benchmarks.memory.results import MemoryResult, Process
from benchmarks.origin import origin_table
from benchmarks.page import Row, render

MB = 1e6


def parts(results: Sequence[MemoryResult]) -> dict[str, str]:
    """The generated parts of the page by name."""
    return {
        "memory-peaks": peak_table(results),
        "memory-growth": growth_table(results),
        "memory-origin": origin_table(result.origin for result in results),
    }


def peak_table(results: Sequence[MemoryResult]) -> str:
    """Per stage the highest peak of those that held it, against its bound."""
    header = ["run", "stage", "weights, gradients, optimizer", "activations", "bound", "peak: node", "daemon", "met"]
    rows = [row for result in results for row in _peak_rows(result)]
    return render(header, rows) if rows else "not run"


def _peak_rows(result: MemoryResult) -> list[Row]:
    return [_peak_row(result, stage) for stage in sorted({process.stage for process in result.processes})]


def _peak_row(result: MemoryResult, stage: int) -> Row:
    highest = max((process for process in result.processes if process.stage == stage), key=lambda process: process.peak)
    needed = expected(result.manifest, stage)
    return [
        _name(result),
        f"S{stage}",
        _mb(needed.weights + needed.gradients + needed.optimizer),
        _mb(needed.activations),
        _mb(needed.bound),
        _mb(highest.node_peak),
        _mb(highest.daemon_peak),
        "yes" if highest.peak <= needed.bound else "**no**",
    ]


def growth_table(results: Sequence[MemoryResult]) -> str:
    """What the processes that lived long enough grew by, after their warm-up."""
    header = ["run", "stage", "steps watched", "resident: first", "last", "growth per 100 steps: node", "daemon"]
    rows = [
        _growth_row(result, process)
        for result in results
        for process in result.processes
        if process.growth() is not None
    ]
    return render(header, rows) if rows else "not run"


def _growth_row(result: MemoryResult, process: Process) -> Row:
    steady = process.steady
    node, daemon = process.growth(), process.growth(of_daemon=True)
    assert node is not None
    assert daemon is not None
    return [
        _name(result),
        f"S{process.stage}",
        f"{steady[0].step} to {steady[-1].step}",
        _mb(steady[0].node),
        _mb(steady[-1].node),
        f"{node / MB:+.2f}",
        f"{daemon / MB:+.2f}",
    ]


def _name(result: MemoryResult) -> str:
    recoveries = "1 recovery" if result.recoveries == 1 else f"{result.recoveries} recoveries"
    return f"{result.manifest.name}, {result.steps} steps, {recoveries}"


def _mb(count: int) -> str:
    return f"{count / MB:.0f}"
