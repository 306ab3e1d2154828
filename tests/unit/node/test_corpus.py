"""The corpus and its microbatches: pure, disjoint from what is held out, and clear about what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy.node.data import corpus as data
from understudy.node.data.access import TextAccess
from understudy.node.data.corpus import Batches, Corpus, open_corpus
from understudy.protocol.errors import LocalProtocolError, SettingsError
from understudy.protocol.manifest import DataSettings, ModelSettings, RunManifest, StepSettings

torch.set_num_threads(1)

CONTEXT = 16


def manifest(seed: int = 0, context: int = CONTEXT) -> RunManifest:
    return RunManifest(
        name="test", seed=seed, model=ModelSettings(context_length=context), step=StepSettings(microbatch_size=3)
    )


def open_texts(*paths: Path, validation_fraction: float = 0.25) -> Corpus:
    return open_corpus(DataSettings(source="text", validation_fraction=validation_fraction), TextAccess(paths))


def counting_corpus() -> Corpus:
    """Bytes that count up to 250 over and over, so a window shows where it began; nothing the same is held out."""
    train = (np.arange(1000) % 250).astype(np.uint8)
    return Corpus(train, np.full(100, 255, np.uint8), "")


# Microbatches


def test_labels_are_the_tokens_that_follow() -> None:
    tokens, labels = Batches(counting_corpus(), manifest()).microbatch(3, 1)
    assert tokens.shape == labels.shape == (3, CONTEXT)
    assert tokens.dtype == labels.dtype == torch.int64
    assert tokens.is_contiguous()
    assert labels.is_contiguous()
    assert torch.equal((tokens + 1) % 250, labels)
    assert torch.equal(tokens[:, 1:], labels[:, :-1])


def test_microbatches_depend_on_seed_step_and_index_and_nothing_else() -> None:
    batches = Batches(counting_corpus(), manifest(seed=4))
    wanted = [(step, index) for step in range(4) for index in range(4)]
    forwards = {each: batches.microbatch(*each) for each in wanted}
    np.random.seed(1)
    torch.manual_seed(1)
    again = Batches(counting_corpus(), manifest(seed=4))
    for each in reversed(wanted):
        assert all(torch.equal(a, b) for a, b in zip(again.microbatch(*each), forwards[each], strict=True))
    assert len({tokens.numpy().tobytes() for tokens, _ in forwards.values()}) == len(wanted)
    other_seed = Batches(counting_corpus(), manifest(seed=5))
    assert not torch.equal(other_seed.microbatch(0, 0)[0], forwards[0, 0][0])


def test_microbatches_are_the_same_in_every_process_and_version() -> None:
    """Pinned: a change here would give a run's peers different tokens for one microbatch."""
    tokens, _ = Batches(counting_corpus(), manifest(seed=4)).microbatch(2, 7)
    assert tokens[:, 0].tolist() == [45, 102, 164]


def test_windows_reach_both_ends_of_the_corpus() -> None:
    corpus = Corpus(np.arange(CONTEXT + 3, dtype=np.uint8), np.zeros(0, np.uint8), "")
    batches = Batches(corpus, manifest())
    first = {int(token) for step in range(40) for token in batches.microbatch(step, 0)[0][:, 0]}
    assert first == {0, 1, 2}


def test_validation_reads_what_is_held_out_in_order_whatever_the_seed() -> None:
    held_out = np.arange(CONTEXT * 4 + 1, dtype=np.uint8)
    corpus = Corpus(np.full(100, 255, np.uint8), held_out, "")
    batches = Batches(corpus, manifest(seed=1))
    assert batches.has_validation
    assert batches.validation(0)[0][:, 0].tolist() == [0, 16, 32]
    assert batches.validation(1)[0][:, 0].tolist() == [48, 0, 16]
    assert batches.validation(1)[1][0, -1] == held_out[-1]
    assert torch.equal(Batches(corpus, manifest(seed=2)).validation(1)[0], batches.validation(1)[0])


def test_there_are_no_negative_microbatches() -> None:
    batches = Batches(counting_corpus(), manifest())
    for step, index in ((-1, 0), (0, -1)):
        with pytest.raises(LocalProtocolError, match="no microbatch"):
            batches.microbatch(step, index)
    with pytest.raises(LocalProtocolError, match="no validation microbatch -1"):
        batches.validation(-1)


def test_a_corpus_shorter_than_a_window_is_refused() -> None:
    corpus = Corpus(np.zeros(CONTEXT, np.uint8), np.zeros(CONTEXT, np.uint8), "")
    with pytest.raises(SettingsError, match=r"has 16 bytes to train on.*context_length = 16 needs 17"):
        Batches(corpus, manifest())
    batches = Batches(corpus, manifest(context=15))
    assert batches.microbatch(0, 0)[0].shape == (3, 15)
    assert batches.has_validation


