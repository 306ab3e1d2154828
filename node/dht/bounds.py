"""What this peer keeps for the DHT, and what it believes of what others kept.

hivemind (1.1.12) keeps whatever is signed: any key, any number of subkeys of one owner, for as long as its owner
likes. Here one owner has one record under each key, under the run's keys only, so many bytes in all, and not for
ever. Who is there already stays while it says so again: when a shelf is full, newcomers are refused.

`Shelf` decides, and knows nothing of hivemind; `bound_storage` has it asked before hivemind stores anything.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from understudy.node.dht.signing import LIFETIME_MAX_S, RECORD_VALUE_BYTES_MAX, owner_of
from understudy.protocol.ids import PeerId
from understudy.protocol.wire.records import RECORDS_PER_KEY_MAX

KEYS_MAX = 4096
"""Of a peer that is of no run; the keys of a run are known."""
OWNER_BYTES_MAX = 128 * 1024
"""Of all records of one owner. A manifest takes up to 24 KiB of it, any other record about one."""
SHELF_BYTES_MAX = 32 << 20
SWEEP_EVERY_S = 1.0
"""What has expired is looked for so often at most: it takes a look at every record."""
GHOSTS_MAX = 64
"""hivemind notes each store for its expiration, and forgets none of them before: beyond so many, they are cleared."""

KeyLimits = Mapping[bytes, int]
"""Bytes that a record's value may have, for each key that there can be, as it is called in the DHT."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One record on the shelf."""

    subkey: bytes
    size: int
    """Bytes, with signature and subkey."""
    expiration: float


class Shelf:
    """The account of what is kept: which owner has what under which key. ``now`` and expirations in DHT time."""

    def __init__(self, limits: KeyLimits | None = None) -> None:
        """``limits`` None: any key will do, as for a peer that is of no run."""
        self.limits = limits
        self._kept: dict[bytes, dict[PeerId, Kept]] = {}
        self._bytes_of: dict[PeerId, int] = {}
        self._bytes = 0
        self._swept = float("-inf")

    def value_bytes_max(self, key: bytes) -> int:
        """How long a value under this key may be; less than nothing if there is no such key in the run."""
        if self.limits is None:
            return RECORD_VALUE_BYTES_MAX
        return self.limits.get(key, -1)

    def refusal(self, key: bytes, owner: PeerId, offered: Kept, now: float) -> str | None:
        """Why a record, whose signature was checked, must not be kept; None if it may be."""
        if self.value_bytes_max(key) < 0:
            return "the run has no such key"
        if offered.expiration > now + LIFETIME_MAX_S:
            return "it would be kept for too long"
        known = self._kept.get(key, {}).get(owner)
        if known is not None and known.expiration >= now and known.expiration >= offered.expiration:
            return "a later one of this owner is there"
        return self._lack_of_room(key, owner, offered) and self._lack_after_sweep(key, owner, offered, now)

    def _lack_after_sweep(self, key: bytes, owner: PeerId, offered: Kept, now: float) -> str | None:
        self.sweep(now)
        return self._lack_of_room(key, owner, offered)

    def _lack_of_room(self, key: bytes, owner: PeerId, offered: Kept) -> str | None:
        under_key = self._kept.get(key)
        known = under_key.get(owner) if under_key else None
        more = offered.size - (known.size if known else 0)
        if under_key is None and len(self._kept) >= KEYS_MAX:
            return "too many keys"
        if under_key and known is None and len(under_key) >= RECORDS_PER_KEY_MAX:
            return "too many owners under this key"
        if self._bytes_of.get(owner, 0) + more > OWNER_BYTES_MAX:
            return "too many bytes of this owner"
        return "too many bytes in all" if self._bytes + more > SHELF_BYTES_MAX else None

    def put(self, key: bytes, owner: PeerId, record: Kept) -> bytes | None:
        """Note what is kept from now on; the subkey of the owner's record whose place it takes, if that is another."""
        before = self._take(key, owner)
        self._kept.setdefault(key, {})[owner] = record
        self._bytes_of[owner] = self._bytes_of.get(owner, 0) + record.size
        self._bytes += record.size
        return before.subkey if before is not None and before.subkey != record.subkey else None

    def sweep(self, now: float) -> None:
        """Forget what has expired, unless that was done a moment ago."""
        if now - self._swept < SWEEP_EVERY_S:
            return
        self._swept = now
        for key, owner, record in list(self._all()):
            if record.expiration < now:
                self._take(key, owner)

    def _all(self) -> Iterator[tuple[bytes, PeerId, Kept]]:
        for key, under_key in self._kept.items():
            for owner, record in under_key.items():
                yield key, owner, record

    def _take(self, key: bytes, owner: PeerId) -> Kept | None:
        under_key = self._kept.get(key, {})
        record = under_key.pop(owner, None)
        if record is None:
            return None
        if not under_key:
            del self._kept[key]
        self._bytes -= record.size
        self._bytes_of[owner] -= record.size
        if not self._bytes_of[owner]:
            del self._bytes_of[owner]
        return record

    @property
    def size(self) -> int:
        """Bytes of all that is kept."""
        return self._bytes


def key_limits(dht: Any, keys: Mapping[str, int]) -> KeyLimits:
    """The same keys as the DHT calls them."""
    name = type(dht.node_id).generate
    return {name(key).to_bytes(): limit for key, limit in keys.items()}


def bound_storage(dht: Any, shelf: Shelf, keys: Mapping[str, int], clock: Callable[[], float]) -> None:
    """Have the shelf asked before anything is stored here. Once per DHTNode; what came before is judged as well.

    ``keys``: all that there can be, with the bytes of a value under each; none: any will do.
    """
    shelf.limits, storage = key_limits(dht, keys) if keys else None, dht.protocol.storage
    store_subkey, early = storage.store_subkey, list(storage.items())

    def guarded(key: Any, subkey: Any, value: bytes, expiration: float) -> bool:
        owner = owner_of(subkey)
        if owner is None or not isinstance(value, bytes):
            return False
        name, kept = key.to_bytes(), Kept(subkey, len(subkey) + len(value), expiration)
        if shelf.refusal(name, owner, kept, clock()) is not None or not store_subkey(key, subkey, value, expiration):
            return False
        replaced, entries = shelf.put(name, owner, kept), storage.get(key)
        if entries is not None:
            if replaced is not None and replaced in entries.value:
                del entries.value[replaced]
            _clear_ghosts(entries.value)
        _clear_ghosts(storage)
        return True

    def own(key: Any, value: bytes, expiration: float, subkey: Any = None) -> bool:
        """hivemind's way to keep here what this peer itself stores. Without a subkey it would be nobody's record."""
        return subkey is not None and guarded(key, subkey, value, expiration)

    storage.clear()
    storage.store_subkey = guarded
    storage.store = own
    dht.protocol.cache.store = dht.protocol.cache.store_subkey = _refuse  # no peer of ours asks for it
    for key, entry in early:
        if not isinstance(entry.value, bytes):
            for subkey, (value, expiration) in entry.value.items():
                guarded(key, subkey, value, expiration)


def _refuse(*_: Any, **__: Any) -> bool:
    return False


def _clear_ghosts(storage: Any) -> None:
    """Notes of expirations that hivemind keeps although a later one counts."""
    if len(storage.expiration_heap) > 2 * len(storage.data) + GHOSTS_MAX:
        storage.expiration_heap = list(storage.key_to_heap.values())
        heapq.heapify(storage.expiration_heap)
