"""Text read as a stream from a dataset, here a local folder: pure, resumable anywhere, bounded, clear about faults."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the library is imported

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from understudy.node.data import rows, texts
from understudy.node.data import streamed as streamed_data
from understudy.node.data.access import TextAccess, founders_access
from understudy.node.data.data_check import DriverText, describe_data, objection_to_driving
from understudy.node.data.hf_dataset import open_dataset
from understudy.node.data.prefetch import ReadAhead
from understudy.node.data.sources import open_data
from understudy.node.data.streamed import StreamedBatches
from understudy.node.data.texts import Texts
from understudy.node.data.tokenizer import Tokens, save_tokenizer
from understudy.node.data.training_data import TrainingData
from understudy.protocol.errors import LocalProtocolError, SettingsError, TextError
from understudy.protocol.manifest import DataSettings, ModelSettings, RunManifest, StepSettings
from understudy.protocol.run_toml import run_from_table

torch.set_num_threads(1)


class Text(NamedTuple):
    """What a run says of its text, and what its founder lets it read."""

    data: DataSettings
    access: TextAccess


Settings = Callable[..., Text]

CONTEXT, ROWS, MICROBATCHES = 64, 2, 3
SHARDS, TEXTS = 3, 40
END = "<|end|>"
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "an", "owl", "looks", "on"]


def text_of(shard: int, number: int) -> str:
    """Words, no two alike in the dataset."""
    some = [WORDS[(number * 7 + at) % len(WORDS)] for at in range(2 + (number * 5 + shard) % 5)]
    return " ".join(f"{word}{shard}.{number}.{at}" for at, word in enumerate(some))


def all_texts(order: Sequence[int]) -> list[str]:
    """The texts of one pass."""
    return [text_of(shard, number) for shard in order for number in range(TEXTS)]


def write_shard(folder: Path, shard: int, values: Sequence[object], split: str = "train", column: str = "text") -> None:
    folder.mkdir(exist_ok=True)
    table = pyarrow.table({column: list(values), "number": list(range(len(values)))})
    pyarrow.parquet.write_table(table, folder / f"{split}-{shard:05}-of-{SHARDS:05}.parquet", row_group_size=16)


def write_dataset(folder: Path, shards: int = SHARDS) -> Path:
    for shard in range(shards):
        write_shard(folder, shard, [text_of(shard, number) for number in range(TEXTS)])
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(  # type: ignore[call-arg]
        vocab_size=256, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text_of(shard, number) for shard in range(SHARDS) for number in range(TEXTS)], trainer)
    made.enable_truncation(5)
    made.save(str(path))
    return path


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(streamed_data, "RETRY_AFTER_S", 0.0)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture
def settings(dataset: Path, tokenizer: Path) -> Settings:
    def make(**changes: Any) -> Text:
        named = {"dataset": str(dataset), "tokenizer": str(tokenizer), "end_of_text": END, "validation_fraction": 0.0}
        run = run_from_table({"name": "x", "data": {"source": "huggingface"} | named | changes}, "test")
        return Text(run.manifest.data, founders_access(run.files))

    return make


def run_of(data: DataSettings, seed: int = 0, vocabulary_size: int = 512, context: int = CONTEXT) -> RunManifest:
    model = ModelSettings(context_length=context, vocabulary_size=vocabulary_size)
    return RunManifest(
        name="test",
        seed=seed,
        model=model,
        data=data,
        step=StepSettings(microbatch_size=ROWS, microbatches=MICROBATCHES),
    )


@contextmanager
def opened(text: Text, **changes: Any) -> Iterator[StreamedBatches]:
    reading = ReadAhead()
    batches = StreamedBatches(run_of(text.data, **changes), text.access, reading)
    try:
        yield batches
    finally:
        batches.close()
        assert reading._thread is not None
        assert not reading._thread.is_alive()


def step_of(batches: TrainingData, step: int) -> torch.Tensor:
    """All windows of a step, the last label included: (rows, context + 1)."""
    pairs = [batches.microbatch(step, index) for index in range(MICROBATCHES)]
    for tokens, labels in pairs:
        assert tokens.shape == labels.shape == (ROWS, CONTEXT)
        assert tokens.dtype == labels.dtype == torch.int64
        assert torch.equal(tokens[:, 1:], labels[:, :-1])
    return torch.cat([torch.cat([tokens, labels[:, -1:]], 1) for tokens, labels in pairs])


def described(text: Text) -> Text:
    """As at its founding."""
    return text._replace(data=describe_data(run_of(text.data), text.access).data)


def tokens_of(text: Text, vocabulary_size: int = 512) -> Tokens:
    return Tokens(text.data, vocabulary_size, text.access)


# What a microbatch holds


def test_the_windows_of_a_step_cover_its_texts_at_equal_distances(settings: Settings, tokenizer: Path) -> None:
    made = Tokenizer.from_file(str(tokenizer))
    made.no_truncation()
    with opened(settings()) as batches:
        count, texts = batches._sample.texts_per_step, all_texts(batches._texts.order)
        for step in (0, 3, 200):
            ids: list[int] = []
            for number in range(step * count, (step + 1) * count):
                ids += [*made.encode(texts[number % len(texts)]).ids, made.token_to_id(END)]
            found = step_of(batches, step).tolist()
            row_text = np.array(ids)
            starts = [at for at in range(len(ids) - CONTEXT) if row_text[at : at + CONTEXT + 1].tolist() in found]
            assert len(starts) == ROWS * MICROBATCHES, "every window is a piece of the step's text"
            distances = np.diff(starts)
            assert distances.max() - distances.min() <= 1


def test_a_step_takes_about_as_many_tokens_as_it_has_room_for(settings: Settings) -> None:
    with opened(settings()) as batches:
        counts = [len(batches._of_step(step)) for step in range(30)]
    needed = ROWS * MICROBATCHES * CONTEXT
    assert 0.6 * needed < sum(counts) / len(counts) < 1.6 * needed


def test_microbatches_are_the_same_in_any_order_and_after_a_start_at_any_step(settings: Settings) -> None:
    with opened(settings()) as batches:
        forwards = [step_of(batches, step) for step in range(25)]
        for step in (24, 3, 0, 17):
            assert torch.equal(step_of(batches, step), forwards[step])
    for step in (1, 11, 24):
        with opened(settings()) as newcomer:
            assert torch.equal(newcomer.microbatch(step, 1)[0], forwards[step][ROWS : 2 * ROWS, :-1])
    with opened(settings(), seed=1) as other:
        assert not torch.equal(step_of(other, 0), forwards[0])
    assert len({step.numpy().tobytes() for step in forwards[:10]}) == 10


def test_microbatches_are_pinned(settings: Settings) -> None:
    """A change here would give a run's peers different tokens for one microbatch."""
    with opened(settings(), seed=4) as batches:
        assert batches._texts.order == [2, 1, 0]
        assert batches._sample.texts_per_step == 12
        tokens = batches._tokens._tokenizer
        assert [tokens.decode(row) for row in batches.microbatch(5, 1)[0][:, :20].tolist()] == [
            "e1.24.0 quick1.24.1 ",
            "d1.25.2the1.26.0 qu",
        ]
    with opened(settings(validation_fraction=0.3)) as batches:
        assert [word for word in WORDS if batches._is_held_out(word)] == ["jumps", "owl"]


