"""An export on the disk: shards that arrive one by one, and a folder that is whole or not there.

Everything is written to DIR.partial/step-N and moved to DIR at the end, in one rename. What is there
after an interruption is checked against its digests before it counts.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from understudy.node.hugging_face import write_small_files
from understudy.node.model import blank_stage
from understudy.node.weights import WeightsSnapshot, described
from understudy.protocol.errors import SettingsError, StorageError
from understudy.protocol.manifest import ModelSettings, RunManifest

EXPORT_FILE = "export.json"
IDENTITY_FILE = "identity.key"
LOCK_FILE = "lock"
_STEP_FOLDER = re.compile(r"step-[0-9]+")
SHARD_MODE = 0o644
"""safetensors lets nobody else read what it writes; this is a model to be passed on."""
SPARE_BYTES = 1 << 20
"""For the small files."""


class Origin(msgspec.Struct, frozen=True):
    """Where a stage's weights came from."""

    peer: str
    incarnation: int
    digest: str


class ExportRecord(msgspec.Struct, frozen=True):
    """export.json: of which run and step the weights are, and who gave them. Stages are keys as text."""

    run_id: str
    manifest_digest: str
    step: int
    tokens: int
    stages: dict[str, Origin]


def shard_name(stage: int, stage_count: int) -> str:
    return f"model-{stage + 1:05d}-of-{stage_count:05d}.safetensors"


def stage_names(settings: ModelSettings, stage: int) -> list[str]:
    """The stage's tensors in the order that its digest is of."""
    return [name for name, _ in blank_stage(settings, stage).named_parameters()]


class ExportFolder:
    """DIR, and DIR.partial until it is whole. Made by `reserved`."""

    def __init__(self, target: Path, manifest_digest: str) -> None:
        self.target = target
        self.partial = target.with_name(f"{target.name}.partial")
        self._manifest_digest = manifest_digest
        self._origins: dict[int, dict[str, Origin]] = {}
        """By step and stage. A stage of an older step may still be on its way to the disk when another is begun."""

    @classmethod
    @contextmanager
    def reserved(cls, target: Path, manifest_digest: str) -> Iterator[ExportFolder]:
        """Reserve DIR for us. Raises `SettingsError` if it cannot be what a person wants."""
        folder = cls(Path(os.path.abspath(target)), manifest_digest)
        try:
            folder._check_target()
            folder.partial.mkdir(parents=True, exist_ok=True)
            folder._check_partial()
            # A file and not the folder itself: over NFS only what is open for writing can be locked.
            lock = os.open(folder.partial / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SHARD_MODE)
        except OSError as error:
            raise SettingsError(f"{target} cannot be written ({error.strerror}): choose another folder") from error
        try:
            folder._lock(lock)
            try:
                yield folder
            finally:
                folder._tidy()
        finally:
            os.close(lock)

    def _check_target(self) -> None:
        if self.target.exists() and (not self.target.is_dir() or any(self.target.iterdir())):
            raise SettingsError(f"{self.target} is there already and not empty: choose another folder, or remove it")

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(f"another export writes to {self.partial}: choose another folder") from error
        except OSError as error:
            raise SettingsError(f"{self.partial} cannot be locked ({error.strerror}): choose another disk") from error

    def _check_partial(self) -> None:
        """Never remove what we did not write."""
        if not all(_is_ours(path) for path in self.partial.iterdir()):
            raise SettingsError(
                f"{self.partial} holds other files than an export's: remove it, or choose another folder"
            )
        records = [record for path in self.partial.glob(f"step-*/{EXPORT_FILE}") if (record := read_record(path))]
        if any(record.manifest_digest != self._manifest_digest for record in records):
            raise SettingsError(f"{self.partial} is of another run: remove it, or choose another folder")

    def _tidy(self) -> None:
        """Leave nothing behind that is of no use."""
        if self.partial.is_dir() and not self.has_shards:
            shutil.rmtree(self.partial, ignore_errors=True)

    @property
    def has_shards(self) -> bool:
        """Whether the same command has something to go on with."""
        return any(self.partial.glob("step-*/*.safetensors"))

    @property
    def identity_path(self) -> Path:
        """The exporter's own key, gone with the partial folder."""
        return self.partial / IDENTITY_FILE

    # --- what is there ---

    def resume(self, manifest: RunManifest) -> tuple[int, Mapping[int, str]] | None:
        """The step of an interrupted export and the digests of its whole stages. Forgets what is not whole."""
        for path in sorted(self.partial.glob(f"step-*/{EXPORT_FILE}")):
            record = read_record(path)
            there = {} if record is None else _whole_stages(path.parent, record, manifest)
            if record is not None and there:
                self._origins = {record.step: {str(stage): origin for stage, origin in there.items()}}
                return record.step, {stage: origin.digest for stage, origin in there.items()}
        return None

    # --- what arrives ---

    def _step_folder(self, step: int) -> Path:
        return self.partial / f"step-{step}"

    def begin(self, step: int, payload_bytes: int) -> None:
        """Forget other steps, make room for this one. Raises `StorageError`."""
        try:
            for old in self.partial.glob("step-*"):
                shutil.rmtree(old, ignore_errors=True)
            self._origins = {step: {}}
            self._step_folder(step).mkdir(exist_ok=True)
            free = shutil.disk_usage(self.partial).free
        except OSError as error:
            raise _storage_error(self.partial, error) from error
        if free < payload_bytes + SPARE_BYTES:
            raise StorageError(
                f"the export takes {payload_bytes:,} bytes and only {free:,} are free at {self.partial.parent}: "
                "make room, or choose a folder on another disk"
            )

    def add(self, manifest: RunManifest, step: int, stage: int, arrived: tuple[WeightsSnapshot, Origin]) -> None:
        """Write a verified stage. Raises `StorageError`."""
        weights, origin = arrived
        path = self._step_folder(step) / shard_name(stage, manifest.stage_count)
        aside = path.with_suffix(".new")
        names = [spec.name for spec in weights.specs]
        try:
            save_file(dict(zip(names, weights.tensors, strict=True)), aside, metadata={"format": "pt"})
            aside.chmod(SHARD_MODE)
            _sync(aside)
            aside.replace(path)
            self._origins.setdefault(step, {})[str(stage)] = origin
            self._write_record(manifest, step)
        except (OSError, SafetensorError) as error:
            aside.unlink(missing_ok=True)
            raise _storage_error(self.partial, error) from error

    def _write_record(self, manifest: RunManifest, step: int) -> None:
        tokens = step * manifest.tokens_per_step
        origins = dict(sorted(self._origins[step].items(), key=lambda entry: int(entry[0])))
        record = ExportRecord(manifest.run_id(), manifest.digest(), step, tokens, origins)
        path = self._step_folder(step) / EXPORT_FILE
        aside = path.with_suffix(".new")
        aside.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        _sync(aside)
        aside.replace(path)

    def finish(self, manifest: RunManifest, step: int) -> Path:
        """All stages are there: write the rest and let it appear under its name. Raises `StorageError`."""
        stages = range(manifest.stage_count)
        files = {
            name: shard_name(stage, manifest.stage_count)
            for stage in stages
            for name in stage_names(manifest.model, stage)
        }
        whole = self._step_folder(step)
        try:
            write_small_files(whole, manifest, step, files)
            for path in whole.iterdir():
                _sync(path)
            whole.rename(self.target)
            shutil.rmtree(self.partial)
        except OSError as error:
            raise _storage_error(self.partial, error) from error
        return self.target


