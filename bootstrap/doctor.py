"""``understudy doctor``: is this machine fit for a node, and can it reach the swarm?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from understudy.node.doctor.machine import (
    Finding,
    check_accelerator,
    check_cores,
    check_disk,
    check_memory,
    check_packages,
    check_python,
)
from understudy.node.p2p.addresses import JoinString
from understudy.node.process import EXIT_DONE, EXIT_FAILED
from understudy.protocol.printable import printable

_STYLES = {"ok": "green", "note": "yellow", "bad": "bold red"}


@dataclass(frozen=True, slots=True)
class DoctorArguments:
    """The command line of ``understudy doctor``."""

    join: JoinString | None
    host_maddrs: tuple[str, ...]
    files: dict[str, Path]
    """What the node would write, by the option that chooses it."""


async def run_doctor(arguments: DoctorArguments) -> int:
    """Say what each check found, as soon as it is known. The exit status is 0 if nothing is bad."""
    console = Console()
    is_fit = True
    async for finding in examine(arguments):
        verdict = (f"{finding.verdict:<6}", _STYLES[finding.verdict])
        console.print(
            Text.assemble(verdict, f"{finding.subject:<13}", printable(finding.text)), soft_wrap=True, highlight=False
        )
        is_fit = is_fit and finding.verdict != "bad"
    return EXIT_DONE if is_fit else EXIT_FAILED


async def examine(arguments: DoctorArguments) -> AsyncIterator[Finding]:
    """All checks, the cheap ones first. What stands on a failed one is left out."""
    yield check_python()
    packages = check_packages()
    yield packages
    yield check_cores()
    yield check_disk(arguments.files)
    if packages.verdict == "bad":
        return
    from understudy.node.config import describe_accelerator
    from understudy.node.dht.hivemind_dht import P2PD
    from understudy.node.doctor.network import check_daemon, check_port, check_seed, visit

    yield check_accelerator(describe_accelerator())
    port = check_port(arguments.host_maddrs)
    yield port
    if port.verdict != "bad":
        yield await check_daemon(P2PD, arguments.host_maddrs)
    model = None
    if arguments.join is None:
        yield Finding("swarm", "note", "not looked at: give --join to check clock, seed and run")
    else:
        seed = await check_seed(arguments.join.addresses)
        yield seed
        if seed.verdict != "bad":
            findings, manifest = await visit(arguments.join, arguments.host_maddrs)
            for finding in findings:
                yield finding
            model = manifest.model if manifest else None
    yield check_memory(model)
