"""The rows of one file of a dataset, in order, and what becomes of a row that cannot be read.

A row's place does not depend on whether it can be read, and whether it can be read depends on nothing but its own
bytes: so every driver skips the same ones, wherever it begins. Of a row only the text column is looked at. Files of
one text or JSON object a line and Parquet files are read here; of other kinds the datasets library makes tables.
"""

from __future__ import annotations

import codecs
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import IO, Any

import msgspec

from understudy.node.data.streamed_file import open_stream, said

ROWS_PER_READ = 256
LINE_BYTES_MAX = 1 << 26
"""A longer line counts as one that cannot be read."""
COLUMNS_NAMED = 10
"""In messages."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What stands in a row's place if it has no text that can be read."""

    reason: str


Row = str | Unreadable | None
"""A text; None: the row says itself that it has none."""
Parse = Callable[[bytes], Sequence[Row]]
"""From the bytes of a line, without its end, to its rows."""


# --- one text a line ---


def parse_text(line: bytes) -> Sequence[Row]:
    """Lines may end as they do on any system: a carriage return ends one too."""
    return [_decoded(part) for part in line.split(b"\r")]


def _decoded(part: bytes) -> Row:
    try:
        return part.decode("utf-8")
    except UnicodeDecodeError as error:
        return Unreadable(f"byte {error.start + 1} of it is not UTF-8")


def text_rows(url: str, token: str | bool = False) -> Iterator[list[Row]]:
    """The lines of a file. Raises `TextError` when reading fails."""
    with open_stream(url, token) as stream:
        yield from _in_batches(_line_rows(stream, parse_text))


# --- one JSON object a line ---


def json_parser(column: str) -> Parse:
    """Reads a row's column and nothing else of it. A blank line is no row."""
    row = msgspec.defstruct("Row", [("value", str | None | msgspec.UnsetType, msgspec.UNSET)], rename={"value": column})
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(row)

    def parse(line: bytes) -> Sequence[Row]:
        if not line.strip():
            return ()
        try:
            value = decoder.decode(line).value
        except (ValueError, RecursionError):
            return (_leniently(line, column),)
        return (_leniently(line, column) if value is msgspec.UNSET else value,)

    return parse


