"""A public peer relays for those that nobody can dial, and tries it before it says so.

p2pd (v0.5.0.hivemind1) starts two relay services, one with the limits that it was given and one with libp2p's, and
whichever comes last serves: a relay of the second kind resets every circuit after 128 KiB. No question to p2pd tells
them apart, so a daemon that is to relay carries `PROBE_BYTES` between two throw-away daemons, before anybody is told
that it is there, and is started again if it does not.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from understudy.node.p2p.daemon import Daemon, DaemonSettings
from understudy.node.p2p.streams import StreamHost, Way
from understudy.protocol.errors import NetworkError
from understudy.protocol.ids import PeerId

logger = logging.getLogger(__name__)

PROBE_BYTES = 1_000_000
"""Eight times what libp2p's own limits let through."""
PROBE_PROTOCOL = "/understudy/relay-probe/1"
CHECK_TIMEOUT_S = 5.0
RESERVE_AGAIN_S = 0.02
RELAYING_STARTS = 2
"""The next start is one that does not relay."""

_LISTENS = "0A"  # the state of a socket in /proc/net/tcp
_WORD_BYTES = 4


async def start_daemon(settings: DaemonSettings, timeout_s: float) -> tuple[Daemon, bool]:
    """A p2pd that others may be told of, and whether it relays: it does if the settings say so and a try shows it.

    ``timeout_s`` is for each of at most `RELAYING_STARTS` + 1 starts. Raises `NetworkError`, and leaves nothing then.
    """
    if settings.relay_limits is None:
        return await Daemon.start(settings, timeout_s), False
    for _ in range(RELAYING_STARTS):
        daemon = await Daemon.start(settings, timeout_s)
        try:
            objection = await check_relay(settings.binary, daemon)
        except BaseException:
            await daemon.stop()
            raise
        if objection is None:
            return daemon, True
        await daemon.stop()
        logger.debug("the daemon is started again: %s", objection)
    logger.warning("this peer does not relay for others: %s", objection)
    return await Daemon.start(replace(settings, relay_limits=None), timeout_s), False


async def check_relay(binary: Path, relay: Daemon) -> str | None:
    """Why a daemon is no use as a relay; None: `PROBE_BYTES` passed.

    Takes 1.2 s on an idle machine, 2 s on a busy one; at most `CHECK_TIMEOUT_S` and the end of two throw-away daemons.
    """
    addresses = [f"{address}/p2p/{relay.peer_id}" for address in listening_addresses(relay.process_id)]
    if not addresses:
        return "it listens on no TCP port, so it cannot be tried"
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                reserving, dialling = await _start_throw_aways(stack, binary, addresses[0])
                await _carry(stack, reserving, dialling, f"{addresses[0]}/p2p-circuit/p2p/{reserving.peer_id}")
        except TimeoutError:
            return f"a try was not over after {CHECK_TIMEOUT_S:g} s"
        except (NetworkError, OSError, EOFError) as error:
            return f"a try failed ({error})"
    return None


async def _start_throw_aways(stack: AsyncExitStack, binary: Path, relay: str) -> tuple[Daemon, Daemon]:
    """One that reserves a slot with the relay, and one that will dial it there.

    Neither listens: as soon as one knew where the other does, libp2p would go there directly, and the try would pass
    whatever the relay lets through.
    """
    plain = DaemonSettings(binary, None, (), is_dht_server=False, uses_nat_port_map=False, uses_auto_nat=False)
    reserving = replace(plain, relay_maddrs=(relay,), is_private=True)

    async def start(settings: DaemonSettings) -> Daemon:
        daemon = await Daemon.start(settings, CHECK_TIMEOUT_S)
        stack.push_async_callback(daemon.stop)
        return daemon

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(start(settings)) for settings in (reserving, plain)]
    except* NetworkError as failures:
        raise NetworkError(str(failures.exceptions[0])) from failures
    return tasks[0].result(), tasks[1].result()


async def _carry(stack: AsyncExitStack, reserving: Daemon, dialling: Daemon, circuit: str) -> None:
    """Send the bytes over a circuit, and wait until the other side has them all. Raises `NetworkError` and others."""
    server, client = StreamHost(reserving), StreamHost(dialling)
    stack.push_async_callback(server.close)
    stack.push_async_callback(client.close)
    await server.serve(PROBE_PROTOCOL, _swallow)
    await reach(client, reserving.peer_id, circuit)
    reader, writer = await client.open(Way(reserving.peer_id), PROBE_PROTOCOL, CHECK_TIMEOUT_S)
    try:
        writer.write(bytes(PROBE_BYTES))
        await reader.readexactly(1)
    finally:
        writer.transport.abort()


async def reach(client: StreamHost, peer: PeerId, circuit: str) -> None:
    """Dial until the peer holds its reservation. The caller sets the deadline."""
    while True:
        try:
            return await client.connect(peer, (circuit,), CHECK_TIMEOUT_S)
        except NetworkError as error:
            if "NO_RESERVATION" not in str(error):
                raise
        await asyncio.sleep(RESERVE_AGAIN_S)


async def _swallow(_: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async with asyncio.timeout(CHECK_TIMEOUT_S):
        await reader.readexactly(PROBE_BYTES)
        writer.write(b"\1")
        await writer.drain()
        await reader.read()


def listening_addresses(process_id: int) -> list[str]:
    """Where a process on this machine listens, as multiaddrs that can be dialled from here; loopback for "everywhere".

    Linux alone knows: p2pd tells the addresses that it announces, and a port of 0 becomes another.
    """
    try:
        inodes = {os.readlink(path) for path in Path(f"/proc/{process_id}/fd").iterdir()}
        return [
            address
            for version in ("", "6")
            for address, inode in _listeners(Path(f"/proc/{process_id}/net/tcp{version}"))
            if f"socket:[{inode}]" in inodes
        ]
    except OSError:
        return []


def _listeners(table: Path) -> Iterator[tuple[str, str]]:
    """Address and inode of each listening socket in a table of the kernel (proc(5), /proc/net/tcp)."""
    for line in table.read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        host, _, port = fields[1].partition(":")
        if fields[3] == _LISTENS:
            yield f"{_host(bytes.fromhex(host))}/tcp/{int(port, 16)}", fields[9]


def _host(words: bytes) -> str:
    """The kernel prints an address as words in the order of this machine's bytes: little-endian where we run."""
    packed = b"".join(words[at : at + _WORD_BYTES][::-1] for at in range(0, len(words), _WORD_BYTES))
    host = ipaddress.ip_address(packed)
    if host.version == 4:
        return f"/ip4/{'127.0.0.1' if host.is_unspecified else host}"
    return f"/ip6/{'::1' if host.is_unspecified else host}"
