"""The simulated swarm of tests/sim with meters on it: what every peer says, stores, reads and computes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from tests.sim.node import SimNode
from tests.sim.simulation import Simulation
from understudy.protocol.actions import Action, Read, Send, Store
from understudy.protocol.events import Event, RecordsRead
from understudy.protocol.ids import PeerId
from understudy.protocol.wire.frames import encode_frame
from understudy.protocol.wire.messages import AnyMessage, Backward, Forward
from understudy.protocol.wire.records import AnyRecord, encode_record, key_of


@dataclass
class Meter:
    """What one peer did since the meter was last read."""

    data_messages: int = 0
    """Activations and gradients: their number follows from the model and the steps."""
    messages: int = 0
    """All others."""
    message_bytes: int = 0
    """Of those others."""
    stores: int = 0
    reads: int = 0
    """Keys looked up."""
    records: int = 0
    """Found under them."""
    record_bytes: int = 0
    """Of their values; on the wire each comes with its owner's key and signature."""
    core_seconds: float = 0.0
    """Processor time of the core, that is of all decisions."""

    def add(self, action: Action) -> None:
        match action:
            case Send(message=Forward() | Backward()):
                self.data_messages += 1
            case Send(message=message):
                self.messages += 1
                self.message_bytes += message_bytes(message)
            case Store():
                self.stores += 1
            case Read(keys):
                self.reads += len(keys)

    def add_found(self, records: Iterable[AnyRecord]) -> None:
        for record in records:
            self.records += 1
            self.record_bytes += record_bytes(record)


@dataclass
class KeyMeter:
    """How busy the keys of the DHT are."""

    stores: Counter[str] = field(default_factory=Counter)
    reads: Counter[str] = field(default_factory=Counter)


class MeteredSimulation(Simulation):
    """A simulation that counts from `reset` on."""

    meters: dict[PeerId, Meter]
    keys: KeyMeter

    def reset(self) -> None:
        """Begin to count anew."""
        self.meters = {peer: Meter() for peer in self.nodes}
        self.keys = KeyMeter()

    def feed(self, node: SimNode, event: Event) -> None:
        if isinstance(event, RecordsRead):
            self.meters[node.peer].add_found(event.records)
        super().feed(node, event)

    def _handle(self, node: SimNode, event: Event) -> list[Action]:
        began = time.process_time()
        actions = super()._handle(node, event)
        self.meters[node.peer].core_seconds += time.process_time() - began
        return actions

    def _perform(self, node: SimNode, action: Action) -> None:
        self.meters[node.peer].add(action)
        match action:
            case Store(record):
                self.keys.stores[key_of(record)] += 1
            case Read(keys):
                self.keys.reads.update(keys)
        super()._perform(node, action)


@lru_cache(maxsize=4096)
def message_bytes(message: AnyMessage) -> int:
    return len(encode_frame(message))


@lru_cache(maxsize=4096)
def record_bytes(record: AnyRecord) -> int:
    return len(encode_record(record))
