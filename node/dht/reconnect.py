"""Meet the DHT peers again that fell silent.

hivemind forgets a peer at its first unanswered call and never calls it again by itself. So when
this machine loses its network for a few seconds, or the process is stopped, each side forgets the
other, and after the return two DHTs exist that know nothing of each other. Here the peers of the
last minutes are remembered apart from the routing table and pinged until they answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

MEET_AGAIN_EVERY_S = 5.0
MEET_AGAIN_FOR_S = 900.0
"""A peer that has been silent for this long is forgotten for good."""
KNOWN_PEERS_MAX = 64
PINGS_TIMEOUT_S = 5.0


class Reconnector:
    """Remembers the peers of one hivemind DHTNode."""

    def __init__(self, dht: Any) -> None:
        self._dht = dht
        self._last_met: dict[Any, float] = {}
        """PeerID of hivemind -> monotonic seconds."""

    async def meet_again(self) -> None:
        """Ping whoever is missing from the routing table; an answer puts it back. Never raises."""
        missing = self._missing(time.monotonic())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PINGS_TIMEOUT_S), asyncio.TaskGroup() as pings:
                for peer in missing:
                    pings.create_task(self._ping(peer))

    def _missing(self, now: float) -> list[Any]:
        present = set(self._dht.protocol.routing_table.peer_id_to_uid) - {self._dht.peer_id}
        self._last_met.update(dict.fromkeys(present, now))
        recent = sorted(self._last_met.items(), key=lambda item: -item[1])[:KNOWN_PEERS_MAX]
        self._last_met = {peer: met for peer, met in recent if now - met < MEET_AGAIN_FOR_S}
        return [peer for peer in self._last_met if peer not in present]

    async def _ping(self, peer: Any) -> None:
        """DHTProtocol.call_ping has its own timeout and answers None for every failure."""
        if await self._dht.protocol.call_ping(peer) is not None:
            self._dht.blacklist.register_success(peer)
