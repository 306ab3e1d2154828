"""``understudy generate``: let an exported model write."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from understudy.node.__main__ import run
from understudy.node.process import EXIT_DONE, StopSwitch


def generate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that 'understudy export' wrote.")],
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "def ",
    tokens: Annotated[int, typer.Option(help="Bytes to write.", min=1, max=1 << 20)] = 200,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest byte; higher: bolder.", min=0)] = 0.8,
    seed: Annotated[int, typer.Option(help="Of the random choices: the same seed, the same text.")] = 0,
    threads: Annotated[int, typer.Option(help="Arithmetic threads; 0 means all cores.", min=0)] = 0,
) -> None:
    """Continue a text with an exported model, on this machine's CPU."""

    async def main(switch: StopSwitch) -> int:
        from understudy.node.config import choose_threads
        from understudy.node.generation import ExportedModel, Wish, use_threads

        use_threads(choose_threads(threads))
        model = ExportedModel(folder)
        switch.hand_over(lambda: None)
        sys.stdout.write(prompt)
        for piece in model.write(prompt, Wish(tokens, temperature, seed)):
            sys.stdout.write(piece)
            sys.stdout.flush()
            await asyncio.sleep(0)  # this is when Ctrl-C is heard
            if switch.is_pressed:
                break
        sys.stdout.write("\n")
        return EXIT_DONE

    run(main)
