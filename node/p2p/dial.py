"""Dial before the daemon does, so that a person learns which address failed and why.

p2pd only says "failed to connect to bootstrap peers". A plain TCP connection tells a wrong name
from a closed port from a silent firewall.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from understudy.node.p2p.addresses import Endpoint, endpoint_of, is_loopback
from understudy.node.p2p.control import DaemonRefusal, ask, connect_request
from understudy.node.p2p.daemon import Daemon, DaemonSettings
from understudy.node.p2p.identity import Identity
from understudy.protocol.errors import NetworkError
from understudy.protocol.reach.addresses import is_public, is_relayed

DIAL_TIMEOUT_S = 4.0
GREETING = b"\x13/multistream/1.0.0\n"
"""What a libp2p peer says first on every TCP connection (multistream-select): go-libp2p waits for nothing before."""
RETRY_EVERY_S = 0.5
SCOUT_START_TIMEOUT_S = 30.0
IDENTITY_FREE_TIMEOUT_S = 3.0
IDENTITY_RETRY_S = 0.1


async def find_reachable(addresses: Sequence[str], patience_s: float) -> tuple[str, ...]:
    """Those of the addresses where something listens; at least one, or `NetworkError`.

    Tries for ``patience_s`` seconds, at least once: a seed may be starting at the same moment.
    Addresses that TCP cannot check (quic, relay, dnsaddr) count as reachable.
    """
    give_up_at = time.monotonic() + patience_s
    while True:
        failures = await _dial_all(addresses)
        reachable = tuple(address for address in addresses if failures[address] is None)
        if reachable or not addresses:
            return reachable
        if time.monotonic() >= give_up_at:
            raise _unreachable(failures)
        await asyncio.sleep(RETRY_EVERY_S)


async def _dial_all(addresses: Sequence[str]) -> dict[str, str | None]:
    async with asyncio.TaskGroup() as group:
        dials = {address: group.create_task(dial(address)) for address in addresses}
    return {address: dial.result() for address, dial in dials.items()}


async def dial(address: str) -> str | None:
    """Why the address cannot be reached; None when it can, or when TCP cannot tell."""
    if is_relayed(address):
        return None
    where = endpoint_of(address)
    if where.transport != "tcp" or where.host_kind == "dnsaddr":
        return None
    opened = await _open(where.host, where.port, _family(where))
    if isinstance(opened, str):
        return opened
    await _hang_up(opened[1])
    return None


async def knock(host: str, port: int) -> str:
    """Why no libp2p peer answers at this IP address and TCP port; empty when one does.

    libp2p greets whoever connects with the name of its handshake. A router's web page, or whatever else a port leads
    to, does not.
    """
    opened = await _open(host, port, socket.AF_UNSPEC)
    if isinstance(opened, str):
        return opened
    reader, writer = opened
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            greeting = await reader.readexactly(len(GREETING))
    except (TimeoutError, OSError, EOFError):
        greeting = b""
    finally:
        await _hang_up(writer)
    return "" if greeting == GREETING else "something answers there, but it is no libp2p peer"


async def _open(
    host: str, port: int, family: socket.AddressFamily
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | str:
    """A TCP connection, or why there is none."""
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            return await asyncio.open_connection(host, port, family=family)
    except TimeoutError:
        return f"no answer within {DIAL_TIMEOUT_S:g} s"
    except socket.gaierror:
        return f"the name {host} cannot be resolved"
    except OSError as error:
        return "connection refused" if error.errno == errno.ECONNREFUSED else (error.strerror or str(error)).lower()


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            await writer.wait_closed()


def _family(where: Endpoint) -> socket.AddressFamily:
    if where.host_kind in ("ip4", "dns4"):
        return socket.AF_INET
    return socket.AF_INET6 if where.host_kind in ("ip6", "dns6") else socket.AF_UNSPEC


def _unreachable(failures: dict[str, str | None]) -> NetworkError:
    reasons = "; ".join(f"{address}: {reason}" for address, reason in failures.items())
    if not any(is_public(address) or is_loopback(address) for address in failures):
        reasons += " (an address of a private network, which leads to it from within that network only)"
    return NetworkError(
        f"cannot reach the seed at {reasons}; check the address, that the seed is running and its port is open, "
        "or take the join string that another node of the swarm logged"
    )


async def check_identity_is_free(binary: Path, identity: Identity, reachable: tuple[str, ...]) -> None:
    """Raises `NetworkError` when another running peer of the swarm has our PeerID.

    Two daemons with one key confuse every peer that knows both. A p2pd with a throw-away identity
    asks the swarm. A process that died just now is still known for a moment, hence the retries.
    """
    settings = DaemonSettings(binary, None, ("/ip4/127.0.0.1/tcp/0",), bootstrap_maddrs=reachable, is_dht_server=False)
    scout = await Daemon.start(settings, SCOUT_START_TIMEOUT_S)
    is_found = False
    try:
        async with asyncio.timeout(IDENTITY_FREE_TIMEOUT_S):
            while True:
                is_found = await _is_connectable(scout, identity)
                if not is_found:
                    return
                await asyncio.sleep(IDENTITY_RETRY_S)
    except TimeoutError:
        if is_found:
            raise NetworkError(
                f"identity {identity.path} is in use by another running peer: stop that one, "
                "or start this node with an --identity of its own"
            ) from None
    finally:
        await scout.stop()


async def _is_connectable(scout: Daemon, identity: Identity) -> bool:
    request = connect_request(identity.peer_id, (), IDENTITY_FREE_TIMEOUT_S)
    while True:
        try:
            _, writer = await ask(scout.control_path, request)
        except DaemonRefusal as refusal:
            if "any peer in table" not in str(refusal):
                return False
            await asyncio.sleep(IDENTITY_RETRY_S)  # it has not been introduced to anybody yet
        else:
            writer.close()
            return True
