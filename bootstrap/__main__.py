"""The ``understudy`` command. ``python -m understudy.bootstrap`` is ``understudy bootstrap``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from understudy.bootstrap.invite_commands import invite, revoke
from understudy.node.__main__ import node
from understudy.node.cli import Multiaddrs, default_identity, option, parse_listen, run, run_command, run_program
from understudy.node.export import command as export_command
from understudy.node.export.generate_command import generate
from understudy.node.p2p.addresses import JoinString
from understudy.node.process import EXIT_DONE, StopSwitch
from understudy.protocol.manifest import PROTOCOL_VERSION
from understudy.protocol.presets import PRESETS

app = typer.Typer(
    name="understudy",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        print(f"understudy {version('understudy')}, protocol {PROTOCOL_VERSION}")  # noqa: T201 - the option's result
        raise typer.Exit(EXIT_DONE)


@app.callback()
def understudy(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    """Train a language model with volunteers: when an actor vanishes mid-play, the understudy steps in."""


_SOURCE = f"A preset ({', '.join(PRESETS)}) or the path of a run.toml."


def bootstrap(  # noqa: PLR0913, PLR0917 - one parameter per option
    source: Annotated[
        str | None,
        typer.Argument(metavar="[PRESET|run.toml]", help=f"{_SOURCE} None goes on with the run in --dir."),
    ] = None,
    host_maddr: Annotated[Multiaddrs | None, option("HOST_MADDR", "Multiaddr to listen on. Repeatable.")] = None,
    announce_maddr: Annotated[Multiaddrs | None, option("ANNOUNCE_MADDR", "Multiaddr that others should dial.")] = None,
    no_relay: Annotated[bool, option("NO_RELAY", "Do not let others be reached through the seed.")] = False,
    identity: Annotated[Path | None, option("IDENTITY", "Key file of the founder; made if missing.")] = None,
    dir: Annotated[
        Path | None,
        typer.Option(help="Keep manifest.json and join.txt here; again with the same folder is the same run."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="End the run after this many steps.")] = None,
    open: Annotated[bool, typer.Option("--open", help="Let in whoever finds the run, without an invite.")] = False,
    initial_weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Begin with an export's weights instead of the seed's draw.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say everything.")] = False,
    stop_with_stdin: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Found a run: print its join string and be the first peer of its DHT."""

    async def main(switch: StopSwitch) -> int:
        from understudy.bootstrap.begin import Founding, begin
        from understudy.bootstrap.founding import check_founder, keep_founding
        from understudy.bootstrap.inviting import open_door, whom_it_admits
        from understudy.bootstrap.seed import SeedPlan, serve_seed
        from understudy.node.data.prefetch import off_the_loop
        from understudy.node.dht.config import SwarmConfig
        from understudy.node.dht.hivemind_dht import quiet_libraries
        from understudy.node.p2p.identity import Identity
        from understudy.node.ui.telemetry import configure_logging
        from understudy.protocol.reach.sentences import whom_it_reaches

        configure_logging(is_verbose=verbose)
        quiet_libraries(is_verbose=verbose)
        wish = Founding(source, steps, dir, initial_weights, is_open=open)
        manifest, initial = await off_the_loop(lambda: begin(wish))
        hosts, announced = parse_listen(host_maddr or [], announce_maddr or [])
        founder = Identity.load_or_create(identity or default_identity("founder"))
        if initial is not None:
            manifest = initial.entered(manifest, founder.peer_id)
        if dir is not None:
            check_founder(dir, manifest, founder)
        admission = open_door(manifest, founder, dir)
        is_stopped = asyncio.Event()

        def announce(join: JoinString) -> None:
            if dir is not None:
                keep_founding(dir, manifest, join)
            print(join, flush=True)  # noqa: T201 - the command's result
            print(f"{whom_it_admits(join.ticket)} Ctrl-C stops.", file=sys.stderr)  # noqa: T201
            if local_only := whom_it_reaches(join.addresses):
                print(local_only, file=sys.stderr)  # noqa: T201
            switch.hand_over(is_stopped.set)

        run_id = manifest.run_id()
        config = SwarmConfig(host_maddrs=hosts, announce_maddrs=announced, may_relay=not no_relay, run_id=run_id)
        await serve_seed(manifest, founder, config, SeedPlan(announce, initial, admission), is_stopped)
        return EXIT_DONE

    run(main, stops_with_stdin=stop_with_stdin)


