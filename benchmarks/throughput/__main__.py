"""``python -m benchmarks.throughput run|report``: the swarm and its contenders in turn, medians and ratios."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.fresh import in_fresh_process
from benchmarks.keeping import FOLDER, PAGE
from understudy.protocol.manifest import RunManifest

LARGE = "benchmarks/throughput/large.toml"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Folder = Annotated[Path, typer.Option(help="Where the results lie, one JSON file per model.")]


@app.callback()
def throughput() -> None:
    """Tokens per second beside what else could train the same model on the same cores."""


@app.command()
def run(
    source: Annotated[str, typer.Argument(help="Preset or run.toml.")] = LARGE,
    steps: Annotated[int, typer.Option(help="Steps of each run that count.", min=1)] = 8,
    rounds: Annotated[int, typer.Option(help="Runs of each contender, in turn.", min=1)] = 3,
    only: Annotated[str, typer.Option(help="Contenders, separated by commas, besides the swarm.")] = "",
    folder: Folder = FOLDER,
) -> None:
    """Let everybody train the model in turn, and keep the figures of all rounds so far."""
    from benchmarks.origin import Origin
    from benchmarks.throughput.results import SWARM, Contest, write
    from benchmarks.throughput.tables import speed_table
    from understudy.bootstrap.founding import load_manifest

    os.environ.setdefault("HIVEMIND_LOGLEVEL", "CRITICAL")  # of the experts' processes
    manifest = load_manifest(source, None)
    found = contenders(source, manifest, steps)
    chosen = {name: found[name] for name in found if not only or name in {SWARM, *only.split(",")}}
    seconds: dict[str, list[list[float]]] = {name: [] for name in chosen}
    origin = Origin.here()
    for number in range(1, rounds + 1):
        for name, train in chosen.items():
            seconds[name].append(in_fresh_process(train))
            typer.echo(f"round {number}, {name}: " + ", ".join(f"{value:.2f}" for value in seconds[name][-1]), err=True)
        contest = Contest(manifest, seconds, origin)
        write(contest, folder)
    typer.echo(speed_table([contest]))


@app.command()
def report(
    folder: Folder = FOLDER,
    page: Annotated[Path, typer.Option(help="Its tables are brought up to date.")] = PAGE,
) -> None:
    """Write the tables from the results that are there."""
    from benchmarks.page import write_parts
    from benchmarks.throughput.results import read_all
    from benchmarks.throughput.tables import parts

    write_parts(page, parts(read_all(folder)))


def contenders(source: str, manifest: RunManifest, steps: int) -> dict[str, Callable[[], list[float]]]:
    """Who competes, by name: each returns the seconds of its steps behind the warm-up."""
    from benchmarks.throughput import pipelining, remote_experts, swarm, unsplit
    from benchmarks.throughput.results import SWARM

    cores = len(os.sched_getaffinity(0))
    return {
        SWARM: partial(swarm.step_seconds, source, steps),
        "unsplit": partial(unsplit.step_seconds, manifest, steps, cores),
        "GPipe": partial(pipelining.step_seconds, manifest, steps, "GPipe"),
        "1F1B": partial(pipelining.step_seconds, manifest, steps, "1F1B"),
        "RemoteExperts": partial(remote_experts.step_seconds, manifest, steps),
    }


if __name__ == "__main__":
    app()
