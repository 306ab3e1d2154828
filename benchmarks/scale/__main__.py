"""``python -m benchmarks.scale run|report``: "Scale" of docs/performance.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.keeping import FOLDER, PAGE, keep
from benchmarks.page import write_parts
from benchmarks.scale.results import Case, ScaleResult, read, roles_table, scale_table, swarm_table

RESULT = FOLDER / "scale.json"
CASES = ("5:10", "5:100", "5:1000", "20:30", "100:110")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Result = Annotated[Path, typer.Option(help="The JSON file of the raw figures.")]


@app.callback()
def scale() -> None:
    """What a peer costs in simulated swarms of many sizes."""


def parse_case(text: str) -> Case:
    """``stages:peers``. Raises `typer.BadParameter`."""
    stages, _, peers = text.partition(":")
    if not (stages.isdecimal() and peers.isdecimal() and 3 <= int(stages) <= int(peers)):
        raise typer.BadParameter(f"{text!r}: give stages:peers such as 5:100, at least 3 stages and a peer for each")
    return Case(int(stages), int(peers))


@app.command()
def run(
    result: Result = RESULT,
    case: Annotated[list[str] | None, typer.Option(help="stages:peers. Repeatable.")] = None,
    window: Annotated[float, typer.Option(help="Simulated seconds to count in.", min=1)] = 20.0,
) -> None:
    """Simulate, and keep the figures."""
    from benchmarks.origin import Origin
    from benchmarks.scale.measuring import measure

    outcomes = []
    for wanted in map(parse_case, case or CASES):
        outcomes.append(measure(wanted, window))
        typer.echo(f"{wanted.stages} stages, {wanted.peers} peers: done", err=True)
    found = ScaleResult(tuple(outcomes), window, Origin.here("cpu", "simulated"))
    keep(found, result)
    typer.echo("\n\n".join((scale_table(found), roles_table(found), swarm_table(found))))


@app.command()
def report(
    result: Result = RESULT,
    page: Annotated[Path, typer.Option(help="Its tables are brought up to date.")] = PAGE,
) -> None:
    """Write the tables of the page from the figures."""
    from benchmarks.origin import origin_table

    found = read(result)
    tables = {
        "scale": scale_table(found),
        "scale-roles": roles_table(found),
        "scale-swarm": swarm_table(found),
        "scale-origin": origin_table([found.origin]),
    }
    write_parts(page, tables)


if __name__ == "__main__":
    app()
