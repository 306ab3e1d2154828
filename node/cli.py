"""What our command lines share: options, checks of what was typed, and the program around a command.

The event loop is chosen here, uvloop, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
import uvloop

from understudy.node.files.descriptors import open_standard_descriptors
from understudy.node.p2p.addresses import parse_multiaddr
from understudy.node.process import Main, run_guarded, supervise
from understudy.protocol.errors import SettingsError

Multiaddrs = list[str]


def option(variable: str, help: str, min: float | None = None) -> Any:
    """An option that the environment variable UNDERSTUDY_<variable> gives too: containers are set up that way."""
    return typer.Option(help=help, envvar=f"UNDERSTUDY_{variable}", show_envvar=False, min=min)


def run(main: Main, *, stops_with_stdin: bool = False) -> None:
    """Run an asynchronous main in uvloop and exit with its status."""
    raise typer.Exit(uvloop.run(supervise(main, stops_with_stdin=stops_with_stdin)))


def default_identity(name: str) -> Path:
    """Where a person's identities lie: the XDG data folder, made if it is not there."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    folder = Path(base) / "understudy"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be made ({error.strerror}): give a key file with --identity") from error
    return folder / f"{name}.key"


def parse_listen(host_maddrs: Multiaddrs, announce_maddrs: Multiaddrs) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Check the addresses to listen on and to announce. Raises `SettingsError`."""
    hosts = tuple(parse_multiaddr(text, needs_peer_id=False, accepts_port_zero=True) for text in host_maddrs)
    announced = tuple(parse_multiaddr(text, needs_peer_id=False) for text in announce_maddrs)
    return hosts or ("/ip4/0.0.0.0/tcp/0",), announced


def run_command(command: Callable[..., None]) -> None:
    """Run one command as a program. A bug shows a plain traceback, without the values of variables."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_program(app)


def run_program(app: typer.Typer) -> None:
    """Run a command line as a program, whichever standard descriptors it was given."""
    open_standard_descriptors()
    run_guarded(app)
