"""``python -m benchmarks.links run|report``: the swarm and torch's pipelines on links of a given rate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from understudy.protocol.errors import SettingsError

FOLDER = Path("docs/performance")
PAGE = Path("docs/performance.md")
NARROW = "benchmarks/links/narrow.toml"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Folder = Annotated[Path, typer.Option(help="Where the results lie, one JSON file per model and rate.")]


@app.callback()
def links() -> None:
    """Seconds per step where links are slower than the arithmetic."""


@app.command()
def run(  # noqa: PLR0913, PLR0917 - its options
    source: Annotated[str, typer.Argument(help="Preset or run.toml.")] = NARROW,
    rate_mbit: Annotated[float, typer.Option(help="Of each link and direction, 10^6 bits per second.", min=0.1)] = 100,
    round_trip_ms: Annotated[
        float | None, typer.Option(help="From machine to machine and back; without, a bridge joins them.", min=0)
    ] = None,
    congestion_control: Annotated[str, typer.Option(help="TCP's.")] = "cubic",
    steps: Annotated[int, typer.Option(help="Steps of each run that count.", min=1)] = 6,
    rounds: Annotated[int, typer.Option(help="Runs of each contender, in turn.", min=1)] = 2,
    only: Annotated[
        str, typer.Option(help="Of the contenders but the swarm, separated by commas.")
    ] = "GPipe,1F1B,plain sockets,plain sockets kept warm",
    folder: Folder = FOLDER,
) -> None:
    """Let everybody train the model in turn, as root, and keep the figures."""
    from benchmarks.links.contest import Contest, Links, play
    from benchmarks.links.results import LinkResult, write
    from benchmarks.links.tables import bound_table, step_table
    from benchmarks.origin import Origin
    from understudy.bootstrap.founding import load_manifest

    try:
        links = Links(rate_mbit, round_trip_ms, congestion_control)
        contest = Contest(source, load_manifest(source), links, steps, tuple(only.split(",")))
        played = [play(contest, lambda line: typer.echo(line, err=True)) for _ in range(rounds)]
    except SettingsError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from error
    origin = Origin.here(remark="all machines on it")
    result = LinkResult(contest.manifest, rate_mbit, tuple(played), origin, round_trip_ms, congestion_control)
    typer.echo(f"{step_table([result])}\n\n{bound_table([result])}\n\n{write(result, folder)}")


@app.command()
def report(
    folder: Folder = FOLDER,
    page: Annotated[Path, typer.Option(help="Its tables are brought up to date.")] = PAGE,
) -> None:
    """Write the tables from the results that are there."""
    from benchmarks.links.results import read_all
    from benchmarks.links.tables import parts
    from benchmarks.page import write_parts

    write_parts(page, parts(read_all(folder)))


if __name__ == "__main__":
    app()
