"""An export on the disk: whole or not there, and never what it should not be."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from understudy.node.compute.model import build_stage
from understudy.node.compute.weights import WeightsSnapshot, snapshot
from understudy.node.export import folder as module
from understudy.node.export.folder import ExportFolder, Origin
from understudy.node.export.shards import read_stage, shard_name
from understudy.node.files.atomic import ASIDE
from understudy.protocol.errors import SettingsError, StorageError
from understudy.protocol.manifest import ModelSettings, RunManifest

MODEL = ModelSettings(hidden_size=8, intermediate_size=12, attention_heads=2, block_stages=2, layers_per_stage=2)
MANIFEST = RunManifest(name="exported", model=MODEL)
STEP = 12


def reserved(target: Path, digest: str = MANIFEST.digest()) -> AbstractContextManager[ExportFolder]:
    return ExportFolder.reserved(target, digest)


def weights(stage: int, seed: int = 0) -> WeightsSnapshot:
    return snapshot(build_stage(MODEL, stage, seed))


def add(folder: ExportFolder, stage: int, step: int = STEP) -> None:
    arrived = weights(stage)
    folder.add(MANIFEST, step, stage, (arrived, Origin(f"peer-{stage}", 1, arrived.digest)))


def export(target: Path) -> Path:
    with reserved(target) as folder:
        folder.begin(STEP, 0)
        for stage in range(3):
            add(folder, stage)
        return folder.finish(MANIFEST, STEP)


def interrupted(target: Path, *stages: int) -> Path:
    """An export that some stages came for; its step folder."""
    with reserved(target) as folder:
        folder.begin(STEP, 0)
        for stage in stages:
            add(folder, stage)
    return folder.partial / f"step-{STEP}"


def test_a_finished_export_holds_what_was_given_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = export(tmp_path / "deep" / "out")
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    for stage in range(3):
        assert read_stage(target, MODEL, stage, 3).digest == weights(stage).digest
        assert os.stat(target / shard_name(stage, 3)).st_mode & 0o777 == 0o644
    record = json.loads((target / "export.json").read_text())
    assert (record["run_id"], record["step"]) == (MANIFEST.run_id(), STEP)
    assert record["tokens"] == STEP * MANIFEST.tokens_per_step
    assert record["stages"]["1"] == {"peer": "peer-1", "incarnation": 1, "digest": weights(1).digest}
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(MODEL.stage_bytes(stage) for stage in range(3))
    assert index["metadata"]["total_size"] == sum(weights(stage).payload_bytes for stage in range(3))
    assert set(index["weight_map"]) == {spec.name for stage in range(3) for spec in weights(stage).specs}
    card = (target / "README.md").read_text()
    assert MANIFEST.run_id() in card
    assert MANIFEST.digest() in card
    assert f"{STEP * MANIFEST.tokens_per_step:,}" in card


def test_an_empty_folder_may_be_named(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    assert export(target) == target


def forbid_renaming_over(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does where something is mounted."""
    rename = Path.rename

    def guarded(path: Path, to: Path) -> Path:
        if Path(to) == target:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", guarded)


