"""Rows that cannot be read: skipped by a rule of their own bytes, counted and named, never the end of a run."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the library is imported

import pyarrow
import pyarrow.parquet
import pytest
from fsspec.implementations.local import LocalFileSystem

from understudy.node.data import rows, texts
from understudy.node.data.access import TextAccess
from understudy.node.data.hf_dataset import open_dataset
from understudy.node.data.texts import Texts
from understudy.protocol.errors import SettingsError, TextError
from understudy.protocol.manifest import DataSettings


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "cache")


def open_texts(folder: Path | str, column: str = "text") -> Texts:
    settings = DataSettings(source="huggingface", column=column, end_of_text=".")
    dataset = open_dataset(settings, "train", TextAccess((Path(folder),)))
    return Texts(dataset, lambda shard: shard, lambda: None)


def all_of(folder: Path, column: str = "text") -> list[str]:
    stream = open_texts(folder, column)
    try:
        return stream.read_first(1_000_000)
    finally:
        stream.close()


def write_lines(path: Path, values: Sequence[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path.parent


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "understudy.node.data.texts"]


# What used to end the run


def test_a_line_that_is_not_utf8_is_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_bytes("eins\nzwei ö\n".encode() + "drei ö\n".encode("latin-1") + b"vier\r\nf\xc3\xbcnf")
    assert all_of(tmp_path) == ["eins", "zwei ö", "", "vier", "fünf"]
    assert warnings(caplog) == [f"a text is skipped: row 3 of {tmp_path / 'a.txt'}: byte 6 of it is not UTF-8"]


def test_files_whose_other_columns_differ_are_read(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "one", "x": 1}])
    write_lines(tmp_path / "b.jsonl", [{"text": "two", "y": "z"}, {"y": {"deep": [1, "a"]}, "text": "three"}])
    assert all_of(tmp_path) == ["one", "two", "three"]


@pytest.mark.parametrize("nulls", [321, 55_000])
def test_a_field_that_becomes_an_object_later_does_not_matter(nulls: int, tmp_path: Path) -> None:
    values = [{"text": f"text {number}", "meta": None} for number in range(nulls)]
    write_lines(tmp_path / "a.jsonl", [*values, {"text": "last", "meta": {"key": 1}}])
    assert all_of(tmp_path)[-2:] == [f"text {nulls - 1}", "last"]


PACKED = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("kind", PACKED)
def test_a_packed_file_that_is_cut_off_ends_there(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [{"text": f"{number} {os.urandom(40).hex()}"} for number in range(20_000)]
    content = PACKED[kind]("".join(json.dumps(value) + "\n" for value in values).encode())
    path = tmp_path / "a" / f"1.jsonl.{kind}"
    path.parent.mkdir()
    path.write_bytes(content)
    assert all_of(path.parent) == [value["text"] for value in values]
    path.write_bytes(content[: len(content) // 2])
    write_lines(tmp_path / "a" / "2.jsonl", [{"text": "of the next file"}])
    found = all_of(path.parent)
    whole = len(found) - 2
    assert 100 < whole < 15_000
    assert found == [value["text"] for value in values[:whole]] + ["", "of the next file"]
    (warning,) = warnings(caplog)
    assert f"row {whole + 1} of {path}: the file is damaged or cut off here" in warning
    monkeypatch.setattr(rows, "ROWS_PER_READ", 7)
    assert all_of(path.parent) == found, "it depends on how one reads"


class CutLine(io.BytesIO):
    """A file of which a broken line lets only the beginning through, as if it ended there."""

    size = 1_000_000


def test_a_line_that_breaks_is_not_taken_for_a_file_that_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's end is the same for everybody, a broken line is not."""
    values = [{"text": os.urandom(40).hex()} for _ in range(5_000)]
    content = gzip.compress("".join(json.dumps(value) + "\n" for value in values).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    monkeypatch.setattr(LocalFileSystem, "open", lambda system, path, mode: CutLine(content[: len(content) // 2]))
    with pytest.raises(TextError, match=r"a\.jsonl\.gz cannot be read: it ended before its end"):
        all_of(tmp_path)


def test_a_folder_that_is_removed_is_one_clear_error(tmp_path: Path) -> None:
    for shard in range(2):
        write_lines(tmp_path / "gone" / f"{shard}.jsonl", [{"text": "here"}])
    stream = open_texts(tmp_path / "gone")
    assert stream.read(0, 1) == ["here"]
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(TextError, match=r"1\.jsonl cannot be read: .*No such file"):
        stream.read(1, 1)
    stream.close()


def test_a_folder_that_is_missing_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=rf"^the text {tmp_path}/words does not exist$"):
        open_texts("./words")
    write_lines(tmp_path / "words" / "a.jsonl", [{"text": "here"}])
    assert open_texts("./words").read_first(1) == ["here"]
    with pytest.raises(SettingsError, match=r"a\.jsonl is not a folder"):
        open_texts("./words/a.jsonl")


# Row by row

BAD_ROWS = {
    b'{"text": 1}': "its 'text' holds int, not text",
    b'{"text": "\xf6"}': "byte 11 of it is not UTF-8",
    b'{"text": "half \\ud800"}': "its 'text' has half a character (a lone surrogate)",
    b'{"words": "x", "b": 1}': "it has no column 'text', but words, b",
    b'["a", "list"]': "it is not a JSON object",
    b'{"text": "cut o': "it is not a JSON value",
    b'{"text": "a"} {"text": "b"}': "it is not a JSON value",
    b'{"text": "long' + b"g" * 100 + b'"}': "it is longer than 64 bytes",
}
GOOD_ROWS = {
    b'{"text": "a", "score": NaN}': "a",
    b'{"other": "\xf6", "text": "b"}': "b",
    b'"bare"': "bare",
    b'  {"text": "\\u00e9"}  \r': "é",
    b'{"text": null}': "",
}


@pytest.mark.parametrize("row", [*BAD_ROWS, *GOOD_ROWS], ids=repr)
def test_a_row_is_judged_by_its_own_bytes(
    row: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "LINE_BYTES_MAX", 64)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "before"}\n\n' + row + b'\n{"text": "after"}')
    assert all_of(tmp_path) == ["before", GOOD_ROWS.get(row, ""), "after"]
    expected = [f"a text is skipped: row 2 of {path}: {BAD_ROWS[row]}"] if row in BAD_ROWS else []
    assert warnings(caplog) == expected


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "one"}, {"text": 2}, {"meta": {"a": 1}, "text": "three"}]',
        '[\n{"text": "one"},\n{"text": 2, "x": NaN},\n{"meta": null, "text": "three"}\n]\n',
        '["one", 2, "three"]',
    ],
)
def test_an_array_is_read_row_by_row_too(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    assert all_of(tmp_path) == ["one", "", "three"]


def test_an_object_over_many_lines_is_a_row_and_an_array_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"text": "spread", "b": 1}, indent=2))
    (tmp_path / "b.json").write_text('[{"text": "one"},')
    stream = open_texts(tmp_path)
    assert stream.read_first(9) == ["spread", ""]
    assert stream.first_flaw == f"row 1 of {tmp_path / 'b.json'}: the file begins like a JSON array and is none"
    stream.close()


