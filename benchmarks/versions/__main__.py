"""``python -m benchmarks.versions BEFORE``: the demo of two checkouts in turn, medians and ratios."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.versions.measuring import Swarm, ratio_line, run_swarm_of

HERE = Path(__file__).resolve().parents[2]


def compare(
    before: Annotated[Path, typer.Argument(help="Another checkout, in which `make setup` was run.")],
    steps: Annotated[int, typer.Option(help="Steps of each swarm.", min=30)] = 60,
    rounds: Annotated[int, typer.Option(help="Swarms of each checkout, in turn.", min=1)] = 5,
) -> None:
    """Run the demo there and here in turn: who begins changes with every round."""
    found: dict[Path, list[Swarm]] = {before.resolve(): [], HERE: []}
    for number in range(rounds):
        for checkout in list(found) if number % 2 == 0 else reversed(found):
            swarm = run_swarm_of(checkout, steps)
            found[checkout].append(swarm)
            typer.echo(
                f"round {number + 1}, {checkout}: {swarm.step_s:.4f} s a step, {swarm.standstill_s:.2f} s", err=True
            )
    old, new = found.values()
    typer.echo(ratio_line("step", [swarm.step_s for swarm in old], [swarm.step_s for swarm in new]))
    typer.echo(ratio_line("standstill", [swarm.standstill_s for swarm in old], [swarm.standstill_s for swarm in new]))


if __name__ == "__main__":
    typer.run(compare)
