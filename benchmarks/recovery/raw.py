"""What a stream between two peers of this machine carries: plain bytes, nothing checked, nothing kept.

The yardstick of a fetch. Its senders are processes of their own, each with its own libp2p daemon, as donors are.
``python -m benchmarks.recovery.raw`` is one of them.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from understudy.bootstrap.local.children import Child
from understudy.bootstrap.local.run import LISTEN
from understudy.node.dht.config import SwarmConfig
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.p2p.identity import Identity
from understudy.node.process import StopSwitch, supervise
from understudy.protocol.errors import NetworkError
from understudy.protocol.ids import PeerId

PROTOCOL = "/understudy/benchmark/raw"
CHUNK_BYTES = 1 << 20
"""As a donor's."""
READY_TIMEOUT_S = 60.0
TRANSFER_TIMEOUT_S = 120.0


class RawPeers:
    """This process, and the senders whose bytes it takes."""

    def __init__(self, p2p: P2PNode, senders: tuple[PeerId, ...]) -> None:
        self._p2p, self._senders = p2p, senders

    @classmethod
    @asynccontextmanager
    async def open(cls, senders: int, payload_bytes: int, folder: Path) -> AsyncIterator[RawPeers]:
        """Start the senders; each sends this many bytes over every stream that is opened to it."""
        identity = Identity.load_or_create(folder / "receiver.key")
        async with P2PNode.open(SwarmConfig(host_maddrs=(LISTEN,)), identity) as p2p:
            children = []
            try:
                for number in range(senders):
                    files = folder / f"sender-{number}"
                    arguments = [p2p.addresses[0], f"{files}.key", str(payload_bytes)]
                    child = await Child.start(files.name, "benchmarks.recovery.raw", arguments, Path(f"{files}.log"))
                    children.append(child)
                yield cls(p2p, tuple([await _peer_of(child) for child in children]))
            finally:
                for child in children:
                    await child.stop()

    async def seconds(self, senders: int) -> float:
        """Take all bytes of the first so many senders, side by side."""
        began = time.perf_counter()
        async with asyncio.timeout(TRANSFER_TIMEOUT_S), asyncio.TaskGroup() as tasks:
            for sender in self._senders[:senders]:
                tasks.create_task(self._take(sender))
        return time.perf_counter() - began

    async def _take(self, sender: PeerId) -> None:
        reader, writer = await self._p2p.open_stream(sender, PROTOCOL, READY_TIMEOUT_S)
        try:
            missing = int.from_bytes(await reader.readexactly(8))
            while missing:
                piece = await reader.read(min(CHUNK_BYTES, missing))
                if not piece:
                    raise NetworkError(f"the stream ended {missing} bytes early")
                missing -= len(piece)
        finally:
            writer.close()


async def _peer_of(child: Child) -> PeerId:
    """The PeerID that a sender writes into its log once it serves."""
    async with asyncio.timeout(READY_TIMEOUT_S):
        while not (text := child.log_path.read_text(encoding="utf-8")).endswith("\n"):
            if not child.is_running:
                raise NetworkError(f"{child.name} failed: {child.last_line}")
            await asyncio.sleep(0.05)
    return PeerId(text.strip())


async def _send(join: str, key: Path, payload_bytes: int) -> int:
    payload = memoryview(os.urandom(payload_bytes))

    async def serve(_: PeerId, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(payload_bytes.to_bytes(8))
        for start in range(0, payload_bytes, CHUNK_BYTES):
            writer.write(payload[start : start + CHUNK_BYTES])
            await writer.drain()

    config = SwarmConfig(host_maddrs=(LISTEN,), initial_peers=(join,))
    async with P2PNode.open(config, Identity.load_or_create(key)) as p2p:
        await p2p.serve_streams(PROTOCOL, serve)
        typer.echo(p2p.peer_id)
        await p2p.watch_daemon()
    return 0


def main(
    join: Annotated[str, typer.Argument(help="Address of the receiver.")],
    key: Annotated[Path, typer.Argument(help="Identity file.")],
    payload_bytes: Annotated[int, typer.Argument(min=1)],
    stop_with_stdin: Annotated[bool, typer.Option("--stop-with-stdin")] = False,
) -> None:
    """Send bytes to whoever opens a stream."""

    async def run(_: StopSwitch) -> int:
        return await _send(join, key, payload_bytes)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(supervise(run, stops_with_stdin=stop_with_stdin)))


if __name__ == "__main__":
    typer.run(main)