def test_going_on_reads_each_batch_once_and_reads_one_step_ahead(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "ROWS_PER_READ", 1)
    with opened(settings()) as batches:
        read: list[int] = []
        original = batches._texts._read_on

        def watch(number: int, count: int) -> list[str]:
            read.append(number)
            return original(number, count)

        monkeypatch.setattr(batches._texts, "_read_on", watch)
        count = batches._sample.texts_per_step
        batches.microbatch(5, 0)
        assert batches._ahead is not None
        batches._ahead[1].result(timeout=30)
        assert set(read) == set(range(5 * count, 7 * count))
        read.clear()
        batches.microbatch(5, 2)
        assert not read, "the step's text is there"
        batches.microbatch(6, 0)
        batches._ahead[1].result(timeout=30)
        assert set(read) == set(range(7 * count, 8 * count))


def test_there_are_no_microbatches_beyond_the_step(settings: Settings) -> None:
    with opened(settings()) as batches:
        for step, index in ((-1, 0), (0, -1), (0, MICROBATCHES)):
            with pytest.raises(LocalProtocolError, match="no microbatch"):
                batches.microbatch(step, index)
        with pytest.raises(LocalProtocolError, match="no validation microbatch -1"):
            batches.validation(-1)


# The stream


def open_texts(text: Text, progress: Callable[[], None] = lambda: None) -> Texts:
    return Texts(open_dataset(text.data, text.data.split, text.access), lambda shard: -shard, progress)


