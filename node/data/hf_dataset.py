"""The files of a dataset: of the Hugging Face hub, or of a local folder.

The datasets package finds them, and reads those that we do not read ourselves (node/data/rows.py). It is imported where
it is needed. From version 4 on it runs no code of a dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from understudy.node.data.rows import (
    ROWS_PER_READ,
    Row,
    json_rows,
    parquet_row_count,
    parquet_rows,
    table_rows,
    text_rows,
)
from understudy.node.data.streamed_file import PACKED_OTHERWISE, first_line, said
from understudy.node.data.tokenizer import INSTALL
from understudy.protocol.errors import SettingsError, TextError
from understudy.protocol.manifest import DataSettings
from understudy.protocol.manifest_reader import is_local

_PLAIN: dict[str, dict[str, str | bool | None]] = {
    "ParquetConfig": {"filters": None},
    "JsonConfig": {"field": None, "encoding": "utf-8"},
    "TextConfig": {"encoding": "utf-8", "sample_by": "line", "keep_linebreaks": False},
}
"""The kinds of files that we read, and the settings with which a dataset's card may ask for something else."""


TEXT_COLUMN = "text"
"""Of files of plain text."""


class Dataset(Protocol):
    """One split, cut into shards that are read one by one."""

    @property
    def shard_count(self) -> int:
        """How many."""

    def shard_name(self, shard: int) -> str:
        """For people."""

    def row_count(self, shard: int) -> int | None:
        """Rows of a shard without reading it, or None if that is not possible. Raises like `rows`."""

    def rows(self, shard: int) -> Iterator[Sequence[Row]]:
        """The rows of a shard, in batches. Raises `TextError`."""


def open_dataset(settings: DataSettings, split: str) -> Dataset:
    """Find the files. Raises `SettingsError` with what to change, `TextError` if the hub is out of reach."""
    try:
        import datasets
    except ImportError as error:
        raise SettingsError(f"data.source = 'huggingface' needs packages that are not installed: {INSTALL}") from error
    path = _local_folder(settings.dataset) if is_local(settings.dataset) else settings.dataset
    try:
        with said(f"the dataset {settings.dataset}", passing=FileNotFoundError):
            builder = datasets.load_dataset_builder(path, settings.config or None, revision=settings.revision or None)
            named: Any = builder.config.data_files or {}
            found = {str(name): list(map(str, files)) for name, files in named.items()}
            if _is_plain(builder.config, found):
                return _Files(_of_split(found, split, settings), type(builder.config).__name__, settings.column)
            return _Tables(builder.as_streaming_dataset(split=split), settings.dataset, settings.column)
    except (FileNotFoundError, ValueError) as error:
        raise SettingsError(f"data.dataset: {first_line(error)}") from error


def _local_folder(name: str) -> str:
    """The folder's full path: by a relative one the library would look for it on the hub. Raises `SettingsError`."""
    path = Path(name).expanduser().absolute()
    if not path.is_dir():
        raise SettingsError(f"data.dataset: {path} {'is not a folder' if path.exists() else 'does not exist'}")
    return str(path)


def _is_plain(config: Any, found: Mapping[str, Sequence[str]]) -> bool:
    """Whether the files are such as node/data/rows.py reads, all of them."""
    plain = _PLAIN.get(type(config).__name__)
    if plain is None or any(getattr(config, name, usual) != usual for name, usual in plain.items()):
        return False
    return not any("::" in file or file.endswith(PACKED_OTHERWISE) for files in found.values() for file in files)


def _of_split(found: Mapping[str, list[str]], split: str, settings: DataSettings) -> list[str]:
    if split not in found:
        raise SettingsError(f"data.dataset: {settings.dataset} has no split {split!r}, but {', '.join(found)}")
    return found[split]


class _Files:
    """A dataset of files that we read ourselves; a shard is a file."""

    def __init__(self, files: list[str], kind: str, column: str) -> None:
        if kind == "TextConfig" and column != TEXT_COLUMN:
            raise SettingsError(f"data.column: files of plain text have no column {column!r}, but {TEXT_COLUMN}")
        self._files = files
        self._has_footers = kind == "ParquetConfig"
        read: dict[str, Callable[[str], Iterator[list[Row]]]] = {
            "ParquetConfig": lambda url: parquet_rows(url, column),
            "JsonConfig": lambda url: json_rows(url, column),
            "TextConfig": text_rows,
        }
        self._read = read[kind]

    @property
    def shard_count(self) -> int:
        return len(self._files)

    def shard_name(self, shard: int) -> str:
        return self._files[shard]

    def row_count(self, shard: int) -> int | None:
        return parquet_row_count(self._files[shard]) if self._has_footers else None

    def rows(self, shard: int) -> Iterator[list[Row]]:
        return self._read(self._files[shard])


class _Tables:
    """A dataset of other files: the library reads them, whole, and may stumble over any of their columns."""

    def __init__(self, dataset: Any, name: str, column: str) -> None:
        self._dataset, self._name, self._column = dataset, name, column

    @property
    def shard_count(self) -> int:
        count: int = self._dataset.num_shards
        return count

    def shard_name(self, shard: int) -> str:
        return f"part {shard} of {self._name}"

    def row_count(self, shard: int) -> int | None:
        return None

    def rows(self, shard: int) -> Iterator[list[Row]]:
        part = self._dataset.shard(num_shards=self.shard_count, index=shard)
        tables = iter(part.with_format("arrow").iter(batch_size=ROWS_PER_READ))
        try:
            while (table := self._next(tables, shard)) is not None:
                yield table_rows(table, self._column, table.column_names)
        finally:
            if isinstance(tables, Generator):
                tables.close()  # it holds the file

    def _next(self, tables: Iterator[Any], shard: int) -> Any:
        try:
            return next(tables, None)
        except Exception as error:
            # Whatever the reader of a format that we do not know may raise: it is the text that is wrong.
            raise TextError(f"{self.shard_name(shard)} cannot be read: {first_line(error)}") from error
