"""``understudy generate``: let an exported model write."""

from __future__ import annotations

import asyncio
import io
import math
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from understudy.node.cli import run
from understudy.node.process import EXIT_DONE, StopSwitch
from understudy.protocol.errors import SettingsError, StorageError

SEED_END = 1 << 63
"""What a generator of random numbers takes."""


def read_prompt(given: str) -> str:
    """What was typed, as UTF-8 whatever the locale. Raises `SettingsError`."""
    try:
        return os.fsencode(given).decode("utf-8")
    except UnicodeError as error:
        raise SettingsError("--prompt is not UTF-8 text: type it anew, or choose a terminal with UTF-8") from error


def say(text: str) -> None:
    """Write a piece of the text, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def generate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that 'understudy export' wrote.")],
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "def ",
    tokens: Annotated[int, typer.Option(help="Bytes to write.", min=1, max=1 << 20)] = 200,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest byte; higher: bolder.", min=0)] = 0.8,
    seed: Annotated[
        int, typer.Option(help="Of the random choices: the same seed, the same text.", min=-SEED_END, max=SEED_END - 1)
    ] = 0,
    threads: Annotated[int, typer.Option(help="Arithmetic threads; 0 means all cores.", min=0)] = 0,
) -> None:
    """Continue a text with an exported model, on this machine's CPU."""

    async def main(switch: StopSwitch) -> int:
        from understudy.node.config import choose_threads
        from understudy.node.export.generation import ExportedModel, Wish, use_threads

        if not math.isfinite(temperature):
            raise SettingsError(f"--temperature {temperature}: give a number from 0 on, such as 0.8")
        text = read_prompt(prompt)
        use_threads(choose_threads(threads))
        model = ExportedModel(folder)
        switch.hand_over(lambda: None)
        if isinstance(sys.stdout, io.TextIOWrapper):  # whatever the locale: this is what the model wrote
            sys.stdout.reconfigure(encoding="utf-8", errors="replace")
        try:
            say(text)
            for piece in model.write(text, Wish(tokens, temperature, seed)):
                say(piece)
                await asyncio.sleep(0)  # this is when Ctrl-C is heard
                if switch.is_pressed:
                    break
            say("\n")
        except StorageError as error:
            if not isinstance(error.__cause__, BrokenPipeError):
                raise
        return EXIT_DONE

    run(main)
