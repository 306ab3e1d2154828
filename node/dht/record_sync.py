"""What the core stores in the DHT and reads from it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import msgspec

from understudy.node.dht.hivemind_dht import dht_time
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.dht.votes import with_valid_votes
from understudy.protocol.actions import Read, Store
from understudy.protocol.errors import NetworkError, RemoteProtocolError
from understudy.protocol.events import RecordsRead
from understudy.protocol.manifest import RunManifest
from understudy.protocol.wire.records import (
    RECORDS_PER_KEY_MAX,
    AnyRecord,
    SpareRecord,
    StageRecord,
    decode_record,
    encode_record,
    key_of,
)

logger = logging.getLogger(__name__)


class Records:
    """The core's reads and stores, done one batch at a time; a later store of a key replaces an earlier."""

    def __init__(self, p2p: P2PNode, manifest: RunManifest, feed: Any) -> None:
        self._p2p, self._feed = p2p, feed
        self._prefix, self._digest = manifest.run_id(), manifest.digest()
        self._stores: dict[str, Store] = {}
        self._reads: dict[str, None] = {}
        self._is_due = asyncio.Event()
        self._is_idle = asyncio.Event()

    def add(self, action: Store | Read) -> None:
        if isinstance(action, Store):
            self._stores[key_of(action.record)] = action
        else:
            self._reads |= dict.fromkeys(action.keys)
        self._is_due.set()
        self._is_idle.clear()

    async def run(self) -> None:
        """Stores go before reads, so that we read what we stored."""
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            stores, self._stores = self._stores, {}
            reads, self._reads = self._reads, {}
            async with asyncio.TaskGroup() as tasks:
                for store in stores.values():
                    tasks.create_task(self._store(store))
            if reads:
                await self._read(list(reads))
            if not self._is_due.is_set():
                self._is_idle.set()

    async def flush(self, timeout_s: float) -> None:
        """Wait until everything asked for so far is done, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._is_idle.wait()

    async def _store(self, store: Store) -> None:
        record = store.record
        if isinstance(record, StageRecord | SpareRecord):
            record = msgspec.structs.replace(record, contact=self._p2p.contact)
        key = f"{self._prefix}/{key_of(record)}"
        expiration = dht_time() + store.lifetime_s
        try:
            await self._p2p.store(key, record.peer, encode_record(record), expiration)
        except NetworkError as error:
            logger.warning("%s", error)

    async def _read(self, keys: list[str]) -> None:
        try:
            found = await self._p2p.get_many([f"{self._prefix}/{key}" for key in keys])
        except NetworkError as error:
            logger.warning("%s", error)
            return
        for key in keys:
            records = found[f"{self._prefix}/{key}"][:RECORDS_PER_KEY_MAX]
            self._feed(RecordsRead(key, tuple(self._decode(key, records))))

    def _decode(self, key: str, stored: list[Any]) -> list[AnyRecord]:
        records = []
        for entry in stored:
            try:
                record = with_valid_votes(decode_record(key, entry.owner, entry.value), self._digest)
            except RemoteProtocolError as error:
                logger.debug("ignored: %s", error)
                continue
            records.append(record)
            if isinstance(record, StageRecord | SpareRecord):
                self._p2p.note_contact(entry.owner, record.contact)
        return records
