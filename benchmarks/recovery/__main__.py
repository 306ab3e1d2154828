"""``python -m benchmarks.recovery run|report``: how long a swarm stands still, and why."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from benchmarks.keeping import FOLDER, PAGE
from benchmarks.recovery.results import PARTS, Recovered

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Folder = Annotated[Path, typer.Option(help="Where the results lie, one JSON file per scenario.")]


@app.callback()
def recovery() -> None:
    """The parts of a standstill: whole swarms on this machine, one after the other, a spare waiting in each."""


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="tiny or stage-200mb.")] = "tiny",
    runs: Annotated[int, typer.Option(help="Whole swarms to run.", min=1)] = 10,
    folder: Folder = FOLDER,
) -> None:
    """Measure recoveries. What is measured is kept after every swarm."""
    from benchmarks.recovery.measure import measure
    from benchmarks.recovery.scenarios import SCENARIOS
    from benchmarks.recovery.tables import recovery_table, target_table

    if scenario not in SCENARIOS:
        raise typer.BadParameter(f"there is no scenario {scenario!r}: choose one of {', '.join(SCENARIOS)}")

    async def keep_all() -> None:
        async for result in measure(SCENARIOS[scenario], runs):
            _say(result.runs[-1])
            path = result.write(folder)
        typer.echo(f"{recovery_table([result])}\n{target_table([result])}\n{path}")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(keep_all())


@app.command()
def report(
    folder: Folder = FOLDER,
    page: Annotated[Path, typer.Option(help="Its tables are brought up to date.")] = PAGE,
) -> None:
    """Write the tables from the results that are there."""
    from benchmarks.page import write_parts
    from benchmarks.recovery.results import read_results
    from benchmarks.recovery.tables import parts

    write_parts(page, parts(read_results(folder)))


def _say(recovered: Recovered) -> None:
    """One line for whoever watches."""
    parts = "  ".join(f"{name} {recovered.parts[name]:.3f}" for name in PARTS)
    raw = f"  raw {recovered.raw_one_s} {recovered.raw_all_s}" if recovered.raw_all_s else ""
    typer.echo(f"{parts}  total {recovered.total_s:.3f}  step {recovered.step_s:.3f}{raw}")


if __name__ == "__main__":
    app()
