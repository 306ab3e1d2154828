"""Read keys of hivemind's DHT from every peer that may hold them, all keys in one question.

``DHTNode.get_many`` (hivemind 1.1.12) puts as many keys into a call as the square root of their number: an owner
that reads four keys in a swarm of five calls its four peers 13 times. Each call costs both ends and
both daemons about a millisecond of processor time (docs/experiments.md). Here each peer is called once per round.

As everywhere in this package nothing is answered from a cache, and no answer ends the search: a stale
record means two owners of one stage.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

from understudy.protocol.wire.records import RECORDS_PER_KEY_MAX

KEYS_PER_CALL_MAX = 16
"""An answer names up to 20 peers for each key: it stays below 32 KiB, without the records."""
ROUNDS_MAX = 4
"""Of which the last one only confirms. Peers that invent others could lead us on for ever."""

Entries = dict[bytes, tuple[bytes, float]]
"""Subkey -> (value as its owner signed it, expiration in DHT time)."""


async def look_up(dht: Any, keys: Collection[str]) -> dict[str, Entries]:
    """Of each key all entries that anybody returned, the latest of each subkey. The caller sets the deadline.

    Whatever peers answer has passed the DHT's record validator.
    """
    ids = {key: type(dht.node_id).generate(key) for key in keys}
    walk = _Walk(dht, set(ids.values()))
    await walk.run()
    return {key: walk.found[key_id] for key, key_id in ids.items()}


class _Walk:
    """Towards the peers nearest to each key, as far as anybody knows them."""

    def __init__(self, dht: Any, keys: Collection[Any]) -> None:
        self._dht, self._keys = dht, keys
        self._width: int = dht.protocol.bucket_size
        self._peers: dict[Any, Any] = {}
        """Node in the space of keys -> its peer."""
        self._asked: set[tuple[Any, Any]] = set()
        self.found: dict[Any, Entries] = {key: {} for key in keys}

    async def run(self) -> None:
        for key in self._keys:
            self._add(key, self._dht.protocol.storage.get(key))
            self._meet(self._dht.protocol.routing_table.get_nearest_neighbors(key, self._width))
        for _ in range(ROUNDS_MAX):
            calls = list(self._calls())
            if not calls:
                return
            async with asyncio.TaskGroup() as tasks:
                for node, keys in calls:
                    tasks.create_task(self._ask(node, keys))

    def _calls(self) -> Iterator[tuple[Any, list[Any]]]:
        """Whom to ask for what: each key's nearest peers that were not asked for it yet."""
        wanted: dict[Any, list[Any]] = defaultdict(list)
        for key in self._keys:
            for node in heapq.nsmallest(self._width, self._peers, key.xor_distance):
                if (node, key) not in self._asked:
                    self._asked.add((node, key))
                    wanted[node].append(key)
        for node, keys in wanted.items():
            for first in range(0, len(keys), KEYS_PER_CALL_MAX):
                yield node, keys[first : first + KEYS_PER_CALL_MAX]

    async def _ask(self, node: Any, keys: list[Any]) -> None:
        """A peer that does not answer is not called again for a while, here or elsewhere."""
        peer, blacklist = self._peers[node], self._dht.blacklist
        if peer in blacklist:
            return
        answer = await self._dht.protocol.call_find(peer, keys)
        if not answer:
            blacklist.register_failure(peer)
            return
        blacklist.register_success(peer)
        for key, (entry, neighbours) in answer.items():
            self._add(key, entry)
            self._meet(list(neighbours.items())[: self._width])

    def _add(self, key: Any, entry: Any) -> None:
        """A plain value has no subkeys, so nobody can have signed it: passed over, as is more than a peer keeps."""
        if entry is None or isinstance(entry.value, bytes) or len(entry.value) > RECORDS_PER_KEY_MAX:
            return
        entries = self.found[key]
        for subkey, (value, expiration) in entry.value.items():
            if subkey not in entries or entries[subkey][1] < expiration:
                entries[subkey] = value, expiration

    def _meet(self, nodes: Collection[tuple[Any, Any]]) -> None:
        for node, peer in nodes:
            if node != self._dht.node_id:
                self._peers.setdefault(node, peer)
