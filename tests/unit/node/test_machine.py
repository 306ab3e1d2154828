"""Is this machine fit: every check passes, or says what to do."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import pytest
import torch

from understudy.node.compute.model import BlockStage, EdgeStage
from understudy.node.doctor.machine import (
    MEMORY_NEEDED_BYTES,
    check_accelerator,
    check_cores,
    check_disk,
    check_memory,
    check_packages,
    check_python,
    stage_bytes,
)
from understudy.protocol.presets import PRESETS, preset

NEEDED = ["torch<2.14,>=2.4", "hivemind>=1.1.12", 'psutil>=5.9; extra == "dev"']


@pytest.mark.parametrize(
    ("version", "system", "verdict", "text"),
    [
        ((3, 11, 7), "linux", "ok", "3.11.7 on linux any"),
        ((3, 13, 0), "linux", "ok", "3.13.0 on linux any"),
        ((3, 10, 2), "linux", "bad", "3.10.2 on linux any: install Python 3.11 and make .venv anew"),
        ((3, 14, 0), "linux", "note", "3.14.0 on linux any: never tried; the tested ones are older than 3.14"),
        ((3, 11, 7), "darwin", "bad", "3.11.7 on darwin any: the libp2p daemon runs on Linux only"),
    ],
)
def test_python(
    version: tuple[int, ...], system: str, verdict: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "any")
    finding = check_python(version, system)
    assert finding.verdict == verdict
    assert finding.text.startswith(text)


def versions(**installed: str) -> object:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    return version


@pytest.mark.parametrize(
    ("installed", "verdict", "text"),
    [
        ({"torch": "2.13.0+cpu", "hivemind": "1.1.12"}, "ok", "torch 2.13.0+cpu, hivemind 1.1.12"),
        ({"torch": "2.4", "hivemind": "1.2"}, "ok", "torch 2.4, hivemind 1.2"),
        ({"hivemind": "1.1.12"}, "bad", "torch is missing: install what is needed with make setup"),
        ({"torch": "2.13.0", "hivemind": "1.1.9"}, "bad", "hivemind 1.1.9 is older than 1.1.12: install"),
        ({"torch": "2.14.0+cpu", "hivemind": "1.1.12"}, "note", "torch 2.14.0+cpu was never tried, only"),
        ({"torch": "2.15.0", "hivemind": "1.1.9"}, "bad", "hivemind 1.1.9 is older than 1.1.12: install"),
        ({}, "bad", "torch is missing, hivemind is missing: install"),
    ],
)
def test_packages(installed: dict[str, str], verdict: str, text: str) -> None:
    finding = check_packages(NEEDED, versions(**installed))  # type: ignore[arg-type]
    assert finding.verdict == verdict
    assert finding.text.startswith(text)


def test_the_packages_of_this_environment_will_do() -> None:
    finding = check_packages()
    assert finding.verdict == "ok"
    assert "hivemind " in finding.text
    assert "psutil" not in finding.text  # of an extra


@pytest.mark.parametrize(
    ("cores", "load", "verdict", "text"),
    [
        (8, 1.0, "ok", "8, load 1.0"),
        (2, 3.0, "ok", "2, load 3.0"),
        (2, 3.1, "note", "2, load 3.1: others keep them busy; a slow node may be taken for a dead one"),
    ],
)
def test_cores(cores: int, load: float, verdict: str, text: str) -> None:
    finding = check_cores(cores, load)
    assert (finding.verdict, finding.text) == (verdict, text)


def test_memory() -> None:
    assert check_memory(None, MEMORY_NEEDED_BYTES).verdict == "ok"
    assert check_memory(None, MEMORY_NEEDED_BYTES - 1).verdict == "bad"
    large = preset("1.5b").model
    assert stage_bytes(large) > 1e9
    finding = check_memory(large, 4_000_000_000)
    assert finding.verdict == "bad"
    assert "4.0 GB free, a stage of this run needs " in finding.text
    assert finding.text.endswith("or more: end other programs, or join a run with smaller stages")
    assert check_memory(large, 10**12).verdict == "ok"


def test_the_memory_of_this_machine_is_read() -> None:
    assert "0.0 GB free" not in check_memory(None).text


@pytest.mark.parametrize("name", PRESETS)
def test_a_stage_is_as_large_as_its_model_says(name: str) -> None:
    model = preset(name).model
    with torch.device("meta"):
        stages = (BlockStage(model, 1), EdgeStage(model))
    largest = max(sum(parameter.numel() for parameter in stage.parameters()) for stage in stages)
    assert stage_bytes(model) == largest * 20


def test_an_accelerator_is_named_and_none_is_no_fault() -> None:
    assert (check_accelerator("A GPU, 80 GB").verdict, check_accelerator("A GPU, 80 GB").text) == ("ok", "A GPU, 80 GB")
    assert (check_accelerator(None).verdict, check_accelerator(None).text[:4]) == ("ok", "none")


def test_disk(tmp_path: Path) -> None:
    files = {"--identity": tmp_path / "key", "--events": tmp_path / "to be made" / "events.jsonl"}
    finding = check_disk(files, lambda folder: 7_000_000_000)
    assert (finding.verdict, finding.text) == ("ok", f"7.0 GB free in {tmp_path}")
    finding = check_disk(files, lambda folder: 42_000_000)
    told = f"42 MB free in {tmp_path}: make room, or choose another place with --identity"
    assert (finding.verdict, finding.text) == ("bad", told)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    told = f"{tmp_path}/pipe is not a file: choose another place with --identity"
    assert check_disk({"--identity": tmp_path / "pipe"}).text == told
    assert check_disk({"--events": tmp_path / "pipe"}).verdict == "ok"
    for option in ("--identity", "--events"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        told = f"{tmp_path}/folder is not a file: choose another place with {option}"
        assert check_disk({option: tmp_path / "folder"}).text == told


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "closed")
    (tmp_path / "closed").mkdir()
    finding = check_disk({"--identity": tmp_path / "closed" / "key"})
    told = f"{tmp_path}/closed/key cannot be written: choose another place with --identity"
    assert (finding.verdict, finding.text) == ("bad", told)