@pytest.mark.parametrize("there", [[], ["lost+found"]])
def test_an_empty_folder_is_filled_and_stays_what_it_is(
    there: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's volume: errno 16 after all had been fetched, for ever."""
    target = tmp_path / "volume"
    target.mkdir(mode=0o770)
    for name in there:
        (target / name).mkdir()
    before = target.stat()
    forbid_renaming_over(target, monkeypatch)
    step_folder = interrupted(target, 0)
    assert step_folder.is_relative_to(target)
    assert not (target / "config.json").exists()
    assert export(target) == target
    assert [path.name for path in tmp_path.iterdir()] == ["volume"]
    assert (target.stat().st_ino, target.stat().st_mode) == (before.st_ino, before.st_mode)
    names = {path.name for path in target.iterdir()} - set(there)
    assert names == {path.name for path in export(tmp_path / "new").iterdir()}
    assert read_stage(target, MODEL, 1, 3).digest == weights(1).digest


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_to_a_folder_is_followed(is_there: bool, tmp_path: Path) -> None:
    """Errno 20 after all had been fetched, for ever."""
    (tmp_path / "disk").mkdir()
    if is_there:
        (tmp_path / "disk" / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    assert export(tmp_path / "link") == tmp_path / "disk" / "real"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link" / "config.json").exists()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


class Crash(BaseException):
    """The machine stops."""


def crash_after(moves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine stops before one more entry is moved or removed."""
    left = [moves]

    def wrap(name: str) -> None:
        do = getattr(Path, name)

        def counted(path: Path, *arguments: Any) -> Any:
            if left[0] == 0:
                raise Crash
            left[0] -= 1
            return do(path, *arguments)

        monkeypatch.setattr(Path, name, counted)

    for name in ("rename", "unlink", "rmdir"):
        wrap(name)


@pytest.mark.parametrize("moves", range(12))
def test_a_crash_while_files_move_leaves_nothing_that_reads_as_a_model_and_is_mended(
    moves: int, tmp_path: Path
) -> None:
    target = tmp_path / "volume"
    target.mkdir()
    with reserved(target) as folder:
        folder.begin(STEP, 0)
        folder.identity_path.touch()
        for stage in range(3):
            add(folder, stage)
        with pytest.MonkeyPatch.context() as patch:
            crash_after(moves, patch)
            with pytest.raises(Crash):
                folder.finish(MANIFEST, STEP)
    names = {path.name for path in export(tmp_path / "new").iterdir()}
    there = {path.name for path in target.iterdir()} - {"export.partial"}
    assert len(there) == min(moves, len(names))
    assert ("config.json" in there) == (there == names)
    with pytest.raises(SettingsError, match="another run"), reserved(target, "e" * 64):
        pass
    with reserved(target) as folder:
        assert folder.is_whole
    assert {path.name for path in target.iterdir()} == names
    assert read_stage(target, MODEL, 2, 3).digest == weights(2).digest


def test_what_somebody_else_put_there_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "volume"
    target.mkdir()
    with reserved(target) as folder:
        folder.begin(STEP, 0)
        for stage in range(3):
            add(folder, stage)
        (target / "README.md").write_text("mine")
        with pytest.raises(StorageError, match=r"has a README\.md by now"):
            folder.finish(MANIFEST, STEP)
    (target / "README.md").rename(tmp_path / "README.md")
    with reserved(target) as folder:
        assert set(folder.resume(MANIFEST)[1]) == {0, 1, 2}  # type: ignore[index]
        assert folder.finish(MANIFEST, STEP) == target


@pytest.mark.parametrize("target", ["/", "/dev/null", "/dev/full"])
def test_places_that_cannot_be_are_refused_at_once(target: str) -> None:
    with pytest.raises(SettingsError, match="not empty"), reserved(Path(target)):
        pass


def test_nothing_of_an_export_that_is_not_finished_has_its_name(tmp_path: Path) -> None:
    step_folder = interrupted(tmp_path / "out", 0, 2)
    assert not (tmp_path / "out").exists()
    assert not (step_folder / "config.json").exists()
    assert not (step_folder / "model.safetensors.index.json").exists()


def test_an_interrupted_export_is_found_again(tmp_path: Path) -> None:
    interrupted(tmp_path / "out", 0, 2)
    with reserved(tmp_path / "out") as folder:
        assert folder.resume(MANIFEST) == (STEP, {0: weights(0).digest, 2: weights(2).digest})
        add(folder, 1)
        target = folder.finish(MANIFEST, STEP)
    assert sorted(json.loads((target / "export.json").read_text())["stages"]) == ["0", "1", "2"]


def test_half_a_file_that_a_kill_left_is_no_part_of_the_export(tmp_path: Path) -> None:
    step_folder = interrupted(tmp_path / "out", 0, 2)
    (step_folder / f"{shard_name(1, 3)}.0123abcd{ASIDE}").write_bytes(b"half")
    with reserved(tmp_path / "out") as folder:
        add(folder, 1)
        target = folder.finish(MANIFEST, STEP)
    assert not [path.name for path in target.iterdir() if "0123abcd" in path.name]


def corrupt(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [corrupt, Path.unlink, lambda path: os.truncate(path, 100)])
def test_a_damaged_stage_does_not_count(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    step_folder = interrupted(tmp_path / "out", 0, 2)
    damage(step_folder / shard_name(0, 3))
    with reserved(tmp_path / "out") as folder:
        assert folder.resume(MANIFEST) == (STEP, {2: weights(2).digest})


def test_another_step_begins_anew(tmp_path: Path) -> None:
    interrupted(tmp_path / "out", 0)
    with reserved(tmp_path / "out") as folder:
        folder.begin(STEP + 1, 0)
        assert folder.resume(MANIFEST) is None
        assert [path.name for path in folder.partial.glob("step-*")] == [f"step-{STEP + 1}"]


def test_what_came_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    with reserved(tmp_path / "out") as folder:
        folder.identity_path.touch()
        folder.begin(STEP, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_there_already_is_not_touched(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
        (target / "thesis.txt").touch()
    else:
        target.touch()
    with pytest.raises(SettingsError, match="not empty"), reserved(target):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["thesis.txt", "step-by-step/thesis.txt", "step-3/chapter/thesis.txt"])
def test_a_partial_folder_that_we_did_not_write_is_not_touched(name: str, tmp_path: Path) -> None:
    thesis = tmp_path / "out.partial" / name
    thesis.parent.mkdir(parents=True)
    thesis.touch()
    with pytest.raises(SettingsError, match="other files"), reserved(tmp_path / "out"):
        pass
    assert thesis.exists()


def test_an_interrupted_export_of_another_run_is_not_touched(tmp_path: Path) -> None:
    step_folder = interrupted(tmp_path / "out", 0)
    with pytest.raises(SettingsError, match="another run"), reserved(tmp_path / "out", "e" * 64):
        pass
    assert (step_folder / shard_name(0, 3)).exists()


def test_two_exports_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with reserved(tmp_path / "out") as folder:
        folder.begin(STEP, 0)
        add(folder, 0)
        with pytest.raises(SettingsError, match="another export"), reserved(tmp_path / "out"):
            pass
        assert folder.resume(MANIFEST) is not None


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be written"), reserved(tmp_path / "file" / "out"):
        pass


def test_too_small_a_disk_is_noticed_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1 << 21))
    with reserved(tmp_path / "out") as folder:
        folder.begin(STEP, 1 << 20)
        with pytest.raises(StorageError, match="make room"):
            folder.begin(STEP, (1 << 20) + 1)


def test_a_disk_that_fills_up_ends_the_export_and_leaves_no_half_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with reserved(tmp_path / "out") as folder:
        folder.begin(STEP, 0)
        add(folder, 0)
        monkeypatch.setattr(module, "save_file", fill)
        with pytest.raises(StorageError, match="the disk is full"):
            add(folder, 1)
    names = {path.name for path in (folder.partial / f"step-{STEP}").iterdir()}
    assert names == {"export.json", shard_name(0, 3)}
