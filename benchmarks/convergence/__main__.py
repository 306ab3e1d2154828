"""``python -m benchmarks.convergence run|live|report``: the study of docs/results.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.convergence.results import read_all
from benchmarks.convergence.study import full_scale, preset_scale, quick_scale, run_all, runs

RESULTS = Path("docs/results")
PAGE = Path("docs/results.md")

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
    if folder == RESULTS and (quick or preset):
        raise typer.BadParameter(f"{RESULTS} holds the full study: give another --folder")
    scale = quick_scale() if quick else preset_scale(preset, iterations) if preset else full_scale()
    typer.echo(f"{len(list(runs(scale)))} runs of {scale.iterations} iterations; results in {folder}")
    for result in run_all(scale, folder, jobs, device):
        last = result.validation[-1][1]
        lost = len(result.recoveries)
        typer.echo(f"{result.run.file_name}: {lost} stages lost, held-out loss {last:.3f}, {result.seconds:.0f} s")


@app.command()
def live(
    folder: Folder = RESULTS,
    steps: Annotated[int, typer.Option(min=20, help="Steps of both runs.")] = 300,
    percent: Annotated[int, typer.Option(help="Stages lost per hour in the second run: 5, 10 or 16.")] = 16,
    schedule: Annotated[int, typer.Option(help="Seed of the failures. 5 has five kills; 4.8 are to be expected.")] = 5,
) -> None:
    """Train two live swarms of preset tiny, one in peace and one with peers killed."""
    from benchmarks.convergence.live import kills, replayed, run_live, write_live
    from understudy.bootstrap.founding import load_manifest

    manifest = load_manifest("tiny", steps)
    spares = len(kills(percent, schedule, steps, manifest.last_stage))
    calm, churned = (run_live(manifest, rate, schedule, spares) for rate in (0, percent))
    write_live(replayed(calm, manifest), replayed(churned, manifest), folder)
    typer.echo(f"{len(churned.recoveries)} killed; last losses {calm.losses[-1]:.3f} and {churned.losses[-1]:.3f}")


@app.command()
def report(
    folder: Folder = RESULTS,
    page: Annotated[Path, typer.Option(help="Its tables are brought up to date.")] = PAGE,
    pictures: Annotated[Path, typer.Option(help="Where the pictures go.")] = PAGE.parent,
) -> None:
    """Write tables and pictures from the results that are there."""
    from benchmarks.convergence.live import read_live
    from benchmarks.convergence.plots import draw_all
    from benchmarks.convergence.report import write_page

    results = read_all(folder)
    if not any(run.strategy == "none" for run in results):
        typer.echo(f"{folder} has no result of a run without failures: make some with 'run' first", err=True)
        raise typer.Exit(1)
    live = read_live(folder)
    write_page(page, results, live)
    for path in draw_all(results, live, pictures):
        typer.echo(path)


if __name__ == "__main__":
    app()
