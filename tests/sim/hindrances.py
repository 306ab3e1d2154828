"""What `Hinder` and `SlowReader` do: messages of some kinds lost or late, and records read late or not at all."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Generic, TypeVar

from tests.sim.faults import Hinder, SlowReader
from understudy.protocol.ids import PeerId
from understudy.protocol.wire.messages import AnyMessage

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Hindrance:
    """A `Hinder` at work."""

    fault: Hinder
    source: PeerId | None
    target: PeerId | None
    until: float

    def concerns(self, source: PeerId, target: PeerId, message: AnyMessage) -> bool:
        is_kind = type(message).__name__ in self.fault.kinds
        return is_kind and self.source in {None, source} and self.target in {None, target}


@dataclass(frozen=True, slots=True)
class Reading(Generic[R]):
    """A `SlowReader` at work, and the records as they were when it began."""

    fault: SlowReader
    until: float
    records: dict[str, dict[PeerId, R]]


class Hindrances(Generic[R]):
    """All that hinders messages and readers. Draws nothing unless something does."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._words: list[Hindrance] = []
        self._readers: dict[PeerId, Reading[R]] = {}

    def hinder(self, hindrance: Hindrance) -> None:
        self._words.append(hindrance)

    def slow_down(self, reader: PeerId, reading: Reading[R]) -> None:
        self._readers[reader] = reading

    def delay(self, now: float, source: PeerId, target: PeerId, message: AnyMessage) -> float | None:
        """How much longer the message takes; None if it is lost."""
        for hindrance in self._words:
            if now < hindrance.until and hindrance.concerns(source, target, message):
                fault = hindrance.fault
                if fault.loss and self._rng.random() < fault.loss:
                    return None
                return fault.delay_s if fault.is_exact or not fault.delay_s else self._rng.random() * fault.delay_s
        return 0.0

    def reading_delay(self, now: float, reader: PeerId) -> float:
        """How long what is read now takes to arrive, beyond the usual."""
        reading = self._readers.get(reader)
        return reading.fault.delay_s if reading is not None and now < reading.until else 0.0

    def stale(self, now: float, reader: PeerId) -> dict[str, dict[PeerId, R]] | None:
        """The old records that are all that the reader sees now; None if it sees what there is."""
        reading = self._readers.get(reader)
        return reading.records if reading is not None and now < reading.until and reading.fault.is_stale else None
