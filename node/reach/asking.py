"""The asking side: some peers say where they see us, and try to dial us there."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from understudy.node.p2p.addresses import Endpoint, peer_id_in
from understudy.node.reach.answering import seen_at
from understudy.node.reach.sockets import dials_from
from understudy.node.reach.speaking import read_reach, write_reach
from understudy.protocol.errors import NetworkError, RemoteProtocolError
from understudy.protocol.ids import PeerId
from understudy.protocol.reach.verdict import ANSWERS_MAX, Answer, Verdict, is_global, judge
from understudy.protocol.wire.reach import DIAL_BACK_PROTOCOL, PORTS_MAX, DialBackAnswer, DialBackRequest

logger = logging.getLogger(__name__)

ASK_TIMEOUT_S = 6.0
"""For everything: peers are asked at once, and dial for 3 s at most."""
OPEN_TIMEOUT_S = 3.0

DialsFrom = Callable[[int, str, int], bool]
"""As `dials_from`."""


class Peers(Protocol):
    """What asking needs of a `P2PNode` (node/dht/p2p_node.py)."""

    async def connections(self) -> dict[PeerId, tuple[str, ...]]: ...

    async def open_stream(
        self, peer: PeerId, protocol: str, timeout_s: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A peer that can tell, and where libp2p is connected to it."""

    peer: PeerId
    where: Endpoint


async def find_reachability(
    peers: Peers, initial_peers: Sequence[str], ports: Sequence[int], uses_port: DialsFrom = dials_from
) -> Verdict:
    """How this node can be reached on its listening ``ports``, as up to `ANSWERS_MAX` connected peers found.

    "unknown" if none of them could tell within `ASK_TIMEOUT_S`. Raises `NetworkError` if p2pd does not answer.
    """
    if not ports:
        return Verdict("unknown", "it listens on no TCP port")
    asked = choose_asked(await peers.connections(), [peer_id_in(address) for address in initial_peers])
    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(_ask(peers, each, tuple(ports[:PORTS_MAX]), uses_port)) for each in asked]
    return judge([answer for task in answers if (answer := task.result()) is not None])


def choose_asked(connections: Mapping[PeerId, Sequence[str]], initial: Sequence[PeerId]) -> list[Asked]:
    """Peers with a direct connection, each at another IP address; the initial ones first."""
    first = [peer for peer in dict.fromkeys(initial) if peer in connections]
    found: dict[str, Asked] = {}
    for peer in (*first, *(peer for peer in connections if peer not in first)):
        where = seen_at(connections[peer])
        if where is not None:
            found.setdefault(where.host, Asked(peer, where))
    return list(found.values())[:ANSWERS_MAX]


async def _ask(peers: Peers, asked: Asked, ports: tuple[int, ...], uses_port: DialsFrom) -> Answer | None:
    """None: the peer does not tell, whatever the reason."""
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            reader, writer = await peers.open_stream(asked.peer, DIAL_BACK_PROTOCOL, OPEN_TIMEOUT_S)
            try:
                await write_reach(writer, DialBackRequest(ports))
                told = await read_reach(reader, DialBackAnswer)
            finally:
                writer.close()
        return understand(told, asked.where, ports, uses_port)
    except (NetworkError, RemoteProtocolError, TimeoutError, OSError) as error:
        logger.debug("peer %s did not dial back: %s", asked.peer, error or "no answer in time")
        return None


def understand(told: DialBackAnswer, where: Endpoint, ports: Sequence[int], uses_port: DialsFrom) -> Answer:
    """What a peer's words mean. Raises `RemoteProtocolError` for an address that is none.

    It counts as reached if one of our ports was. Where it sees us tells how our router treats our listening port, if
    we listen on one alone and speak with this peer from it.
    """
    if told.seen_host:
        try:
            ipaddress.ip_address(told.seen_host)
        except ValueError as error:
            raise RemoteProtocolError("it sees us at what is no IP address") from error
    outcomes = [outcome for outcome in told.outcomes if outcome.port in ports]
    is_beside_us = is_global(where.host) and bool(told.seen_host) and not is_global(told.seen_host)
    if is_beside_us:  # it sees a proxy in front of it, and dialled that
        return Answer(where.host, "", 0, None, "it sits behind a proxy, and cannot tell")
    is_reached = any(not outcome.failure for outcome in outcomes) if outcomes else None
    is_telling = len(ports) == 1 and where.transport == "tcp" and uses_port(ports[0], where.host, where.port)
    failure = told.refusal or ", ".join(dict.fromkeys(outcome.failure for outcome in outcomes if outcome.failure))
    return Answer(where.host, told.seen_host, told.seen_port if is_telling else 0, is_reached, failure)