DEMO_STEPS = 40


def local(  # noqa: PLR0913, PLR0917 - one parameter per option
    source: Annotated[str | None, typer.Argument(metavar="[PRESET|run.toml]", help=_SOURCE)] = None,
    steps: Annotated[
        int | None, typer.Option(help=f"Steps to train; by default the run's own, or {DEMO_STEPS}.")
    ] = None,
    spares: Annotated[int | None, typer.Option(help="Peers that wait for a stage; 1 by default.")] = None,
    kill: Annotated[list[str] | None, typer.Option(metavar="STAGE@STEP", help="SIGKILL an owner.")] = None,
    pause: Annotated[
        list[str] | None, typer.Option(metavar="STAGE@STEP:SECONDS", help="SIGSTOP an owner for a while.")
    ] = None,
    dir: Annotated[Path | None, typer.Option(help="Where events, logs and identities go.")] = None,
    export: Annotated[Path | None, typer.Option(help="Write the weights after the last step to this folder.")] = None,
    initial_weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Begin with an export's weights instead of the seed's draw.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device of every node.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Arithmetic threads of every node.")] = 1,
) -> None:
    """Run a whole swarm on this machine. Without arguments: preset tiny, one spare, one peer killed."""

    async def main(switch: StopSwitch) -> int:
        from understudy.bootstrap.local.screen import LocalArguments, run_local

        arguments = LocalArguments(
            source=source or "tiny",
            is_demo=source is None and not kill and not pause,
            steps=steps,
            default_steps=DEMO_STEPS,
            spares=1 if spares is None else spares,
            kills=tuple(kill or ()),
            pauses=tuple(pause or ()),
            folder=dir,
            device=device,
            threads=threads,
            export_folder=export,
            initial_weights=initial_weights,
        )
        return await run_local(arguments, switch)

    run(main)


def status(
    join: Annotated[str, option("JOIN", "The join string of any peer of the swarm, or @FILE.")],
    watch: Annotated[bool, typer.Option("--watch", help="Go on reading until Ctrl-C.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object; with --watch one a line.")] = False,
) -> None:
    """Show a swarm's stages, spares, progress and what it waits for, without taking part."""

    async def main(switch: StopSwitch) -> int:
        from understudy.bootstrap.status import StatusArguments, run_status
        from understudy.node.dht.hivemind_dht import quiet_libraries

        quiet_libraries(is_verbose=False)
        return await run_status(StatusArguments(join, is_watching=watch, is_json=json), switch)

    run(main)


def doctor(
    join: Annotated[str | None, option("JOIN", "A join string, or @FILE: check the way to this swarm too.")] = None,
    host_maddr: Annotated[Multiaddrs | None, option("HOST_MADDR", "Where the node is to listen. Repeatable.")] = None,
    identity: Annotated[Path | None, option("IDENTITY", "Key file that the node is to use.")] = None,
    events: Annotated[Path | None, option("EVENTS", "Event file that the node is to write.")] = None,
) -> None:
    """Check whether this machine can host a stage, and what to do if not."""

    async def main(_: StopSwitch) -> int:
        from understudy.bootstrap.doctor import DoctorArguments, run_doctor
        from understudy.node.join_file import read_join

        hosts, _announced = parse_listen(host_maddr or [], [])
        known = await read_join(join, 0) if join is not None else None
        files = {"--identity": identity or default_identity("node")} | ({"--events": events} if events else {})
        return await run_doctor(DoctorArguments(known, hosts, files))

    run(main)


app.command()(local)
app.command()(bootstrap)
app.command()(node)
app.command()(invite)
app.command()(revoke)
app.command()(status)
app.command()(doctor)
app.command()(export_command.export)
app.command()(generate)


def main() -> None:
    """The console script."""
    run_program(app)


if __name__ == "__main__":
    run_command(bootstrap)
