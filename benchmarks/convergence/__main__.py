"""``python -m benchmarks.convergence run|report``: the study of docs/results.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.convergence.study import full_scale, preset_scale, quick_scale, run_all, runs

RESULTS = Path("docs/results")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Folder = Annotated[Path, typer.Option(help="Where the results lie, one JSON file per run.")]


@app.callback()
def study() -> None:
    """What churn costs under each way of recovering."""


@app.command()
def run(
    folder: Folder = RESULTS,
    jobs: Annotated[int, typer.Option(help="Runs side by side, each on one thread.", min=1)] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke test of minutes.")] = False,
    preset: Annotated[str | None, typer.Option(help="A preset instead of the small model, for GPUs.")] = None,
    iterations: Annotated[int, typer.Option(help="Iterations of each run of a preset.", min=1)] = 1000,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Carry out the runs whose results are missing. Stop it at will: what was finished is kept."""
    scale = quick_scale() if quick else preset_scale(preset, iterations) if preset else full_scale()
    typer.echo(f"{len(list(runs(scale)))} runs of {scale.iterations} iterations; results in {folder}")
    for result in run_all(scale, folder, jobs, device):
        last = result.validation[-1][1]
        lost = len(result.recoveries)
        typer.echo(f"{result.key.file_name}: {lost} stages lost, held-out loss {last:.3f}, {result.seconds:.0f} s")


if __name__ == "__main__":
    app()