def test_each_text_comes_once_in_a_pass_wherever_one_begins(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = all_texts([2, 1, 0]) * 3
    for number in (0, 38, 40, 41, 79, 119, 120, 201):
        stream = open_texts(settings())
        assert stream.read(number, 130) == expected[number : number + 130]
        assert stream.read(number + 3, 2) == expected[number + 3 : number + 5]
        stream.close()
    with opened(settings(), seed=1) as one, opened(settings(), seed=2) as other:
        assert one._texts.order != other._texts.order


def test_going_far_reads_no_more_than_the_shard_that_is_meant(settings: Settings) -> None:
    batches_read: list[None] = []
    stream = open_texts(settings(), lambda: batches_read.append(None))
    assert stream.read(2 * TEXTS + 1, 1) == [text_of(0, 1)]
    assert len(batches_read) == 3 + 1, "three footers and a batch"
    stream.close()


def test_files_without_footers_are_read_through(settings: Settings, tmp_path: Path) -> None:
    for shard in range(SHARDS):
        lines = [json.dumps({"text": text_of(shard, number)}) + "\n" for number in range(TEXTS)]
        (tmp_path / f"train-{shard}.jsonl").write_text("".join(lines))
    expected = all_texts([2, 1, 0]) * 2
    for number in (0, 81, 130):
        stream = open_texts(settings(dataset=str(tmp_path)))
        assert stream.read(number, 50) == expected[number : number + 50]
        stream.close()


def test_a_shard_without_texts_is_passed_over(settings: Settings, tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "gap")
    write_empty(folder / f"train-00001-of-{SHARDS:05}.parquet")
    stream = open_texts(settings(dataset=str(folder)))
    assert stream.read(39, 3) == [text_of(2, 39), text_of(0, 0), text_of(0, 1)]
    stream.close()


def write_empty(path: Path) -> None:
    schema = pyarrow.schema({"text": pyarrow.string(), "number": pyarrow.int64()})
    pyarrow.parquet.ParquetWriter(path, schema).close()


def test_a_dataset_that_shrinks_is_noticed(settings: Settings, tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "shrinking")
    stream = open_texts(settings(dataset=str(folder)))
    stream.read(0, 1)
    write_shard(folder, 1, ["less"])
    stream._ends = [TEXTS, 2 * TEXTS]
    with pytest.raises(TextError, match="fewer texts than it had"):
        stream.read(TEXTS, 2)
    stream.close()


def test_a_long_text_is_cut(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "TEXT_CHARACTERS_MAX", 7)
    stream = open_texts(settings())
    assert stream.read(11, 1) == [text_of(2, 11)[:7]]
    stream.close()


# Held out


def test_a_fraction_of_the_texts_is_held_out_wherever_they_come(settings: Settings, tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [text_of(0, number % 10) for number in range(60)])
    data = settings(dataset=str(tmp_path), validation_fraction=0.3)
    with opened(data) as batches:
        held_out = {text_of(0, number) for number in range(10) if batches._is_held_out(text_of(0, number))}
        assert 0 < len(held_out) < 10
        trained = batches._to_train([text_of(0, number % 10) for number in range(60)])
        assert len(trained) == 60 - 6 * len(held_out)
        tokens = batches._tokens
        assert batches.has_validation
        rows = torch.cat([batches.validation(0)[0], batches.validation(1)[0]])
        kept = [text_of(0, number % 10) for number in range(60) if text_of(0, number % 10) in held_out]
        assert rows.flatten().tolist() == tokens.encode(kept)[: rows.numel()].tolist()
        ends = tokens.encode(["\n".join(trained)])
        assert not any(int(token) not in set(ends.tolist()) for token in step_of(batches, 0).flatten().tolist())


def test_another_split_can_be_held_out(settings: Settings, tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "both")
    write_shard(folder, 0, ["owl " * 40, "fox " * 40], split="validation")
    with opened(settings(dataset=str(folder), validation_split="validation", validation_fraction=0.9)) as batches:
        assert batches._to_train(WORDS) == WORDS
        expected = batches._tokens.encode(["owl " * 40, "fox " * 40])
        assert batches.validation(0)[0].flatten().tolist() == expected[: ROWS * CONTEXT].tolist()
    with (
        pytest.raises(SettingsError, match=r"has no split 'other', but train, validation$"),
        opened(settings(dataset=str(folder), validation_split="other")) as batches,
    ):
        batches.validation(0)


def test_too_little_held_out_is_said_when_asked_for(settings: Settings) -> None:
    with opened(settings()) as batches:
        assert not batches.has_validation
        with pytest.raises(SettingsError, match=r"0 tokens are held out.*raise data\.validation_fraction"):
            batches.validation(0)


# Whose text it is


def test_the_digest_covers_settings_tokenizer_files_and_first_texts(
    settings: Settings, tokenizer: Path, tmp_path: Path
) -> None:
    def digest(**changes: Any) -> str:
        with opened(settings(**changes)) as batches:
            return batches.digest

    folder = write_dataset(tmp_path / "more", shards=SHARDS + 1)
    other = write_dataset(tmp_path / "other")
    write_shard(other, 0, ["another text"] * TEXTS)
    write_shard(other, 1, ["another text"] * TEXTS)
    write_shard(other, 2, ["another text"] * TEXTS)
    other_tokenizer = tmp_path / "tokenizer.json"
    other_tokenizer.write_bytes(tokenizer.read_bytes() + b"\n")
    assert digest() == digest()
    digests = [
        digest(),
        digest(validation_fraction=0.1),
        digest(dataset=str(folder)),
        digest(dataset=str(other)),
        digest(tokenizer=str(other_tokenizer)),
        digest(end_of_text="!"),
    ]
    assert len(set(digests)) == len(digests)


def test_who_has_other_text_cannot_take_s0(settings: Settings, tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "mine")
    text = settings(dataset=str(folder))
    manifest = describe_data(run_of(text.data), text.access)
    assert len(manifest.data.digest) == 64
    assert objection_to_driving(manifest, text.access) is None
    for shard in range(SHARDS):
        write_shard(folder, shard, [f"changed {number}" for number in range(TEXTS)])
    assert (
        objection_to_driving(manifest, text.access)
        == "the text of data.source = 'huggingface' on this machine is not the founder's"
    )
    assert threads_called("reading") == []


def threads_called(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_the_tokenizer_is_saved_as_it_was(settings: Settings, tokenizer: Path, tmp_path: Path) -> None:
    data, access = described(settings())
    save_tokenizer(data, tmp_path, access)
    assert (tmp_path / "tokenizer.json").read_bytes() == tokenizer.read_bytes()
    assert f'"eos_token": "{END}"' in (tmp_path / "tokenizer_config.json").read_text()
    assert tokens_of(settings(tokenizer=str(tmp_path))).encode(["fox"])[-1] == 0
    with pytest.raises(SettingsError, match="cannot be written: No such file"):
        save_tokenizer(data, tmp_path / "nowhere", access)


def test_a_text_that_spells_out_the_end_token_does_not_end(settings: Settings) -> None:
    tokens = tokens_of(settings())
    assert tokens.encode([END]).tolist().count(0) == 1
    assert tokens.encode([]).shape == (0,)
    assert len(tokens.encode(["the quick brown fox jumps over a lazy dog"])) > 6, "not cut at the file's five tokens"


# What can be wrong


def refusal(text: Text, **changes: Any) -> str:
    with pytest.raises((SettingsError, TextError)) as caught:
        open_data(run_of(text.data, **changes), text.access)
    assert "\n" not in str(caught.value)
    assert threads_called("reading") == []
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize("package", ["datasets", "tokenizers"])
def test_a_missing_package_is_named_with_its_remedy(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert refusal(settings()).endswith("needs packages that are not installed: pip install 'understudy[hf]'")


def test_a_dataset_that_is_not_there_is_said(settings: Settings, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert refusal(settings(dataset=missing)) == f"SettingsError: the text {missing} does not exist"
    assert "has no split 'nights', but train" in refusal(settings(split="nights"))
    assert "BuilderConfig 'nights' not found" in refusal(settings(config="nights"))
    hub = settings(dataset="some/where", revision="0" * 40)
    assert refusal(hub).startswith("TextError: the dataset some/where cannot be read: Couldn't reach 'some/where'")


def test_columns_and_texts_that_do_not_fit_are_said(settings: Settings, tmp_path: Path) -> None:
    assert "has no column 'words', but text, number" in refusal(settings(column="words"))
    assert "its 'number' holds int64, not text" in refusal(settings(column="number"))
    empty = tmp_path / "empty"
    empty.mkdir()
    write_empty(empty / "train.parquet")
    assert "no text to train on among the first 0" in refusal(settings(dataset=str(empty)))
    with pytest.raises(SettingsError, match="has no texts in this split"):
        open_texts(settings(dataset=str(empty))).read(0, 1)
    blank = tmp_path / "blank"
    write_shard(blank, 0, ["", None, ""])
    assert "no text to train on among the first 3" in refusal(settings(dataset=str(blank)))


def test_a_tokenizer_that_does_not_fit_is_said(settings: Settings, tmp_path: Path) -> None:
    assert "tokens, model.vocabulary_size is 256: set model.vocabulary_size = " in refusal(
        settings(), vocabulary_size=256
    )
    assert "data.end_of_text: '<eos>' is not a token of" in refusal(settings(end_of_text="<eos>"))
    assert "nothing.json cannot be read: No such file" in refusal(settings(tokenizer=str(tmp_path / "nothing.json")))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "is not a tokenizer.json" in refusal(settings(tokenizer=str(tmp_path)))
    hub = settings(tokenizer="some/where", tokenizer_revision="0" * 40)
    assert refusal(hub) == "TextError: the tokenizer some/where is not on this machine and the hub cannot be reached"


def test_the_vocabulary_is_just_large_enough(settings: Settings, tokenizer: Path) -> None:
    size = Tokenizer.from_file(str(tokenizer)).get_vocab_size()
    tokens_of(settings(), size)
    with pytest.raises(SettingsError, match=f"set model.vocabulary_size = {size} or more"):
        tokens_of(settings(), size - 1)


def test_a_text_without_a_single_window_is_said_instead_of_read_for_ever(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(streamed_data, "STEP_TEXTS_MAX", 256)
    monkeypatch.setattr(streamed_data, "SAMPLE_TEXTS", 4)
    write_shard(tmp_path, 0, ["fox"] * 4 + [""] * 2000)
    with (
        opened(settings(dataset=str(tmp_path))) as batches,
        pytest.raises(TextError, match="not one window in 192 texts"),
    ):
        batches.microbatch(9, 0)


# Reading that fails


class Line:
    """A line that breaks: so many batches from now on fail."""

    def __init__(self, stream: Texts, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        self.failures, self._error, self._open = 0, error, stream._open
        monkeypatch.setattr(stream, "_open", self._broken)

    def _broken(self, turn: int, number: int) -> Any:
        reading = self._open(turn, number)
        return reading._replace(batches=self._batches(reading.batches))

    def _batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            if self.failures:
                self.failures -= 1
                raise self._error
            yield batch


def test_a_read_that_fails_is_tried_again_and_gives_the_same_text(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "ROWS_PER_READ", 1)
    with opened(settings()) as batches:
        undisturbed = step_of(batches, 7)
    with opened(settings()) as batches:
        batches._texts.read(2 * TEXTS, 1)  # the line breaks in the middle of a shard
        line = Line(batches._texts, monkeypatch, ConnectionError("reset"))
        line.failures = streamed_data.READ_ATTEMPTS - 1
        assert torch.equal(step_of(batches, 7), undisturbed)
        assert not line.failures


@pytest.mark.parametrize("error", [ConnectionError("line is\ndown"), pyarrow.ArrowInvalid("bad file")])
def test_a_read_that_keeps_failing_ends_with_the_reason(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with opened(settings()) as batches:
        line = Line(batches._texts, monkeypatch, error)
        line.failures = 100
        with pytest.raises(TextError, match=r"cannot be read: (line is|bad file)$"):
            batches.microbatch(0, 0)
        assert line.failures == 100 - streamed_data.READ_ATTEMPTS


def test_a_damaged_file_is_said(settings: Settings, tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "damaged", shards=1)
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    content[10:200] = bytes(190)
    path.write_bytes(content)
    assert refusal(settings(dataset=str(folder))).startswith(f"TextError: {path} cannot be read: ")


# What a driver asks first


def test_the_text_of_a_step_is_tried_before_s0_is_claimed(settings: Settings, tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "coming and going")
    mine = settings(dataset=str(folder))
    run = describe_data(run_of(mine.data), mine.access)
    text = DriverText(run, mine.access)
    assert text.failure(1) is None
    assert step_of(text.open(), 1).shape[0] == MICROBATCHES * ROWS
    text.release()
    folder.rename(tmp_path / "gone")
    assert text.failure(1) == f"the text {folder} does not exist"
    write_dataset(folder, shards=2)
    assert text.failure(1) == "the text of data.source = 'huggingface' on this machine is not the founder's"
    shutil.rmtree(folder)
    (tmp_path / "gone").rename(folder)
    assert text.failure(1) is None
    text.close()
    assert threads_called("reading") == []


def test_it_is_tried_for_the_next_step_too(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a spare knows of the run may be a commit old."""
    gather = StreamedBatches._gather

    def fail(batches: StreamedBatches, step: int) -> Any:
        if step == 5:
            raise TextError("a bad page")
        return gather(batches, step)

    monkeypatch.setattr(StreamedBatches, "_gather", fail)
    data, access = described(settings())
    text = DriverText(run_of(data), access)
    assert [text.failure(step) for step in (3, 4, 5, 6)] == [None, "a bad page", "a bad page", None]
    text.close()
