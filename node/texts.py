"""The texts of a dataset of the Hugging Face hub, or of a local folder, read as a stream.

The texts of a split are numbered: shard after shard (a file, in general) in an order drawn from the run's seed,
within a shard as they stand in it, and after the last one the first again. Whoever begins at a high number opens the
shard that holds it. How many texts the shards before have is in the footers of Parquet files; files of other kinds
have to be read through. There is no shuffling through a buffer: a text's number would depend on all texts before it
and on a library's random numbers.

The datasets package is imported where it is needed. From version 4 on it runs no code of a dataset.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from understudy.node.tokens import INSTALL
from understudy.protocol.errors import SettingsError, TextError
from understudy.protocol.manifest import DataSettings, is_local

TEXTS_PER_READ = 256
TEXT_CHARACTERS_MAX = 1 << 20
"""Of a longer text only the beginning is used."""


class _Reading(NamedTuple):
    """An open shard: what follows in batches, and the rest of the last batch (an Arrow column)."""

    turn: int
    """Of the shard in the order of shards."""
    batches: Iterator[Any]
    rest: Any
    number: int
    """Of the first text of ``rest`` in the shard."""


class Texts:
    """One split, one shard of it open at a time. Not thread-safe: one thread opens it, reads and closes."""

    def __init__(
        self, settings: DataSettings, split: str, sort_key: Callable[[int], object], progress: Callable[[], None]
    ) -> None:
        """Find the files. Shards are read in the order of ``sort_key``; each batch that was read is ``progress``.

        Raises `SettingsError` with what to change, `TextError` if the hub is out of reach.
        """
        self._column, self._name, self._progress = settings.column, settings.dataset, progress
        self._dataset, self._files = _open_dataset(settings, split)
        self.shard_count: int = self._dataset.num_shards
        self.order = sorted(range(self.shard_count), key=sort_key)  # type: ignore[arg-type]
        self._ends: list[int] = []
        """Of the shards whose length is known, in order: the number after the last text."""
        self._reading: _Reading | None = None

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
            raise SettingsError(f"data.dataset: {self._name} has no texts in this split")
        number = number % self._total if self._total else number
        turn = bisect_right(self._ends, number)
        try:
            with _translated(self._name):
                return self._read_shard(turn, number - (self._ends[turn - 1] if turn else 0), count)
        except BaseException:
            self.close()
            raise

    def _read_shard(self, turn: int, number: int, count: int) -> list[str]:
        is_known = turn < len(self._ends)
        if not is_known and (length := self._length_in_footer(self.order[turn])) is not None:
            self._learn(length)
            return []
        reading = self._advance(self._open(turn, number), number)
        if number >= reading.number + len(reading.rest):
            if is_known:
                raise TextError(f"the dataset {self._name} has fewer texts than it had: was it changed?")
            self._learn(reading.number)
            return []
        begin = number - reading.number
        found = reading.rest[begin : begin + count]
        self._reading = reading._replace(rest=reading.rest[begin + len(found) :], number=number + len(found))
        return [self._text(value) for value in found.to_pylist()]

    def _open(self, turn: int, number: int) -> _Reading:
        reading = self._reading
        if reading is None or reading.turn != turn or reading.number > number:
            self.close()
            shard = self._dataset.shard(num_shards=self.shard_count, index=self.order[turn])
            reading = _Reading(turn, iter(shard.with_format("arrow").iter(batch_size=TEXTS_PER_READ)), (), 0)
        return reading

    def _advance(self, reading: _Reading, number: int) -> _Reading:
        """Go on to the batch that has the text, or to the shard's end."""
        while number >= reading.number + len(reading.rest):
            table = next(reading.batches, None)
            self._progress()
            reading = reading._replace(rest=(), number=reading.number + len(reading.rest))
            if table is None:
                break
            reading = reading._replace(rest=self._column_of(table))
        self._reading = reading
        return reading

    def _learn(self, length: int) -> None:
        self._ends.append(length + (self._ends[-1] if self._ends else 0))

    def _length_in_footer(self, shard: int) -> int | None:
        """Texts of a shard without reading it, or None if that is not possible."""
        if not self._files:
            return None
        from fsspec.core import url_to_fs
        from pyarrow.parquet import read_metadata

        system, path = url_to_fs(self._files[shard])
        with system.open(path, "rb") as file:
            length: int = read_metadata(file).num_rows
        self._progress()
        return length

    def _column_of(self, table: Any) -> Any:
        if self._column not in table.column_names:
            names = ", ".join(table.column_names)
            raise SettingsError(f"data.column: {self._name} has no column {self._column!r}, but {names}")
        return table.column(self._column)

    def _text(self, value: object) -> str:
        if value is not None and not isinstance(value, str):
            kind = type(value).__name__
            raise SettingsError(f"data.column: {self._column!r} of {self._name} holds {kind}, not text")
        return (value or "")[:TEXT_CHARACTERS_MAX]


def _open_dataset(settings: DataSettings, split: str) -> tuple[Any, list[str]]:
    """A streaming dataset, and its shards' files if they are Parquet. Raises `SettingsError` or `TextError`."""
    try:
        import datasets
    except ImportError as error:
        raise SettingsError(f"data.source = 'huggingface' needs packages that are not installed: {INSTALL}") from error
    path = str(Path(settings.dataset).expanduser()) if is_local(settings.dataset) else settings.dataset
    try:
        with _translated(settings.dataset):
            builder = datasets.load_dataset_builder(path, settings.config or None, revision=settings.revision or None)
            dataset = builder.as_streaming_dataset(split=split)
    except (FileNotFoundError, ValueError) as error:
        raise SettingsError(f"data.dataset: {_first_line(error)}") from error
    files = [str(file) for file in (builder.config.data_files or {}).get(split, ())]
    has_footers = len(files) == dataset.num_shards and all(file.endswith(".parquet") for file in files)
    return dataset, files if has_footers else []


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Errors of the line, the hub and of damaged files become `TextError`."""
    from huggingface_hub.errors import HTTPError
    from pyarrow import ArrowException

    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, HTTPError, ArrowException) as error:
        raise TextError(f"the dataset {name} cannot be read: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