def _is_ours(path: Path) -> bool:
    """Whether an export wrote this entry of a partial folder: a file of its own, or a step with nothing but files."""
    if path.name in (IDENTITY_FILE, LOCK_FILE):
        return True
    is_step = _STEP_FOLDER.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()
    return is_step and all(entry.is_file() and not entry.is_symlink() for entry in path.iterdir())


def read_stage(folder: Path, settings: ModelSettings, stage: int, stage_count: int) -> WeightsSnapshot:
    """A stage of a folder whose shards are cut as the run's stages. Raises `StorageError`."""
    path = folder / shard_name(stage, stage_count)
    return ordered_stage(load_shard(path), settings, stage, path)


def load_shard(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard. Raises `StorageError`."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from error


def ordered_stage(tensors: Mapping[str, Tensor], settings: ModelSettings, stage: int, source: Path) -> WeightsSnapshot:
    """The stage's tensors in their order, with their digests. Raises `StorageError` if one is missing."""
    names = stage_names(settings, stage)
    missing = [name for name in names if name not in tensors]
    if missing:
        raise StorageError(f"{source} lacks {missing[0]}: it is damaged, or of another model")
    return described({name: tensors[name] for name in names})


def _whole_stages(folder: Path, record: ExportRecord, manifest: RunManifest) -> dict[int, Origin]:
    """The stages whose bytes are what they should be."""
    whole: dict[int, Origin] = {}
    for stage in range(manifest.stage_count):
        origin = record.stages.get(str(stage))
        try:
            if origin is not None:
                found = read_stage(folder, manifest.model, stage, manifest.stage_count)
                if found.digest == origin.digest:
                    whole[stage] = origin
        except StorageError:
            continue
    return whole


def read_record(path: Path) -> ExportRecord | None:
    """An export.json, or None if it is not one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ExportRecord)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _sync(path: Path) -> None:
    """What the name says is on the disk before it is relied on."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _storage_error(where: Path, error: OSError | SafetensorError) -> StorageError:
    is_full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
    reason = "the disk is full" if is_full else str(error)
    return StorageError(f"the export cannot be written to {where}: {reason}; make room and run the same command again")