def _leniently(line: bytes, column: str) -> Row:
    """What the strict and fast decoder does not take: Python writes NaN, too; or the words for what is wrong."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        return Unreadable(f"byte {error.start + 1} of it is not UTF-8")
    except (ValueError, RecursionError):
        return Unreadable("it is not a JSON value")
    return _value_of(row, column)


def _value_of(row: object, column: str) -> Row:
    if isinstance(row, str) and column == "text":  # a bare text is taken for a column of this name
        row = {column: row}
    if not isinstance(row, dict):
        return Unreadable("it is not a JSON object")
    if column not in row:
        return Unreadable(no_column(column, row))
    value = row[column]
    if value is not None and not isinstance(value, str):
        return Unreadable(f"its {column!r} holds {type(value).__name__}, not text")
    if value is not None and not value.isascii() and not _is_encodable(value):
        return Unreadable(f"its {column!r} has half a character (a lone surrogate)")
    return value


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def no_column(column: str, names: Any) -> str:
    """The words for a column that is not there, with those that are."""
    named = list(islice(map(str, names), COLUMNS_NAMED + 1))
    return (
        f"it has no column {column!r}, but {', '.join(named[:COLUMNS_NAMED])}{', ...' * (len(named) > COLUMNS_NAMED)}"
    )


def json_rows(url: str, column: str, token: str | bool = False) -> Iterator[list[Row]]:
    """The objects of a file: one a line, or all in one array. Raises `TextError` when reading fails."""
    parse = json_parser(column)
    with open_stream(url, token) as stream:
        try:
            first = stream.readline(LINE_BYTES_MAX).removeprefix(codecs.BOM_UTF8)
        except DAMAGE as error:
            yield [_damaged(error)]
            return
        if first.lstrip().startswith(b"[") or first.strip() == b"{":
            yield from _in_batches(iter(_whole(first, stream, parse)))
        else:
            yield from _in_batches(_line_rows(stream, parse, first))


def _whole(first: bytes, stream: IO[bytes], parse: Parse) -> Sequence[Row]:
    """A file that is one JSON value: an array of rows, or a row that is spread over lines."""
    try:
        content = first + stream.read()
    except DAMAGE as error:
        return [_damaged(error)]
    if not content.lstrip().startswith(b"["):
        return parse(content)
    try:
        values = [bytes(value) for value in msgspec.json.decode(content, type=list[msgspec.Raw])]
    except (ValueError, RecursionError):
        try:
            values = [json.dumps(value).encode() for value in json.loads(content)]
        except (ValueError, RecursionError):
            return [Unreadable("the file begins like a JSON array and is none")]
    return list(chain.from_iterable(map(parse, values)))


# --- lines ---


DAMAGE = (EOFError, zlib.error, lzma.LZMAError, OSError)
"""What the decompressors raise. A failure of the line or the disk is a `TextError` already (streamed_file.py)."""


def _damaged(error: BaseException) -> Unreadable:
    return Unreadable(f"the file is damaged or cut off here, and nothing behind it is read ({error})")


def _line_rows(stream: IO[bytes], parse: Parse, first: bytes = b"") -> Iterator[Row]:
    """The rows of a stream of lines. A damaged file ends where the damage is."""
    line = first
    while True:
        try:
            line = line or stream.readline(LINE_BYTES_MAX)
            is_too_long = len(line) >= LINE_BYTES_MAX and not line.endswith(b"\n")
            if is_too_long:
                _pass_over(stream)
        except DAMAGE as error:
            yield _damaged(error)
            return
        if not line:
            return
        if is_too_long:
            yield Unreadable(f"it is longer than {LINE_BYTES_MAX} bytes")
        else:
            yield from parse(line.removesuffix(b"\n").removesuffix(b"\r"))
        line = b""


def _pass_over(stream: IO[bytes]) -> None:
    """Go on to the end of the line."""
    while (more := stream.readline(LINE_BYTES_MAX)) and not more.endswith(b"\n"):
        pass


def _in_batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, ROWS_PER_READ)):
        yield batch


# --- tables ---


def parquet_rows(url: str, column: str, token: str | bool = False) -> Iterator[list[Row]]:
    """The rows of a Parquet file, of which no other column is read. Raises `TextError`."""
    from pyarrow.parquet import ParquetFile

    with said(url), open_stream(url, token) as stream:
        file = ParquetFile(stream)
        names = file.schema_arrow.names
        columns = [column] if column in names else []
        for batch in file.iter_batches(ROWS_PER_READ, columns=columns, use_threads=False):
            yield table_rows(batch, column, names)


def parquet_row_count(url: str, token: str | bool = False) -> int:
    """From the file's end, without reading it. Raises `TextError`."""
    from pyarrow.parquet import ParquetFile

    with said(url), open_stream(url, token) as stream:
        count: int = ParquetFile(stream).metadata.num_rows
    return count


def table_rows(table: Any, column: str, names: Sequence[str]) -> list[Row]:
    """The rows of an Arrow table or batch. ``names``: of all columns that the file has."""
    if column not in table.schema.names:
        return [Unreadable(no_column(column, names))] * len(table)
    values = table.column(column)
    if not _holds_text(values.type):
        return [Unreadable(f"its {column!r} holds {values.type}, not text")] * len(table)
    try:
        whole: list[Row] = values.to_pylist()
    except UnicodeDecodeError:
        return [_cell(value) for value in values]
    return whole


def _holds_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    kinds = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    return any(is_kind(kind) for is_kind in kinds)


def _cell(value: Any) -> Row:
    try:
        text: str | None = value.as_py()
    except UnicodeDecodeError as error:
        return Unreadable(f"byte {error.start + 1} of it is not UTF-8")
    return text
