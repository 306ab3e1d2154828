"""The files of a dataset: of the Hugging Face hub, or of a local folder.

The datasets package finds them, and reads those that we do not read ourselves (node/data/rows.py). It is imported where
it is needed. From version 4 on it runs no code of a dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from understudy.node.data.access import TextAccess
from understudy.node.data.rows import (
    ROWS_PER_READ,
    Row,
    json_rows,
    parquet_row_count,
    parquet_rows,
    table_rows,
    text_rows,
)
from understudy.node.data.streamed_file import HUB_PREFIX, PACKED_OTHERWISE, first_line, said
from understudy.node.data.text_files import require_plain_tree
from understudy.node.data.tokenizer import INSTALL
from understudy.protocol.errors import SettingsError, TextError
from understudy.protocol.manifest import DataSettings

_PLAIN: dict[str, dict[str, str | bool | None]] = {
    "ParquetConfig": {"filters": None},
    "JsonConfig": {"field": None, "encoding": "utf-8"},
    "TextConfig": {"encoding": "utf-8", "sample_by": "line", "keep_linebreaks": False},
}
"""The kinds of files that we read, and the settings with which a dataset's card may ask for something else."""


KINDS = (*_PLAIN, "CsvConfig", "ArrowConfig")
"""Of files that hold nothing but rows. Others of the library's kinds follow names of files within files."""

TEXT_COLUMN = "text"
"""Of files of plain text."""


class Dataset(Protocol):
    """One split, cut into shards that are read one by one."""

    name: str
    """For people."""

    @property
    def shard_count(self) -> int:
        """How many."""

    def shard_name(self, shard: int) -> str:
        """For people."""

    def row_count(self, shard: int) -> int | None:
        """Rows of a shard without reading it, or None if that is not possible. Raises like `rows`."""

    def rows(self, shard: int) -> Iterator[Sequence[Row]]:
        """The rows of a shard, in batches. Raises `TextError`."""


def open_dataset(settings: DataSettings, split: str, access: TextAccess) -> Dataset:
    """Find the files. Raises `SettingsError` with what to change, `TextError` if the hub is out of reach."""
    try:
        import datasets
    except ImportError as error:
        raise SettingsError(f"data.source = 'huggingface' needs packages that are not installed: {INSTALL}") from error
    place = _on_hub(settings, access) if settings.dataset else _here(settings, access)
    try:
        with said(f"the dataset {place.name}", passing=FileNotFoundError):
            builder = datasets.load_dataset_builder(
                place.path, settings.config or None, revision=settings.revision or None, token=place.token
            )
            named: Any = builder.config.data_files or {}
            found = {str(name): list(map(str, files)) for name, files in named.items()}
            _require_within(place, type(builder.config).__name__, found)
            if _is_plain(builder.config, found):
                files = _of_split(found, split, place)
                return _Files(files, type(builder.config).__name__, settings.column, place)
            return _Tables(builder.as_streaming_dataset(split=split), place.name, settings.column)
    except (SettingsError, TextError):
        raise
    except Exception as error:
        # A card that is no YAML, an archive that is none: whatever the library raises, the dataset is wrong.
        raise SettingsError(f"data.dataset: {first_line(error)}") from error


class _Place(NamedTuple):
    """Where a dataset lies."""

    path: str
    """As the library takes it."""
    root: str
    """What the names of all its files begin with."""
    name: str
    """For people."""
    token: str | bool = False


def _on_hub(settings: DataSettings, access: TextAccess) -> _Place:
    """Raises `SettingsError` if the hub may not be asked, or if the library would not ask it."""
    name = settings.dataset
    access.require_hub(f"the dataset {name}")
    if Path(name).exists():
        raise SettingsError(f"there is a {name} in this folder, which would be taken for the hub's: start elsewhere")
    return _Place(name, f"{HUB_PREFIX}datasets/{name}@{settings.revision}/", name, access.token)


def _here(settings: DataSettings, access: TextAccess) -> _Place:
    """The folder's full path: by a relative one the library would look for it on the hub. Raises `SettingsError`."""
    texts = access.require_texts(settings.digest)
    path = texts[0].expanduser().resolve()
    if len(texts) > 1:
        raise SettingsError("the run's text is the one folder of a dataset, and --data names several")
    if not path.is_dir():
        raise SettingsError(f"the text {path} {'is not a folder' if path.exists() else 'does not exist'}")
    require_plain_tree(path)
    return _Place(str(path), f"{path}/", str(path))


def _require_within(place: _Place, kind: str, found: Mapping[str, Sequence[str]]) -> None:
    """Raises `SettingsError` unless the dataset is made of its own files, of a kind that names no others.

    A dataset's card says which files it is made of, and may name any of this machine, and any address of its network.
    """
    if kind not in KINDS:
        raise SettingsError(f"the dataset {place.name} is made of files of a kind that is not read here ({kind})")
    for file in (file for files in found.values() for file in files):
        if not file.startswith(place.root) or "/../" in file or "::" in file:
            raise SettingsError(f"the dataset {place.name} names a file that is not its own, {file!r}: do not trust it")


def _is_plain(config: Any, found: Mapping[str, Sequence[str]]) -> bool:
    """Whether the files are such as node/data/rows.py reads, all of them."""
    plain = _PLAIN.get(type(config).__name__)
    if plain is None or any(getattr(config, name, usual) != usual for name, usual in plain.items()):
        return False
    return not any(file.endswith(PACKED_OTHERWISE) for files in found.values() for file in files)


def _of_split(found: Mapping[str, list[str]], split: str, place: _Place) -> list[str]:
    if split not in found:
        raise SettingsError(f"data.dataset: {place.name} has no split {split!r}, but {', '.join(found)}")
    return found[split]


class _Files:
    """A dataset of files that we read ourselves; a shard is a file."""

    def __init__(self, files: list[str], kind: str, column: str, place: _Place) -> None:
        if kind == "TextConfig" and column != TEXT_COLUMN:
            raise SettingsError(f"data.column: files of plain text have no column {column!r}, but {TEXT_COLUMN}")
        self._files, self._token = files, place.token
        self.name = place.name
        self._has_footers = kind == "ParquetConfig"
        read: dict[str, Callable[[str], Iterator[list[Row]]]] = {
            "ParquetConfig": lambda url: parquet_rows(url, column, place.token),
            "JsonConfig": lambda url: json_rows(url, column, place.token),
            "TextConfig": lambda url: text_rows(url, place.token),
        }
        self._read = read[kind]

    @property
    def shard_count(self) -> int:
        return len(self._files)

    def shard_name(self, shard: int) -> str:
        return self._files[shard]

    def row_count(self, shard: int) -> int | None:
        return parquet_row_count(self._files[shard], self._token) if self._has_footers else None

    def rows(self, shard: int) -> Iterator[list[Row]]:
        return self._read(self._files[shard])


class _Tables:
    """A dataset of other files: the library reads them, whole, and may stumble over any of their columns."""

    def __init__(self, dataset: Any, name: str, column: str) -> None:
        self._dataset, self.name, self._column = dataset, name, column

    @property
    def shard_count(self) -> int:
        count: int = self._dataset.num_shards
        return count

    def shard_name(self, shard: int) -> str:
        return f"part {shard} of {self.name}"

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