def test_too_little_held_out_is_said_when_asked_for() -> None:
    batches = Batches(Corpus(np.zeros(100, np.uint8), np.zeros(CONTEXT, np.uint8), ""), manifest())
    assert not batches.has_validation
    with pytest.raises(SettingsError, match=r"raise data\.validation_fraction"):
        batches.validation(0)


# The standard library


def test_the_standard_library_is_split_by_whole_files() -> None:
    corpus = open_corpus(DataSettings())
    assert len(corpus.train) > 4_000_000
    assert 0.01 < len(corpus.validation) / len(corpus.train) < 0.15
    files = data._stdlib_files()
    held_out = [file for file in files if data._stdlib_cut(file, DataSettings()) == 0 and file.content]
    trained = [file for file in files if data._stdlib_cut(file, DataSettings()) == len(file.content)]
    assert b"".join(file.content for file in held_out) == corpus.validation.tobytes()
    assert b"".join(file.content for file in trained) == corpus.train.tobytes()
    names = [Path(file.name) for file in files]
    assert names == sorted(names)
    assert Path("argparse.py") in names
    assert not [name for name in names if {"test", "tests", "idle_test", "site-packages"} & set(name.parts)]
    assert len(open_corpus(DataSettings(validation_fraction=0)).validation) == 0


def test_another_process_reads_the_same_corpus() -> None:
    script = (
        "from understudy.node.data.corpus import open_corpus; from understudy.protocol.manifest import DataSettings;"
        "print(open_corpus(DataSettings()).digest)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": os.getcwd()}
    other = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == open_corpus(DataSettings()).digest


def test_only_sources_that_everybody_has_belong_to_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = (
        "test/t.py a/tests/t.py site-packages/s.py dist-packages/s.py __pycache__/p.py config-3.11/python-config.py"
    )
    for name in ("b.py", "a/c.py", "data.txt", "_sysconfigdata_x.py", "sitecustomize.py", *left_out.split()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("pass")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert [file.name for file in data._stdlib_files()] == ["a/c.py", "b.py"]


def test_a_python_without_sources_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(SettingsError, match=r"use data\.source = 'text'"):
        open_corpus(DataSettings())


# Text


def test_files_and_folders_are_read_in_order_and_their_ends_held_out(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "z.txt").write_text("zzzZ")
    (folder / "deep" / "y.txt").write_text("yyyyyyYY")
    (folder / ".hidden").write_bytes(b"\xff")
    (tmp_path / "one.txt").write_text("éé11", encoding="utf-8")  # six bytes: a cut may fall anywhere
    corpus = open_texts(tmp_path / "one.txt", folder)
    assert corpus.train.tobytes() == "éé1".encode() + b"yyyyyyzzz"
    assert corpus.validation.tobytes() == b"1YYZ"


def test_the_digest_covers_names_bytes_order_and_split(tmp_path: Path) -> None:
    def digest(folder: str, validation_fraction: float, **texts: str) -> str:
        (tmp_path / folder).mkdir()
        for name, text in texts.items():
            (tmp_path / folder / name).write_text(text)
        paths = [tmp_path / folder / name for name in texts]
        return open_texts(*paths, validation_fraction=validation_fraction).digest

    assert digest("here", 0.5, a="bcde", f="xyz") == digest("there", 0.5, a="bcde", f="xyz")
    different = [
        digest("0", 0.5, a="bcde", f="xyz"),
        digest("1", 0.5, f="xyz", a="bcde"),
        digest("2", 0.2, a="bcde", f="xyz"),
        digest("3", 0.5, a="bcdE", f="xyz"),
        digest("4", 0.5, A="bcde", f="xyz"),
        digest("5", 0.5, ab="cde", f="xyz"),
        digest("6", 0.5, a="bcdef", f="yz"),
    ]
    assert len(set(different)) == len(different)


def test_a_path_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    missing, empty, binary = tmp_path / "missing", tmp_path / "empty", tmp_path / "binary.txt"
    dangling, pipe = tmp_path / "dangling", tmp_path / "pipes" / "pipe"
    empty.mkdir()
    binary.write_bytes(b"ok\xffno")
    dangling.mkdir()
    (dangling / "link").symlink_to(missing)
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    for path, message in (
        (missing, "missing does not exist"),
        (empty, "empty has no file in it"),
        (binary, "binary.txt is not UTF-8 text: byte 2"),
        (dangling, "link cannot be read: it is a link, not a file"),
        (pipe, "pipe is neither a file nor a folder"),
        (pipe.parent, "pipe cannot be read: it is a pipe, not a file"),
    ):
        with pytest.raises(SettingsError, match=message):
            open_texts(path)


def test_a_file_or_folder_we_may_not_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.txt").write_text("text")

    def refuse(path: object, *_: object) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(SettingsError, match=r"secret.txt cannot be read: Permission denied"):
            open_texts(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(SettingsError, match=r"the folder .* cannot be read: Permission denied"):
            open_texts(tmp_path)
