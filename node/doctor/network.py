"""Can this machine take part in a swarm? Its own port and daemon, the way to the seed, the clock."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from understudy.node.dht.config import guest_config
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.doctor.machine import Finding
from understudy.node.joining import obtain_manifest
from understudy.node.p2p.addresses import (
    JoinString,
    check_listen_port,
    endpoint_of,
    is_loopback,
    peer_id_in,
)
from understudy.node.p2p.daemon import Daemon, DaemonSettings
from understudy.node.p2p.dial import GREETING, dial
from understudy.node.p2p.identity import Identity
from understudy.node.reach.asking import find_reachability
from understudy.protocol.errors import ClockSkewError, NetworkError, SettingsError, UnderstudyError
from understudy.protocol.manifest import RunManifest
from understudy.protocol.reach.addresses import is_relayed
from understudy.protocol.reach.sentences import what_to_forward
from understudy.protocol.reach.verdict import Verdict

DAEMON_TIMEOUT_S = 30.0
CLOCK_MAX_S = 3.0
"""hivemind refuses a peer whose clock is further off (`MAX_DHT_TIME_DISCREPANCY_SECONDS`)."""
CLOCK_NOTE_S = 1.0


def check_port(host_maddrs: Sequence[str]) -> Finding:
    """Can the node listen where it is told to?"""
    try:
        for address in host_maddrs:
            check_listen_port(address)
    except (NetworkError, SettingsError) as error:
        return Finding("port", "bad", str(error))
    if any(endpoint_of(address).port == 0 for address in host_maddrs):
        told = "any free one; behind NAT or a firewall choose one with --host-maddr and open it for others"
        return Finding("port", "note", told)
    ports = ", ".join(str(endpoint_of(address).port) for address in host_maddrs)
    return Finding("port", "ok", f"{ports} is free")


async def check_daemon(binary: Path, host_maddrs: Sequence[str]) -> Finding:
    """Does the libp2p daemon start and listen?"""
    settings = DaemonSettings(
        binary, None, tuple(host_maddrs), is_dht_server=False, uses_nat_port_map=False, uses_auto_nat=False
    )
    began = time.monotonic()
    try:
        daemon = await Daemon.start(settings, DAEMON_TIMEOUT_S)
    except UnderstudyError as error:
        return Finding("daemon", "bad", str(error))
    await daemon.stop()
    return Finding("daemon", "ok", f"p2pd started in {time.monotonic() - began:.1f} s and listened")


async def check_seed(addresses: Sequence[str]) -> Finding:
    """Which addresses of the join string answer?"""

    async def dial_timed(address: str) -> tuple[str | None, float]:
        began = time.monotonic()
        return await dial(address), time.monotonic() - began

    async with asyncio.TaskGroup() as tasks:
        dials = {address: tasks.create_task(dial_timed(address)) for address in addresses}
    outcomes = {address: task.result() for address, task in dials.items()}
    answered = [f"{_short(address)} answered in {s * 1000:.0f} ms" for address, (why, s) in outcomes.items() if not why]
    silent = [f"{_short(address)}: {why}" for address, (why, _) in outcomes.items() if why]
    if not answered:
        remedy = "check that the seed runs and its port is open, or take the join string that another node logged"
        return Finding("seed", "bad", f"{'; '.join(silent)}; {remedy}")
    return Finding("seed", "ok", "; ".join(answered + silent))


def _short(address: str) -> str:
    """Without the PeerID, which is the same in all of them."""
    return address.partition("/p2p/")[0]


def judge_clock(offsets_s: Sequence[float]) -> Finding:
    """``offsets_s``: by how much this clock is ahead of each peer's. The median counts: one peer may be wrong."""
    if not offsets_s:
        return Finding("clock", "note", "no peer told the time: its offset is not known")
    offset_s = statistics.median(offsets_s)
    of_peers = f"of {len(offsets_s)} {'peer' if len(offsets_s) == 1 else 'peers'}"
    told = f"{abs(offset_s):.2f} s {'ahead' if offset_s > 0 else 'behind'} {of_peers}"
    if abs(offset_s) > CLOCK_MAX_S:
        return Finding("clock", "bad", f"{told}, {CLOCK_MAX_S:g} s are allowed: set the clock (for example with NTP)")
    if abs(offset_s) > CLOCK_NOTE_S:
        return Finding("clock", "note", f"{told}; beyond {CLOCK_MAX_S:g} s it is refused: let NTP keep the clock")
    return Finding("clock", "ok", told)


def judge_route(connections: Sequence[str]) -> Finding:
    """``connections``: the addresses that libp2p is connected to peers of the join string at."""
    if not connections:
        return Finding("route", "note", "libp2p keeps no connection to the seed: try again")
    address = min(connections, key=is_relayed)
    if is_relayed(address):
        told = f"through a relay ({address}): slower than direct, and gone when the relay is"
        return Finding("route", "note", told)
    where = "on this machine" if is_loopback(address) else "direct"
    return Finding("route", "ok", f"{where}, to {_short(address)}")


async def check_reach(p2p: P2PNode, join: JoinString, host_maddrs: Sequence[str]) -> Finding:
    """Can peers dial this machine where the node is to listen? Listens there for a moment, greeting as libp2p does."""
    where = endpoint_of(host_maddrs[0])
    if where.transport != "tcp" or where.host_kind not in ("ip4", "ip6"):
        return Finding("reach", "note", "not tried: that takes a TCP port in the first --host-maddr")

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        writer.close()

    try:
        server = await asyncio.start_server(greet, where.host, where.port)
    except OSError as error:
        return Finding("reach", "note", f"not tried: cannot listen on port {where.port} ({error.strerror})")
    async with server:
        port = int(server.sockets[0].getsockname()[1])
        # What a router does with the ports of our connections, the port of this moment cannot show.
        return judge_reach(await find_reachability(p2p, join.addresses, [port], lambda *_: False), port)


def judge_reach(verdict: Verdict, port: int) -> Finding:
    """``verdict``: of peers that dialled this port."""
    if verdict.reachability == "public":
        return Finding("reach", "ok", f"others can dial this machine at port {port}: {verdict.reason}")
    if verdict.reachability == "unknown":
        return Finding("reach", "note", f"whether others can dial this machine is not known: {verdict.reason}")
    told = "others cannot dial this machine: a node here is reached through its router or through peers that relay"
    return Finding("reach", "note", f"{told}; {what_to_forward(port)} ({verdict.reason})")


async def visit(join: JoinString, host_maddrs: Sequence[str]) -> tuple[list[Finding], RunManifest | None]:
    """Look at the swarm as a reader: clock, route, reach, run. The manifest, if it was found."""
    try:
        async with P2PNode.open(guest_config(join), Identity.generate()) as p2p:
            findings = [judge_clock(await p2p.clock_offsets())]
            connections = await p2p.connections()
            joined_by = {peer_id_in(address) for address in join.addresses}
            findings.append(judge_route([address for peer in joined_by for address in connections.get(peer, ())]))
            if not all(map(is_loopback, (*host_maddrs, *join.addresses))):
                findings.append(await check_reach(p2p, join, host_maddrs))
            manifest, _ = await obtain_manifest(p2p, join)
    except ClockSkewError as error:
        return [Finding("clock", "bad", str(error))], None
    except (NetworkError, SettingsError) as error:
        return [Finding("swarm", "bad", str(error))], None
    told = f"{manifest.run_id()}, {manifest.stage_count} stages"
    return [*findings, Finding("run", "ok", told)], manifest
