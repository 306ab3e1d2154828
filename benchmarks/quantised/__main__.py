"""``python -m benchmarks.quantised train|blocks|time|report``: "Bytes on the wire" of docs/performance.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.keeping import FOLDER, PAGE, keep, read_kept
from benchmarks.page import write_parts
from benchmarks.quantised.results import (
    SEEDS,
    WIRES,
    Costs,
    Training,
    cost_table,
    difference_table,
    loss_table,
    missing,
)
from understudy.protocol.errors import SettingsError

TRAININGS = "quantised-*-seed-*.json"
COSTS = "quantised-cost.json"
BLOCKS = "quantised-blocks.json"
TELL_EVERY = 20

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Folder = Annotated[Path, typer.Option(help="Where the JSON files lie: one for each training, two for the rest.")]


@app.callback()
def quantised() -> None:
    """float32, bfloat16 and int8 between stages: the loss, and the time that conversion takes."""


@app.command()
def train(
    folder: Folder = FOLDER,
    iterations: Annotated[int, typer.Option(min=1)] = 300,
    seed: Annotated[list[int] | None, typer.Option(help="Repeatable; 0, 1 and 2 by default.", min=0)] = None,
    wire: Annotated[list[str] | None, typer.Option(help=f"Repeatable; by default all: {', '.join(WIRES)}.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A model of seconds.")] = False,
) -> None:
    """Train the study's model with each wire; each is kept when it is done, and what is kept is not trained again."""
    from benchmarks.convergence.study import full_scale, quick_scale
    from benchmarks.quantised.measuring import train_all

    def tell(step: int, loss: float) -> None:
        if step % TELL_EVERY == 0:
            typer.echo(f"iteration {step}: loss {loss:.3f}", err=True)

    manifest = (quick_scale() if quick else full_scale()).manifest
    try:
        runs = missing(read_kept(folder, TRAININGS, Training), wire or WIRES, seed or SEEDS, iterations)
    except SettingsError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from error
    for training in train_all(manifest, runs, iterations, tell):
        keep(training, folder / training.file_name)
        typer.echo(f"{training.wire}, seed {training.seed}: {training.final:.4f}, held out {training.validation:.4f}")


@app.command(name="time")
def take_time(
    folder: Folder = FOLDER,
    repetitions: Annotated[int, typer.Option(help="Per dtype; the dtypes take turns.", min=1)] = 500,
) -> None:
    """Measure, with a quiet machine, what conversion takes."""
    from benchmarks.quantised.measuring import time_all

    costs = time_all(repetitions)
    keep(costs, folder / COSTS)
    typer.echo(cost_table(costs))


@app.command()
def blocks(
    folder: Folder = FOLDER,
    quick: Annotated[bool, typer.Option("--quick", help="A model of seconds.")] = False,
) -> None:
    """Measure what int8 loses by how many channels share a scale."""
    from benchmarks.convergence.study import full_scale, quick_scale
    from benchmarks.quantised.blocks import block_table, measure_blocks

    found = measure_blocks((quick_scale() if quick else full_scale()).manifest)
    keep(found, folder / BLOCKS)
    typer.echo(block_table(found))


@app.command()
def report(
    folder: Folder = FOLDER,
    page: Annotated[Path, typer.Option(help="Its tables are brought up to date.")] = PAGE,
) -> None:
    """Write the tables of the page from the figures."""
    from benchmarks.origin import origin_table
    from benchmarks.quantised.blocks import BlockLosses, block_table

    trained, timed = read_kept(folder, TRAININGS, Training), read_kept(folder, COSTS, Costs)
    scaled = read_kept(folder, BLOCKS, BlockLosses)
    parts = {
        "quantised-loss": loss_table(trained),
        "quantised-difference": difference_table(trained),
        "quantised-blocks": "\n\n".join(block_table(losses) for losses in scaled),
        "quantised-cost": "\n\n".join(cost_table(costs) for costs in timed),
        "quantised-origin": origin_table(
            [*(made.origin for made in trained), *(made.origin for made in scaled), *(made.origin for made in timed)]
        ),
    }
    write_parts(page, parts)


if __name__ == "__main__":
    app()
