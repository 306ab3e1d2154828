"""``python -m benchmarks.scale run|report``: "Scale" of docs/performance.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.keeping import FOLDER, PAGE, keep, read_kept
from benchmarks.page import write_parts
from benchmarks.scale.results import Case, ScaleResult, read, roles_table, scale_table, swarm_table

RESULT = FOLDER / "scale.json"
LIVE_RESULT = FOLDER / "scale-live.json"
DEPTHS = (3, 6, 12)
CASES = ("5:10", "5:100", "5:1000", "20:30", "100:110")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Result = Annotated[Path, typer.Option(help="The JSON file of the simulated figures.")]
LiveResult = Annotated[Path, typer.Option(help="The JSON file of the live figures.")]


@app.callback()
def scale() -> None:
    """What a peer costs in simulated swarms of many sizes, and live swarms of some depths."""


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
def train(
    result: LiveResult = LIVE_RESULT,
    stages: Annotated[list[int] | None, typer.Option(help="Block stages. Repeatable.", min=3, max=64)] = None,
    steps: Annotated[int, typer.Option(help="Of each run that count.", min=1)] = 8,
) -> None:
    """Train with live swarms of several depths, and keep the seconds of their steps."""
    from benchmarks.origin import Origin
    from benchmarks.scale.depth import DepthResult, depth_table, measure_depth

    depths = []
    for wanted in stages or DEPTHS:
        depths.append(measure_depth(wanted, steps))
        typer.echo(f"{wanted} block stages: {depths[-1].ratio:.2f} of the unsplit model", err=True)
    found = DepthResult(tuple(depths), Origin.here())
    keep(found, result)
    typer.echo(depth_table(found))


@app.command()
def report(
    result: Result = RESULT,
    live: LiveResult = LIVE_RESULT,
    page: Annotated[Path, typer.Option(help="Its tables are brought up to date.")] = PAGE,
) -> None:
    """Write the tables of the page from the figures."""
    from benchmarks.origin import origin_table
    from benchmarks.scale.depth import DepthResult, depth_table

    found = read(result)
    trained = read_kept(live.parent, live.name, DepthResult)
    tables = {
        "scale": scale_table(found),
        "scale-roles": roles_table(found),
        "scale-swarm": swarm_table(found),
        "scale-origin": origin_table([one.origin for one in (found, *trained)]),
    }
    if trained:
        tables["scale-live"] = depth_table(trained[0])
    write_parts(page, tables)


if __name__ == "__main__":
    app()