def parquet_with(path: Path, values: pyarrow.Array) -> Path:
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": values, "n": [1] * len(values)}), path)
    return path.parent


def not_utf8() -> pyarrow.Array:
    buffers = [None, pyarrow.array([0, 3, 5, 8], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"one\xf6\xf6two")]
    return pyarrow.Array.from_buffers(pyarrow.string(), 3, buffers)


def test_of_a_parquet_file_the_column_alone_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert all_of(parquet_with(tmp_path / "latin" / "a.parquet", not_utf8())) == ["one", "", "two"]
    assert warnings(caplog) == [
        f"a text is skipped: row 2 of {tmp_path / 'latin' / 'a.parquet'}: byte 1 of it is not UTF-8"
    ]
    mixed = parquet_with(tmp_path / "mixed" / "1.parquet", pyarrow.array(["one"]))
    pyarrow.parquet.write_table(pyarrow.table({"words": ["two"]}), mixed / "2.parquet")
    pyarrow.parquet.write_table(
        pyarrow.table({"text": pyarrow.array(["three"]).dictionary_encode()}), mixed / "3.parquet"
    )
    assert all_of(mixed) == ["one", "", "three"]


def test_other_formats_are_read_by_the_library_and_end_in_one_line(tmp_path: Path) -> None:
    write = (tmp_path / "csv" / "a.csv").write_text
    (tmp_path / "csv").mkdir()
    write("text,n\none,1\ntwo,2\n")
    assert all_of(tmp_path / "csv") == ["one", "two"]
    write("text,n\none,1\ntwo,2,3,4\n")
    with pytest.raises(TextError, match=r"part 0 of .*csv cannot be read: "):
        all_of(tmp_path / "csv")


# Counted


def test_many_are_counted_and_few_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": number} for number in range(100)])
    stream = open_texts(tmp_path)
    for _ in range(3):
        stream.read(0, 250)
        stream.close()
    assert stream.skipped == 100
    told = warnings(caplog)
    assert len(told) == texts.SKIPS_TOLD + 4
    assert told[-1].startswith("64 texts were skipped so far, the last one is row 64 of ")


@pytest.mark.parametrize("number", [0, 3, 250, 600])
def test_whoever_begins_anywhere_reads_the_same(number: int, tmp_path: Path) -> None:
    kinds: list[Callable[[int], object]] = [str, lambda n: n, lambda n: None, lambda n: {"n": n}]
    for shard in range(3):
        values = [{"text": kinds[(row * 7 + shard) % 4](row)} for row in range(200)]
        write_lines(tmp_path / f"{shard}.jsonl", values)
    expected = all_of(tmp_path)
    assert len(expected) == 600
    stream = open_texts(tmp_path)
    assert stream.read(number, 300) == (expected * 2)[number : number + 300]
    stream.close()
