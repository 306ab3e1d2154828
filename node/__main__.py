"""``understudy node`` and ``python -m understudy.node``: run one volunteer's node."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from understudy.node.cli import Multiaddrs, default_identity, option, parse_listen, run, run_command
from understudy.node.data.access import TextAccess, access_by_options
from understudy.node.join_file import read_join
from understudy.node.p2p.addresses import JoinString, told_to_others
from understudy.node.process import EXIT_DONE, StopSwitch, on_hangup
from understudy.protocol.errors import SettingsError
from understudy.protocol.ids import DRIVER_STAGE

if TYPE_CHECKING:
    from understudy.node.ui.display import Display

JOIN_ADDRESSES = 4
"""Of a node's own addresses, as many go into the join string it offers."""


def parse_stage(text: str) -> int | None:
    """``auto`` or a stage number. Raises `SettingsError`."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise SettingsError(f"--stage {text!r}: use 'auto' or a stage number such as 2")
    return int(text)


def way_in(join: JoinString, addresses: Sequence[str]) -> str:
    """How others join through a node: the join string; of an invited run, whose invite is a secret, its addresses."""
    told = told_to_others(addresses)[:JOIN_ADDRESSES]
    if join.ticket is None:
        return str(replace(join, addresses=told))
    return f"the addresses in a join string may be {','.join(told)}"


def possible_stages(wanted: int | None, to_driving: str | None, to_blocks: str | None) -> tuple[str, ...]:
    """What to say of the stages that this node cannot take. Raises `SettingsError` if none is left, or not the wanted.

    ``to_driving``, ``to_blocks``: what stands against S0 and against a block stage, if anything.
    """
    if wanted is not None and (refusal := to_driving if wanted == DRIVER_STAGE else to_blocks):
        raise SettingsError(f"--stage {wanted}: {refusal}")
    if to_driving and to_blocks:
        raise SettingsError(f"this machine can take no stage of this run: {to_blocks}; {to_driving}")
    if to_driving:
        return (f"this node can take any stage but S0: {to_driving}",)
    return (f"this node can take no stage but S0: {to_blocks}",) if to_blocks else ()


@dataclass(frozen=True, slots=True)
class NodeArguments:
    """The command line of a node, parsed as far as no heavy import is needed."""

    join: JoinString
    stage: int | None
    host_maddrs: tuple[str, ...]
    announce_maddrs: tuple[str, ...]
    is_behind_nat: bool
    may_relay: bool
    identity: Path
    device: str
    threads: int
    events: Path | None
    text: TextAccess
    wait_s: float
    """How long the swarm may be out of reach at the start."""


async def serve(arguments: NodeArguments, switch: StopSwitch, display: Display) -> int:
    """Join the run and serve it until it is done or somebody asks us to stop."""
    from understudy.node.admission.door import Door
    from understudy.node.compute.room import measure_room
    from understudy.node.config import NodeConfig, choose_device, choose_threads
    from understudy.node.data.data_check import objection_to_driving
    from understudy.node.data.prefetch import off_the_loop
    from understudy.node.dht.config import SwarmConfig
    from understudy.node.joining import obtain_manifest
    from understudy.node.p2p.identity import Identity
    from understudy.node.reach.opening import open_by_reachability
    from understudy.node.runtime import Node
    from understudy.node.ui.consent import with_consent
    from understudy.node.ui.telemetry import logger
    from understudy.protocol.wire.contact import is_private

    config = NodeConfig(
        join=arguments.join,
        identity_path=arguments.identity,
        stage=arguments.stage,
        host_maddrs=arguments.host_maddrs,
        announce_maddrs=arguments.announce_maddrs,
        is_behind_nat=arguments.is_behind_nat,
        may_relay=arguments.may_relay,
        device=choose_device(arguments.device),
        threads=choose_threads(arguments.threads),
        events_path=arguments.events,
        text=arguments.text,
    )
    door = Door.for_guest(config.join, must_train=True)
    identity = Identity.load_or_create(config.identity_path)
    swarm_config = SwarmConfig(
        host_maddrs=config.host_maddrs,
        announce_maddrs=config.announce_maddrs,
        initial_peers=config.join.addresses,
        run_id=config.join.run_id,
        is_behind_nat=config.is_behind_nat,
        may_relay=config.may_relay,
        join_patience_s=arguments.wait_s,
        door=door,
    )
    async with open_by_reachability(swarm_config, identity) as (p2p, lookout):
        manifest, signed_manifest = await obtain_manifest(p2p, config.join)
        if config.stage is not None and config.stage > manifest.last_stage:
            raise SettingsError(f"--stage {config.stage}: this run has the stages 0 to {manifest.last_stage}")
        room = measure_room(config.device)
        objection, too_large = room.objection(manifest, DRIVER_STAGE), room.objection(manifest, DRIVER_STAGE + 1)
        if objection is None:
            if config.stage in (None, DRIVER_STAGE):
                config = replace(config, text=await with_consent(config.text, manifest.data))
            objection = await off_the_loop(lambda: objection_to_driving(manifest, config.text))
        for reason in possible_stages(config.stage, objection, too_large):
            logger.warning("%s", reason)
        config = replace(config, can_hold_blocks=too_large is None)
        if not is_private(p2p.reachability):
            logger.info("others can join through this node too: %s", way_in(config.join, p2p.addresses))
        node = Node(p2p, signed_manifest, config, can_drive=objection is None, display=display)
        node.lookout = lookout
        switch.hand_over(node.stop)
        await node.run()
    return EXIT_DONE


def node(  # noqa: PLR0913, PLR0917 - one parameter per option
    join: Annotated[str, option("JOIN", "The join string that 'understudy bootstrap' printed, or @FILE.")],
    stage: Annotated[str, option("STAGE", "The stage to take if it is free, or 'auto'.")] = "auto",
    host_maddr: Annotated[Multiaddrs | None, option("HOST_MADDR", "Multiaddr to listen on. Repeatable.")] = None,
    announce_maddr: Annotated[Multiaddrs | None, option("ANNOUNCE_MADDR", "Multiaddr that others should dial.")] = None,
    behind_nat: Annotated[
        bool, typer.Option("--behind-nat", help="Nobody can dial this machine: be reached through relays.")
    ] = False,
    no_relay: Annotated[bool, option("NO_RELAY", "Do not let others be reached through this node.")] = False,
    identity: Annotated[Path | None, option("IDENTITY", "Key file of this peer; made if missing.")] = None,
    device: Annotated[str, option("DEVICE", "auto, cpu, cuda, cuda:1, ...")] = "auto",
    threads: Annotated[int, option("THREADS", "Arithmetic threads; 0 means all cores.")] = 0,
    events: Annotated[Path | None, option("EVENTS", "Append events as JSON lines to this file.")] = None,
    data: Annotated[
        list[Path] | None,
        option("DATA", "Where the run's text lies here, if the founder gave it to you. Repeatable."),
    ] = None,
    tokenizer: Annotated[
        Path | None, option("TOKENIZER", "The run's tokenizer.json, if the founder gave it to you.")
    ] = None,
    allow_hub: Annotated[
        bool, option("ALLOW_HUB", "Read from the Hugging Face hub what the founder chose there.")
    ] = False,
    wait: Annotated[float, option("WAIT", "Seconds to wait for the join file and for the swarm to answer.", min=0)] = 0,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say everything.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say only what goes wrong.")] = False,
    stop_with_stdin: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Join a swarm and host one stage of its model."""

    async def main(switch: StopSwitch) -> int:
        hosts, announced = parse_listen(host_maddr or [], announce_maddr or [])
        arguments = NodeArguments(
            join=await read_join(join, wait),
            stage=parse_stage(stage),
            host_maddrs=hosts,
            announce_maddrs=announced,
            is_behind_nat=behind_nat,
            may_relay=not no_relay,
            identity=identity or default_identity("node"),
            device=device,
            threads=threads,
            events=events,
            text=access_by_options(data or (), tokenizer, may_ask_hub=allow_hub),
            wait_s=wait,
        )
        from understudy.node.ui.display import ConsoleHandler, Display
        from understudy.node.ui.telemetry import configure_logging, logger
        from understudy.node.ui.terminal import open_terminal

        console = Console(file=open_terminal(sys.stderr), stderr=True)
        with Display(console, is_quiet=quiet) as display, on_hangup(display.lose_terminal):
            handler = ConsoleHandler(console, is_verbose=verbose) if display.is_live else None
            configure_logging(is_verbose=verbose, is_quiet=quiet, handler=handler)
            logger.info("looking for the run %s at %s", arguments.join.run_id, ", ".join(arguments.join.addresses))
            from understudy.node.dht.hivemind_dht import quiet_libraries  # this takes seconds on a busy machine

            quiet_libraries(is_verbose=verbose)
            return await serve(arguments, switch, display)

    run(main, stops_with_stdin=stop_with_stdin)


def main() -> None:
    """``python -m understudy.node``: the command `node` as a program."""
    run_command(node)


if __name__ == "__main__":
    main()
