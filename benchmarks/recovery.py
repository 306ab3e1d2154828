"""From SIGKILL to the first commit with the new owner, split into its parts.

``python -m benchmarks.recovery --runs 10`` runs that many whole swarms on this machine, one after the
other, each with a spare already waiting when the owner of a stage is killed.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bootstrap.faults import Fault
from bootstrap.found import load_manifest
from bootstrap.local import LocalPlan, LocalSwarm

PARTS = ("detect", "claim", "fetch", "blend", "rejoin")


async def measure(source: str, stage: int, kill_step: int, folder: Path) -> dict[str, float]:
    """One run: seconds of each part and of the whole."""
    steps = kill_step + 5
    plan = LocalPlan(
        source=source,
        manifest=load_manifest(source, steps),
        spares=1,
        faults=(Fault(stage, kill_step),),
        folder=folder,
    )
    board = await LocalSwarm(plan, lambda _: None).run()
    (loss,) = board.losses
    if loss.parts is None or loss.standstill_s is None:
        raise RuntimeError(f"S{stage} was not recovered; see {folder}")
    return {**loss.parts, "total": loss.standstill_s}


def main(
    runs: Annotated[int, typer.Option(help="Whole swarms to run.")] = 10,
    source: Annotated[str, typer.Option(help="Preset or run.toml.")] = "tiny",
    stage: Annotated[int, typer.Option(help="The stage whose owner is killed.")] = 2,
    kill_step: Annotated[int, typer.Option(help="Kill once this step is committed.")] = 25,
    output: Annotated[Path | None, typer.Option(help="Write the raw figures as JSON.")] = None,
) -> None:
    """Measure recoveries and print minimum, median and maximum of every part."""
    console = Console()
    results = []
    for number in range(runs):
        with tempfile.TemporaryDirectory(prefix="understudy-recovery-") as folder:
            result = asyncio.run(measure(source, stage, kill_step, Path(folder)))
        results.append(result)
        console.print(f"run {number + 1}: " + "  ".join(f"{name} {result[name]:.2f}" for name in (*PARTS, "total")))
    table = Table(title=f"Seconds from SIGKILL of S{stage} to the first commit, {source}, {runs} runs")
    for column in ("part", "minimum", "median", "maximum"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name in (*PARTS, "total"):
        values = [result[name] for result in results]
        table.add_row(name, *(f"{value:.2f}" for value in (min(values), statistics.median(values), max(values))))
    console.print(table)
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
