"""The texts of a dataset of the Hugging Face hub, or of a local folder, read as a stream.

The texts of a split are numbered: shard after shard (a file, in general) in an order drawn from the run's seed,
within a shard as they stand in it, and after the last one the first again. Whoever begins at a high number opens the
shard that holds it. How many texts the shards before have is in the footers of Parquet files; files of other kinds
have to be read through. There is no shuffling through a buffer: a text's number would depend on all texts before it
and on a library's random numbers.

A row that cannot be read keeps its number and counts as an empty text (node/data/rows.py): all drivers skip the
same ones.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

from understudy.node.data.hf_dataset import Dataset
from understudy.node.data.rows import Row, Unreadable
from understudy.node.data.streamed_file import said
from understudy.protocol.errors import SettingsError, TextError

logger = logging.getLogger(__name__)

TEXT_CHARACTERS_MAX = 1 << 20
"""Of a longer text only the beginning is used."""
SKIPS_TOLD = 5
"""So many rows that cannot be read are named one by one; then one whenever their number has doubled."""


class _Reading(NamedTuple):
    """An open shard: what follows in batches, and the rest of the last batch."""

    turn: int
    """Of the shard in the order of shards."""
    batches: Iterator[Sequence[Row]]
    rest: Sequence[Row]
    number: int
    """Of the first text of ``rest`` in the shard."""


class Texts:
    """One split, one shard of it open at a time. Not thread-safe: one thread opens it, reads and closes."""

    def __init__(self, dataset: Dataset, sort_key: Callable[[int], object], progress: Callable[[], None]) -> None:
        """Shards are read in the order of ``sort_key``; each batch that was read is ``progress``."""
        self._dataset, self._progress = dataset, progress
        self.name = dataset.name
        """For people."""
        self.shard_count = self._dataset.shard_count
        self.order = sorted(range(self.shard_count), key=sort_key)  # type: ignore[arg-type]
        self._ends: list[int] = []
        """Of the shards whose length is known, in order: the number after the last text."""
        self._reading: _Reading | None = None
        self.first_flaw: str | None = None
        """Where the first row is that could not be read, and why."""
        self.skipped = 0
        self._looked_at: dict[int, int] = {}
        """By shard: the rows before this one are counted already."""

    def read(self, number: int, count: int) -> list[str]:
        """``count`` texts from a number on. Raises `SettingsError` if there are none, `TextError` if reading fails.

        After an error the shard is opened anew.
        """
        texts: list[str] = []
        while len(texts) < count:
            texts += self._read_on(number + len(texts), count - len(texts))
        return texts

    def read_first(self, count: int) -> list[str]:
        """The first ``count`` texts, or all if there are fewer. Raises like `read`."""
        texts: list[str] = []
        while len(texts) < count and len(texts) != self._total:
            texts += self._read_on(len(texts), count - len(texts))
        return texts

    def close(self) -> None:
        """Close the file, which a generator holds."""
        reading, self._reading = self._reading, None
        if reading is not None and isinstance(reading.batches, Generator):
            reading.batches.close()

    @property
    def _total(self) -> int | None:
        """Texts of the split, once it was read to its end."""
        return self._ends[-1] if len(self._ends) == self.shard_count else None

    def _read_on(self, number: int, count: int) -> list[str]:
        """Some texts, at most ``count``; none if the end of a shard was found before."""
        if self._total == 0:
            raise SettingsError(f"data.dataset: {self.name} has no texts in this split")
        number = number % self._total if self._total else number
        turn = bisect_right(self._ends, number)
        try:
            with said(f"the dataset {self.name}"):
                return self._read_shard(turn, number - (self._ends[turn - 1] if turn else 0), count)
        except BaseException:
            self.close()
            raise

    def _read_shard(self, turn: int, number: int, count: int) -> list[str]:
        is_known = turn < len(self._ends)
        if not is_known and (length := self._dataset.row_count(self.order[turn])) is not None:
            self._progress()
            self._learn(length)
            return []
        reading = self._advance(self._open(turn, number), number)
        if number >= reading.number + len(reading.rest):
            if is_known:
                raise TextError(f"the dataset {self.name} has fewer texts than it had: was it changed?")
            self._learn(reading.number)
            return []
        begin = number - reading.number
        found = reading.rest[begin : begin + count]
        self._reading = reading._replace(rest=reading.rest[begin + len(found) :], number=number + len(found))
        return [self._text(self.order[turn], number + at, row) for at, row in enumerate(found)]

    def _open(self, turn: int, number: int) -> _Reading:
        reading = self._reading
        if reading is None or reading.turn != turn or reading.number > number:
            self.close()
            reading = _Reading(turn, self._dataset.rows(self.order[turn]), (), 0)
        return reading

    def _advance(self, reading: _Reading, number: int) -> _Reading:
        """Go on to the batch that has the text, or to the shard's end."""
        while number >= reading.number + len(reading.rest):
            batch = next(reading.batches, None)
            self._progress()
            reading = reading._replace(rest=batch or (), number=reading.number + len(reading.rest))
            if batch is None:
                break
        self._reading = reading
        return reading

    def _learn(self, length: int) -> None:
        self._ends.append(length + (self._ends[-1] if self._ends else 0))

    def _text(self, shard: int, number: int, row: Row) -> str:
        if isinstance(row, Unreadable):
            self._skip(shard, number, row.reason)
            return ""
        return (row or "")[:TEXT_CHARACTERS_MAX]

    def _skip(self, shard: int, number: int, reason: str) -> None:
        """Count and name a row that cannot be read, once however often it comes."""
        if number < self._looked_at.get(shard, 0):
            return
        self._looked_at[shard] = number + 1
        self.skipped += 1
        flaw = f"row {number + 1} of {self._dataset.shard_name(shard)}: {reason}"
        self.first_flaw = self.first_flaw or flaw
        if self.skipped <= SKIPS_TOLD:
            logger.warning("a text is skipped: %s", flaw)
        elif self.skipped & (self.skipped - 1) == 0:
            logger.warning("%d texts were skipped so far, the last one is %s", self.skipped, flaw)
