"""The asked side of a dial-back: where we see the asker, and whether a libp2p peer answers there.

Whoever asks names ports, never a host: dialled is only the address at which libp2p is connected to the asker, to which
it completed a handshake. So nobody can use us to look for open ports of others, or to flood them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence

from understudy.node.p2p.addresses import Endpoint, endpoint_of
from understudy.node.p2p.dial import knock
from understudy.node.reach.sockets import is_this_machine
from understudy.node.reach.speaking import read_reach, write_reach
from understudy.protocol.errors import NetworkError, RemoteProtocolError, SettingsError
from understudy.protocol.ids import PeerId
from understudy.protocol.reach.addresses import is_relayed
from understudy.protocol.wire.reach import REASON_CHARS_MAX, DialBackAnswer, DialBackRequest, DialOutcome

logger = logging.getLogger(__name__)

SPEAK_TIMEOUT_S = 4.0
"""For the request to come, and for the answer to leave."""
DIAL_TIMEOUT_S = 3.0
"""For all dials of one request, which run at once. A lost SYN is sent again after 1 s."""
WINDOW_S = 60.0
PER_WINDOW_MAX = 60
"""Requests that are dialled for within `WINDOW_S`, of all peers together."""
PER_PEER_MAX = 4
"""Of these, as many may be of one peer."""

Connections = Callable[[], Awaitable[dict[PeerId, tuple[str, ...]]]]
"""As `P2PNode.connections`."""
Knock = Callable[[str, int], Awaitable[str]]
"""As `knock`: why no libp2p peer answers at a host and port; empty if one does."""


class DialBack:
    """Answers the dial-back requests of all peers. `answer` is the callback of `DIAL_BACK_PROTOCOL`."""

    def __init__(
        self, connections: Connections, knock_at: Knock = knock, is_here: Callable[[str], bool] = is_this_machine
    ) -> None:
        self._connections, self._knock_at, self._is_here = connections, knock_at, is_here
        self._under_way: set[PeerId] = set()
        self._recent: deque[tuple[float, PeerId]] = deque()
        """When we dialled for whom, the oldest first; of the last `WINDOW_S` only."""

    async def answer(self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request and its answer."""
        try:
            async with asyncio.timeout(SPEAK_TIMEOUT_S):
                request = await read_reach(reader, DialBackRequest)
            answer = await self._look(peer, request)
            async with asyncio.timeout(SPEAK_TIMEOUT_S):
                await write_reach(writer, answer)
        except (RemoteProtocolError, NetworkError, TimeoutError, OSError) as error:
            logger.debug("a dial-back for %s ended: %s", peer, error)

    async def _look(self, peer: PeerId, request: DialBackRequest) -> DialBackAnswer:
        where = seen_at((await self._connections()).get(peer, ()))
        if where is None:
            return DialBackAnswer("", 0, refusal="it is connected through a relay only, and cannot tell")
        port = where.port if where.transport == "tcp" else 0
        refusal = self._objection(peer, where.host)
        if refusal:
            return DialBackAnswer(where.host, port, refusal=refusal)
        self._under_way.add(peer)
        self._recent.append((asyncio.get_running_loop().time(), peer))
        try:
            return DialBackAnswer(where.host, port, await self._dial(where.host, request.ports))
        finally:
            self._under_way.discard(peer)

    def _objection(self, peer: PeerId, host: str) -> str:
        """Why we do not dial for this peer now; empty if we do."""
        if self._is_here(host):
            return "it sees a proxy on its own machine, and cannot tell"
        oldest = asyncio.get_running_loop().time() - WINDOW_S
        while self._recent and self._recent[0][0] < oldest:
            self._recent.popleft()
        if peer in self._under_way:
            return "it is dialling for this peer already"
        if len(self._recent) >= PER_WINDOW_MAX or Counter(asker for _, asker in self._recent)[peer] >= PER_PEER_MAX:
            return "it was asked too often within a minute"
        return ""

    async def _dial(self, host: str, ports: Sequence[int]) -> tuple[DialOutcome, ...]:
        """All ports at once, each port once."""
        async with asyncio.TaskGroup() as tasks:
            dials = {port: tasks.create_task(self._knock(host, port)) for port in dict.fromkeys(ports)}
        return tuple(DialOutcome(port, dial.result()) for port, dial in dials.items())

    async def _knock(self, host: str, port: int) -> str:
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                return visible(await self._knock_at(host, port))
        except TimeoutError:
            return f"no answer within {DIAL_TIMEOUT_S:g} s"


def seen_at(addresses: Sequence[str]) -> Endpoint | None:
    """Where a peer with these connections is; None if it is only seen through a relay."""
    found = [endpoint for address in addresses if (endpoint := _direct(address)) is not None]
    return min(found, key=lambda endpoint: endpoint.transport != "tcp", default=None)


def _direct(address: str) -> Endpoint | None:
    if is_relayed(address):
        return None
    try:
        endpoint = endpoint_of(address)
    except SettingsError:
        return None  # a transport that we do not speak
    return endpoint if endpoint.host_kind in ("ip4", "ip6") else None


def visible(text: str) -> str:
    """As much of a text of the operating system as may be sent."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)[:REASON_CHARS_MAX]
