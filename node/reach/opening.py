"""Opening this peer as what it is: by a guess, which connected peers confirm or correct.

What a person says overrules both: ``--announce-maddr`` that it is public, ``--behind-nat`` that it is not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from understudy.node.dht.config import SwarmConfig
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.p2p.addresses import endpoint_of, is_loopback
from understudy.node.p2p.identity import Identity
from understudy.node.reach.answering import DialBack
from understudy.node.reach.asking import find_reachability
from understudy.node.reach.lookout import Lookout
from understudy.node.reach.sockets import own_hosts
from understudy.node.ui.telemetry import logger
from understudy.protocol.reach.addresses import is_relayed
from understudy.protocol.reach.sentences import doubt_announced, say
from understudy.protocol.reach.verdict import Verdict, guess
from understudy.protocol.wire.contact import Reachability, is_private
from understudy.protocol.wire.reach import DIAL_BACK_PROTOCOL

REOPEN_PATIENCE_S = 5.0
"""The swarm was there a moment ago."""
UNSPECIFIED = ("0.0.0.0", "::")
"""To listen there is to listen on every address of the machine."""


@asynccontextmanager
async def open_by_reachability(config: SwarmConfig, identity: Identity) -> AsyncIterator[tuple[P2PNode, Lookout]]:
    """Join the swarm, find out how we can be reached, and be in it as that; dials back for others meanwhile.

    If the peers contradict the guess, it is closed and opened again, once. Says in a line what was found. Raises what
    `P2PNode.open` raises.
    """
    expected = expect(config)
    async with _open(replace(config, is_behind_nat=is_private(expected)), identity) as p2p:
        ports = listening_ports(config.host_maddrs, p2p.addresses)
        verdict = await _find(p2p, config, ports)
        if not config.is_local:
            logger.info("%s", say(verdict, next(iter(ports), 0)))
        asked = () if config.is_local or config.announce_maddrs or config.is_behind_nat else tuple(ports)
        if not contradicts(expected, verdict):
            _tell_others(p2p, verdict)
            yield p2p, Lookout(p2p, verdict, config.initial_peers, asked)
            return
        corrected = correct(config, verdict, ports, p2p.addresses)
    async with _open(corrected, identity) as p2p:
        _tell_others(p2p, verdict)
        yield p2p, Lookout(p2p, verdict, config.initial_peers, asked)


@asynccontextmanager
async def _open(config: SwarmConfig, identity: Identity) -> AsyncIterator[P2PNode]:
    async with P2PNode.open(config, identity) as p2p:
        await serve_dial_back(p2p)
        yield p2p


async def serve_dial_back(p2p: P2PNode) -> None:
    """From now on dial back whoever asks, within limits."""
    await p2p.serve_streams(DIAL_BACK_PROTOCOL, DialBack(p2p.connections).answer)


def expect(config: SwarmConfig) -> Reachability:
    """What a peer of this configuration is before anybody was asked."""
    listening = [endpoint_of(address).host for address in config.host_maddrs]
    initial = [endpoint_of(address).host for address in config.initial_peers if not is_relayed(address)]
    named = [host for host in listening if host not in UNSPECIFIED]
    everywhere = {":" in host for host in listening if host in UNSPECIFIED}  # by IPv6, by IPv4
    own = [*named, *(host for host in own_hosts(initial) if (":" in host) in everywhere)]
    announced = [address for address in config.announce_maddrs if not is_relayed(address)]
    return guess(own, initial, announced, config.is_behind_nat)


async def _find(p2p: P2PNode, config: SwarmConfig, ports: Sequence[int]) -> Verdict:
    """What the peers say, unless a person said it. ``config``: as the person wrote it."""
    if config.is_local:
        return Verdict("public", "it listens on this machine only")
    announced = next((address for address in config.announce_maddrs if not is_relayed(address)), None)
    if announced is not None:
        await _check_announced(p2p, config, announced)
        return Verdict("public", "--announce-maddr says so")
    found = await find_reachability(p2p, config.initial_peers, ports)
    if config.is_behind_nat and not is_private(found.reachability):
        return Verdict("punchable", "--behind-nat says so", found.seen_at)
    return found


async def _check_announced(p2p: P2PNode, config: SwarmConfig, address: str) -> None:
    """Warn of an announced address that leads nowhere."""
    where = endpoint_of(address)
    if where.transport == "tcp" and not is_loopback(address):
        doubt = doubt_announced(address, where.host, await find_reachability(p2p, config.initial_peers, [where.port]))
        if doubt:
            logger.warning("%s", doubt)


def contradicts(expected: Reachability, verdict: Verdict) -> bool:
    """Whether a peer that was opened as one must be opened as the other."""
    return verdict.reachability != "unknown" and is_private(expected) != is_private(verdict.reachability)


def listening_ports(host_maddrs: Sequence[str], addresses: Sequence[str]) -> list[int]:
    """The TCP ports where we listen. Those left to chance are among the addresses that libp2p found."""
    chosen = [endpoint_of(address) for address in host_maddrs]
    if any(where.port == 0 for where in chosen):
        chosen = [endpoint_of(address) for address in addresses if not is_relayed(address)]
    return list(dict.fromkeys(where.port for where in chosen if where.transport == "tcp" and where.port > 0))


def correct(config: SwarmConfig, verdict: Verdict, ports: Sequence[int], own: Sequence[str]) -> SwarmConfig:
    """How a peer is opened again, against the guess. ``own``: the addresses that libp2p found.

    Behind a router that forwards the port, only the others know at which address they reached us: that one is told on,
    beside our own, at which the neighbours at home dial us.
    """
    is_found_private = is_private(verdict.reachability)
    outside = () if is_found_private else tuple(multiaddr(verdict.seen_host, port) for port in ports)
    inside = [text.partition("/p2p/")[0] for text in own if not is_relayed(text) and not is_loopback(text)]
    return replace(
        config,
        is_behind_nat=is_found_private,
        host_maddrs=with_port(config.host_maddrs, ports),
        announce_maddrs=tuple(dict.fromkeys((*outside, *inside))) if outside else (),
        join_patience_s=max(config.join_patience_s, REOPEN_PATIENCE_S),
    )


def multiaddr(host: str, port: int) -> str:
    """Of an IP address and a TCP port."""
    return f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"


def with_port(host_maddrs: tuple[str, ...], ports: Sequence[int]) -> tuple[str, ...]:
    """Where a peer listened by chance it shall listen again: that port is the one which was tried."""
    if len(host_maddrs) != 1 or len(ports) != 1:
        return host_maddrs
    (address,) = host_maddrs
    return (address.replace("/tcp/0", f"/tcp/{ports[0]}", 1) if address.endswith("/tcp/0") else address,)


def _tell_others(p2p: P2PNode, verdict: Verdict) -> None:
    """In what this peer says of itself from now on."""
    if verdict.reachability != "unknown":
        p2p.reachability = verdict.reachability
