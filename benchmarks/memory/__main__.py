"""``python -m benchmarks.memory run|report``: a local swarm, and what its nodes take."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from benchmarks.keeping import FOLDER, PAGE

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Folder = Annotated[Path, typer.Option(help="Where the results lie, one JSON file per run.toml or preset.")]


@app.callback()
def memory() -> None:
    """Peak and growth of every node's resident memory."""


@app.command()
def run(
    source: Annotated[str, typer.Option(help="Preset or run.toml.")] = "tiny",
    steps: Annotated[int, typer.Option(help="Steps to train.", min=2)] = 1000,
    kills: Annotated[int, typer.Option(help="Peers to kill, one after the other.", min=0)] = 20,
    folder: Folder = FOLDER,
) -> None:
    """Train a swarm on this machine, kill some of its peers, and keep the figures."""
    from benchmarks.memory.measure import measure
    from benchmarks.memory.tables import growth_table, peak_table

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(measure(source, steps, kills))
    typer.echo(peak_table([result]))
    typer.echo(growth_table([result]))
    typer.echo(result.write(folder))


@app.command()
def report(
    folder: Folder = FOLDER,
    page: Annotated[Path, typer.Option(help="Its tables are brought up to date.")] = PAGE,
) -> None:
    """Write the tables from the results that are there."""
    from benchmarks.memory.results import read_results
    from benchmarks.memory.tables import parts
    from benchmarks.page import write_parts

    write_parts(page, parts(read_results(folder)))


if __name__ == "__main__":
    app()
