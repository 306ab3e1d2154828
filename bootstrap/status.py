"""``understudy status``: look at a swarm through its DHT, without being part of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from rich.console import Console
from rich.live import Live

from understudy.bootstrap.swarm_view import status_line, status_view
from understudy.node.dht.config import guest_config
from understudy.node.dht.hivemind_dht import dht_time
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.dht.votes import with_valid_votes
from understudy.node.join_file import read_join
from understudy.node.joining import obtain_manifest
from understudy.node.p2p.identity import Identity
from understudy.node.process import EXIT_DONE, StopSwitch
from understudy.protocol.errors import NetworkError, RemoteProtocolError
from understudy.protocol.manifest import RunManifest
from understudy.protocol.observe.swarm_status import Posted, SwarmView, keys_of_view, overview
from understudy.protocol.printable import printable
from understudy.protocol.wire.records import decode_record

READ_EVERY_S = 2.0

Show = Callable[[SwarmView], None]


@dataclass(frozen=True, slots=True)
class StatusArguments:
    """The command line of ``understudy status``."""

    join: str
    is_watching: bool
    is_json: bool


async def run_status(arguments: StatusArguments, switch: StopSwitch) -> int:
    """Read once and show it, or read until asked to stop. Raises `NetworkError` if nobody can be reached."""
    join = await read_join(arguments.join, 0)
    async with P2PNode.open(guest_config(join), Identity.generate()) as p2p:
        manifest, _ = await obtain_manifest(p2p, join)
        if arguments.is_watching:
            await _watch(p2p, manifest, arguments, switch)
        else:
            _show_once(await read_view(p2p, manifest), arguments)
    return EXIT_DONE


async def read_view(p2p: P2PNode, manifest: RunManifest) -> SwarmView:
    """The swarm as its records show it now. Raises `NetworkError`."""
    prefix, digest = manifest.run_id(), manifest.digest()
    keys = keys_of_view(manifest)
    found = await p2p.get_many([f"{prefix}/{key}" for key in keys])
    posted = []
    for key in keys:
        for stored in found[f"{prefix}/{key}"]:
            with contextlib.suppress(RemoteProtocolError):  # whoever stored nonsense is not part of the picture
                record = with_valid_votes(decode_record(key, stored.owner, stored.value), digest)
                posted.append(Posted(record, stored.expiration - dht_time()))
    return overview(manifest, posted)


async def _watch(p2p: P2PNode, manifest: RunManifest, arguments: StatusArguments, switch: StopSwitch) -> None:
    """A read that fails is told and tried again: the picture before it stays."""
    is_stopped = asyncio.Event()
    switch.hand_over(is_stopped.set)
    async with asyncio.TaskGroup() as tasks:
        daemon = tasks.create_task(p2p.watch_daemon())
        with _Screen(arguments) as screen:
            while not is_stopped.is_set():
                try:
                    screen.show(await read_view(p2p, manifest))
                except NetworkError as error:
                    screen.complain(str(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(READ_EVERY_S):
                        await is_stopped.wait()
        daemon.cancel()


def _show_once(view: SwarmView, arguments: StatusArguments) -> None:
    console = Console()
    if arguments.is_json:
        console.print(_as_json(view), markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(status_view(view))


def _as_json(view: SwarmView) -> str:
    return msgspec.json.encode({"time": time.time(), **msgspec.structs.asdict(view)}).decode()


class _Screen:
    """Where ``--watch`` shows what it reads: a live picture on a terminal, a line per change elsewhere."""

    def __init__(self, arguments: StatusArguments) -> None:
        self._console, self._complaints = Console(), Console(stderr=True)
        self._is_json = arguments.is_json
        is_live = self._console.is_terminal and not self._is_json
        self._live = Live(console=self._console, auto_refresh=False) if is_live else None
        self._last_line = ""

    def __enter__(self) -> _Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, view: SwarmView) -> None:
        if self._live is not None:
            self._live.update(status_view(view), refresh=True)
        elif self._is_json:
            self._print(_as_json(view))
        elif (line := status_line(view)) != self._last_line:
            self._print(line)
            self._last_line = line

    def complain(self, reason: str) -> None:
        console = self._complaints if self._live is None else self._console
        console.print(printable(reason), markup=False, highlight=False, soft_wrap=True)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
