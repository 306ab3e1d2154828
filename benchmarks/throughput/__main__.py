"""``python -m benchmarks.throughput``: the swarm and its contenders in turn, medians and ratios."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from benchmarks.convergence.results import Origin
from benchmarks.throughput import pipelining, remote_experts, swarm, unsplit
from bootstrap.found import load_manifest
from protocol.manifest import RunManifest

LARGE = "benchmarks/throughput/large.toml"
WARM_UP = 2
"""Steps of each run that do not count."""


class Contest(msgspec.Struct, frozen=True):
    """Seconds per step of every contender, one list per round."""

    manifest: RunManifest
    seconds: dict[str, list[list[float]]]
    origin: Origin


def contenders(source: str, manifest: RunManifest) -> dict[str, Callable[[], list[float]]]:
    """Each in processes of its own."""
    cores = len(os.sched_getaffinity(0))
    return {
        "swarm": partial(swarm.step_seconds, source, manifest),
        "unsplit": partial(unsplit.step_seconds, manifest, cores),
        "GPipe": partial(pipelining.step_seconds, manifest, "GPipe"),
        "1F1B": partial(pipelining.step_seconds, manifest, "1F1B"),
        "remote experts": partial(remote_experts.step_seconds, manifest),
    }


def median_s(rounds: list[list[float]]) -> float:
    """The median over all rounds of the steps behind the warm-up."""
    return statistics.median(value for seconds in rounds for value in seconds[WARM_UP:])


def table(contest: Contest) -> str:
    """Milliseconds and tokens per second, and the swarm's speed as a multiple of each contender's."""
    ours = median_s(contest.seconds["swarm"])
    lines = ["| | ms per step | tokens/s | the swarm is as fast |", "|---|---|---|---|"]
    for name, rounds in contest.seconds.items():
        median = median_s(rounds)
        speed = contest.manifest.tokens_per_step / median
        lines.append(f"| {name} | {1000 * median:.0f} | {speed:.0f} | x {median / ours:.2f} |")
    return "\n".join(lines)


def main(
    source: Annotated[str, typer.Option(help="Preset or run.toml.")] = LARGE,
    steps: Annotated[int, typer.Option(help="Steps of each run.", min=WARM_UP + 2)] = 12,
    rounds: Annotated[int, typer.Option(help="Runs of each contender, in turn.", min=1)] = 3,
    only: Annotated[str, typer.Option(help="Contenders, separated by commas, besides the swarm.")] = "",
    output: Annotated[Path | None, typer.Option(help="Write the raw figures as JSON.")] = None,
) -> None:
    """Measure steps per contender and print the table."""
    manifest = load_manifest(source, steps)
    chosen = {
        name: run
        for name, run in contenders(source, manifest).items()
        if not only or name == "swarm" or name in only.split(",")
    }
    seconds: dict[str, list[list[float]]] = {name: [] for name in chosen}
    for number in range(1, rounds + 1):
        for name, run in chosen.items():
            seconds[name].append(_alone(run))
            typer.echo(f"round {number}: {name} {1000 * median_s(seconds[name][-1:]):.0f} ms per step", err=True)
    contest = Contest(manifest, seconds, Origin.here("cpu"))
    if output is not None:
        output.write_bytes(msgspec.json.encode(contest) + b"\n")
    typer.echo(table(contest))


def _alone(run: Callable[[], list[float]]) -> list[float]:
    """In a fresh process, so that no contender finds another one's threads and memory."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(run).result()


if __name__ == "__main__":
    typer.run(main)
