"""``python -m benchmarks.memory``: a local swarm, and what its nodes take."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
import uvloop

FOLDER = Path("docs/performance")


def main(
    source: Annotated[str, typer.Option(help="Preset or run.toml.")] = "tiny",
    steps: Annotated[int, typer.Option(help="Steps to train.", min=2)] = 1000,
    kills: Annotated[int, typer.Option(help="Peers to kill, each with a spare that waits.", min=0)] = 20,
    folder: Annotated[Path, typer.Option(help="Where the result goes.")] = FOLDER,
) -> None:
    """Peak and growth of every node's resident memory."""
    from benchmarks.memory.measure import measure
    from benchmarks.memory.tables import growth_table, peak_table

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(measure(source, steps, kills))
    typer.echo(peak_table([result]))
    typer.echo(growth_table([result]))
    typer.echo(result.write(folder))


if __name__ == "__main__":
    typer.run(main)
