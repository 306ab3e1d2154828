"""``understudy invite`` and ``understudy revoke``: for the founder of a run, in whose folder they work."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from understudy.node.cli import default_identity, option, run
from understudy.node.process import EXIT_DONE, StopSwitch
from understudy.protocol.admission.invite import NEVER
from understudy.protocol.errors import NetworkError, SettingsError

_UNITS_S = {"m": 60, "h": 3600, "d": 86400}
_DIR = "The folder of the run, as given to bootstrap."
_IDENTITY = "Key file of the founder."


def parse_expiry(text: str, now: float) -> int:
    """Unix seconds of ``90m``, ``12h`` or ``7d`` from now; ``never`` is 0. Raises `SettingsError`."""
    if text == "never":
        return NEVER
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text)
    if found is None:
        raise SettingsError(f"--expires {text!r}: write it like 90m, 12h or 7d, or 'never'")
    return int(now) + int(found[1]) * _UNITS_S[found[2]]


def invite(
    dir: Annotated[Path, typer.Option(help=_DIR)],
    label: Annotated[str | None, typer.Option(help="What to revoke it by; a number by default.")] = None,
    expires: Annotated[str, typer.Option(help="How long it lets in: 90m, 12h, 7d, or never.")] = "never",
    role: Annotated[
        Literal["volunteer", "observer"], typer.Option(help="An observer looks and exports, and holds no stage.")
    ] = "volunteer",
    identity: Annotated[Path | None, option("IDENTITY", _IDENTITY)] = None,
) -> None:
    """Print one more join string of a run that you founded."""

    async def main(_: StopSwitch) -> int:
        from understudy.bootstrap.inviting import Founded, whom_it_admits
        from understudy.node.p2p.identity import Identity

        founded = Founded(dir, Identity.load(identity or default_identity("founder")))
        join = founded.invite(label or founded.free_label(role), role, parse_expiry(expires, time.time()))
        print(join, flush=True)  # noqa: T201 - the command's result
        print(whom_it_admits(join.ticket), file=sys.stderr)  # noqa: T201
        return EXIT_DONE

    run(main)


def revoke(
    who: Annotated[str, typer.Argument(metavar="LABEL|PEER", help="An invite's label, or a PeerID.")],
    dir: Annotated[Path, typer.Option(help=_DIR)],
    identity: Annotated[Path | None, option("IDENTITY", _IDENTITY)] = None,
) -> None:
    """Take an invite back, with all who came in by it, or put out one peer."""

    async def main(_: StopSwitch) -> int:
        from understudy.bootstrap.inviting import Founded
        from understudy.node.dht.hivemind_dht import quiet_libraries
        from understudy.node.p2p.identity import Identity

        quiet_libraries(is_verbose=False)
        founded = Founded(dir, Identity.load(identity or default_identity("founder")))
        revoked = founded.revoke(who)
        try:
            told = await founded.tell(revoked)
        except NetworkError as error:
            raise NetworkError(
                f"{who} is revoked, and the seed will say so; the swarm was not told: {error}"
            ) from error
        print(f"{who} is revoked; {told} peers were told.")  # noqa: T201 - the command's result
        return EXIT_DONE

    run(main)
