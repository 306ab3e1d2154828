"""``python -m benchmarks.wire run|report``: "The wire" of docs/performance.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import uvloop

from benchmarks.keeping import FOLDER, PAGE, keep
from benchmarks.page import write_parts
from benchmarks.wire.results import Transfer, cpu_table, missed, read, wire_table

RESULT = FOLDER / "wire.json"
SIZES_KIB = [64, 1024, 4096, 16384]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Result = Annotated[Path, typer.Option(help="The JSON file of the raw figures.")]


@app.callback()
def wire() -> None:
    """Activations from peer to peer, against a bare hivemind stream."""


@app.command()
def run(
    result: Result = RESULT,
    repetitions: Annotated[int, typer.Option(help="Per size and way; the ways take turns.", min=1)] = 15,
    megabytes: Annotated[int, typer.Option(help="Sent in each repetition.", min=1)] = 64,
    kib: Annotated[list[int] | None, typer.Option(help="Tensor size. Repeatable.", min=1)] = None,
) -> None:
    """Measure, with a quiet machine, and keep every repetition."""
    from benchmarks.wire.measuring import measure

    def tell(transfer: Transfer) -> None:
        typer.echo(f"{transfer.tensor_bytes >> 10} KiB, {transfer.way}: {transfer.megabytes_per_s:.0f} MB/s", err=True)

    sizes = [size << 10 for size in kib or SIZES_KIB]
    found = uvloop.run(measure(sizes, repetitions, megabytes * 1_000_000, tell))
    keep(found, result)
    typer.echo(wire_table(found) + "\n\n" + cpu_table(found))
    if missed(found):
        typer.echo(f"The target is missed at {missed(found)} bytes.", err=True)


@app.command()
def report(
    result: Result = RESULT,
    page: Annotated[Path, typer.Option(help="Its tables are brought up to date.")] = PAGE,
) -> None:
    """Write the tables of the page from the figures."""
    from benchmarks.origin import origin_table

    found = read(result)
    write_parts(
        page, {"wire": wire_table(found), "wire-cpu": cpu_table(found), "wire-origin": origin_table([found.origin])}
    )


if __name__ == "__main__":
    app()
