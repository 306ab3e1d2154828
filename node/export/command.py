"""``understudy export``: the weights of a running swarm as a folder that Hugging Face's libraries load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from understudy.node.cli import Multiaddrs, option, parse_listen, run, run_command
from understudy.node.data.access import TextAccess, access_by_options
from understudy.node.join_file import read_join
from understudy.node.p2p.addresses import JoinString
from understudy.node.process import EXIT_DONE, EXIT_FAILED, StopSwitch
from understudy.protocol.errors import SettingsError
from understudy.protocol.export.actions import ExportWish
from understudy.protocol.export.lease import LEASE_S, LINGER_S


@dataclass(frozen=True, slots=True)
class ExportArguments:
    """The command line of an export."""

    folder: Path
    join: JoinString
    is_last: bool
    host_maddrs: tuple[str, ...]
    announce_maddrs: tuple[str, ...]
    wait_s: float
    access: TextAccess


async def run_export(arguments: ExportArguments, switch: StopSwitch) -> int:
    """Join the swarm as a guest, export, leave."""
    from rich.console import Console

    from understudy.node.admission.door import Door
    from understudy.node.compute.room import measure_room
    from understudy.node.dht.config import SwarmConfig
    from understudy.node.dht.p2p_node import P2PNode
    from understudy.node.export.exporter import ExportRun
    from understudy.node.export.folder import ExportFolder
    from understudy.node.export.view import ExportView
    from understudy.node.joining import obtain_manifest
    from understudy.node.p2p.identity import Identity

    console = Console(stderr=True)
    with ExportFolder.reserved(arguments.folder, arguments.join.digest) as folder:
        if folder.is_whole:
            return told_of_success(folder.target)
        config = SwarmConfig(
            host_maddrs=arguments.host_maddrs,
            announce_maddrs=arguments.announce_maddrs,
            initial_peers=arguments.join.addresses,
            run_id=arguments.join.run_id,
            join_patience_s=arguments.wait_s,
            may_relay=False,
            door=Door.for_guest(arguments.join),
        )
        async with P2PNode.open(config, Identity.load_or_create(folder.identity_path)) as p2p:
            manifest, _ = await obtain_manifest(p2p, arguments.join)
            if arguments.is_last and not manifest.step.total_steps:
                raise SettingsError("--last: this run has no last step, it goes on until it is stopped; leave it out")
            if objection := measure_room("cpu").objection_to_export(manifest):
                raise SettingsError(objection)
            found = folder.resume(manifest)
            wish = ExportWish(arguments.is_last, *found) if found else ExportWish(arguments.is_last)
            with ExportView(manifest, console) as view:
                export = ExportRun(p2p, manifest, folder, wish)
                export.on_news, export.access = view.note, arguments.access
                switch.hand_over(export.stop)
                whole = await export.run()
            has_shards = folder.has_shards
    if whole is None:
        console.print(told_of_interruption(has_shards=has_shards), highlight=False, soft_wrap=True)
        return EXIT_FAILED
    return told_of_success(whole)


def told_of_success(whole: Path) -> int:
    """Say where the model is."""
    from rich.console import Console

    Console().print(f"The model is in {whole}", highlight=False, markup=False, soft_wrap=True)
    return EXIT_DONE


def told_of_interruption(*, has_shards: bool) -> str:
    """What is left of an export that was interrupted."""
    if not has_shards:
        return "Interrupted before any stage had arrived: nothing is kept."
    return (
        f"Interrupted. The same command goes on with the same step if it is started within {LEASE_S:.0f} s, or "
        f"{LINGER_S:.0f} s if the run has ended."
    )


def export(  # noqa: PLR0913, PLR0917 - one parameter per option
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write; made if missing.")],
    join: Annotated[str, option("JOIN", "The join string of the run, or @FILE.")],
    last: Annotated[
        bool, typer.Option("--last", help="The weights after the run's last step: wait for it, keep them from leaving.")
    ] = False,
    host_maddr: Annotated[Multiaddrs | None, option("HOST_MADDR", "Multiaddr to listen on. Repeatable.")] = None,
    announce_maddr: Annotated[Multiaddrs | None, option("ANNOUNCE_MADDR", "Multiaddr that others should dial.")] = None,
    tokenizer: Annotated[
        Path | None, option("TOKENIZER", "The run's tokenizer.json, if it is a file of the founder's.")
    ] = None,
    allow_hub: Annotated[
        bool, option("ALLOW_HUB", "Fetch the run's tokenizer from the Hugging Face hub, if it is there.")
    ] = False,
    wait: Annotated[float, option("WAIT", "Seconds to wait for the join file and for the swarm to answer.", min=0)] = 0,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say everything.")] = False,
    stop_with_stdin: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Fetch the weights of one step from the peers that train them, as a folder for Hugging Face's libraries."""

    async def main(switch: StopSwitch) -> int:
        hosts, announced = parse_listen(host_maddr or [], announce_maddr or [])
        joined = await read_join(join, wait)
        access = access_by_options((), tokenizer, may_ask_hub=allow_hub)
        arguments = ExportArguments(folder, joined, last, hosts, announced, wait, access)
        from understudy.node.dht.hivemind_dht import quiet_libraries
        from understudy.node.ui.telemetry import configure_logging

        configure_logging(is_verbose=verbose, is_quiet=not verbose)
        quiet_libraries(is_verbose=verbose)
        return await run_export(arguments, switch)

    run(main, stops_with_stdin=stop_with_stdin)


if __name__ == "__main__":
    run_command(export)
