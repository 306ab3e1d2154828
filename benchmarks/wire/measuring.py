"""Two peers on this machine, each a process with a p2pd of its own; the ways take turns."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path as FilePath

import psutil

from benchmarks.wire.paths import LinksPath, Path, open_hivemind, open_stream, rules_for, tensor_of
from benchmarks.wire.results import Transfer, WireResult, here
from understudy.bootstrap.local.run import LISTEN
from understudy.node.dht.config import SwarmConfig
from understudy.node.dht.hivemind_dht import quiet_libraries
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.p2p.identity import Identity
from understudy.protocol.ids import PeerId

START_TIMEOUT_S = 60.0
TRANSFER_TIMEOUT_S = 120.0
TENSORS_MIN = 8
"""Per repetition: with fewer, the way to the first and from the last byte would show."""


async def measure(sizes: list[int], repetitions: int, total_bytes: int, tell: Callable[[Transfer], None]) -> WireResult:
    """Every size by every way, in turn, after one that does not count."""
    quiet_libraries(is_verbose=False)
    transfers: list[Transfer] = []
    with tempfile.TemporaryDirectory(prefix="understudy-wire-") as folder:
        keys = FilePath(folder)
        config = SwarmConfig((LISTEN,))
        async with (
            P2PNode.open(config, Identity.load_or_create(keys / "sender.key")) as p2p,
            receiver(p2p, keys / "receiver.key", sizes) as peer,
        ):
            for size in sizes:
                async for transfer in _measure_size(p2p, peer, size, (repetitions, total_bytes)):
                    tell(transfer)
                    transfers.append(transfer)
    return WireResult(tuple(transfers), here())


@asynccontextmanager
async def receiver(p2p: P2PNode, key: FilePath, sizes: list[int]) -> AsyncIterator[PeerId]:
    """The other process; it ends when its standard input does, however we end."""
    command = ("-W", "ignore", "-m", "benchmarks.wire.receiver", p2p.addresses[0], str(key), *map(str, sizes))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            peer = PeerId((await process.stdout.readline()).decode().strip())
        yield peer
    finally:
        process.stdin.close()
        await process.wait()


async def _measure_size(p2p: P2PNode, peer: PeerId, size: int, effort: tuple[int, int]) -> AsyncIterator[Transfer]:
    repetitions, total_bytes = effort
    tensor, count = tensor_of(size), max(TENSORS_MIN, total_bytes // size)
    async with asyncio.TaskGroup() as tasks:
        links = await LinksPath.serve(p2p, peer, rules_for(size), tasks)
        bare = {"hivemind": await open_hivemind(p2p, peer), "stream": await open_stream(p2p, peer)}
        paths: dict[str, Path] = {**bare, "links": links}
        for repetition in range(repetitions + 1):
            for way, path in paths.items():
                before, began = cpu_seconds(), time.perf_counter()
                async with asyncio.timeout(TRANSFER_TIMEOUT_S):
                    await path.send(tensor, count)
                seconds, after = time.perf_counter() - began, cpu_seconds()
                if repetition:
                    used = {part: round(after[part] - before[part], 2) for part in after}
                    yield Transfer(way, size, count, seconds, used)
        for path in paths.values():
            await path.close()


def cpu_seconds() -> dict[str, float]:
    """Processor time of us, of the receiving process and of both p2pd, so far."""
    used = {"sender": _used(psutil.Process()), "receiver": 0.0, "daemons": 0.0}
    for child in psutil.Process().children(recursive=True):
        used["daemons" if child.name() == "p2pd" else "receiver"] += _used(child)
    return used


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
