"""Links climb: what protocol/reach/climb.py decides is done here, every two seconds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from understudy.node.links.network import Network
from understudy.protocol.errors import NetworkError
from understudy.protocol.events import CutOff, LinkChanged
from understudy.protocol.ids import PeerId
from understudy.protocol.reach.addresses import is_relayed
from understudy.protocol.reach.climb import Climber, Redial, Reopen, Step
from understudy.protocol.reach.contacts import Contacts
from understudy.protocol.reach.isolation import Isolation
from understudy.protocol.wire.contact import Contact, is_private

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0


class Connections(Protocol):
    """What climbing needs of a `P2PNode` (node/dht/p2p_node.py)."""

    peer_id: PeerId
    contacts: Contacts

    @property
    def contact(self) -> Contact: ...

    async def connections(self) -> dict[PeerId, tuple[str, ...]]: ...

    async def redial(self, peer: PeerId) -> None: ...


class Climbing:
    """Looks how the peers that we have links to are connected, and betters it."""

    def __init__(self, p2p: Connections, network: Network, feed: Callable[[LinkChanged | CutOff], None]) -> None:
        self._p2p, self._network, self._feed = p2p, network, feed
        self._climber = Climber(p2p.peer_id, p2p.contact.reachability)
        self._isolation = Isolation()

    async def run(self) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self._check_isolation()
            await self.look()

    def _check_isolation(self) -> None:
        contact, now = self._p2p.contact, asyncio.get_running_loop().time()
        has_relay = any(map(is_relayed, contact.addresses))
        trouble = self._isolation.look(now, is_private=is_private(contact.reachability), has_relay=has_relay)
        if trouble is not None:
            logger.warning("nobody can reach this node: %s; %s", *trouble)
            self._feed(CutOff(*trouble))

    async def look(self) -> None:
        """One look at all links, and what follows. Raises nothing of the network's."""
        linked = self._network.linked()
        if not linked:
            return
        self._climber.reachability = self._p2p.contact.reachability
        try:
            connections = await self._p2p.connections()
        except NetworkError as error:
            logger.debug("links were not looked at: %s", error)
            return
        now = asyncio.get_running_loop().time()
        for step in self._climber.look(now, linked, connections, self._p2p.contacts):
            await self._take(step)

    async def _take(self, step: Step) -> None:
        match step:
            case Reopen(peer):
                self._network.reopen(peer)
            case Redial(peer):
                try:
                    await self._p2p.redial(peer)
                except NetworkError as error:
                    logger.debug("the connection to %s was not made anew: %s", peer, error)
            case LinkChanged():
                self._feed(step)
