"""The receiving process: ``python -m benchmarks.wire.receiver SEED KEYFILE SIZE...``, ends with its standard input."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import typer
import uvloop

from benchmarks.wire.paths import rules_for, serve_hivemind, serve_links, serve_stream
from understudy.bootstrap.local.run import LISTEN
from understudy.node.dht.config import SwarmConfig
from understudy.node.dht.hivemind_dht import quiet_libraries
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.p2p.identity import Identity


async def receive(seed: str, key: Path, sizes: list[int]) -> None:
    """Serve every way; say our PeerID; go on until standard input ends."""
    quiet_libraries(is_verbose=False)
    config = SwarmConfig((LISTEN,), initial_peers=(seed,))
    async with P2PNode.open(config, Identity.load_or_create(key)) as p2p, asyncio.TaskGroup() as tasks:
        await serve_hivemind(p2p)
        await serve_stream(p2p)
        networks = [await serve_links(p2p, rules_for(size), tasks) for size in sizes]
        print(p2p.peer_id, flush=True)  # noqa: T201 - the parent waits for this line
        await asyncio.to_thread(sys.stdin.read)
        for network in networks:
            network.stop()


def main(seed: str, key: Path, sizes: list[int]) -> None:
    uvloop.run(receive(seed, key, sizes))


if __name__ == "__main__":
    typer.run(main)
