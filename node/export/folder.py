"""An export on the disk: shards that arrive one by one, and a folder that is whole or not there.

Everything is written to a folder of parts (place.py), to step-N in it, and moved to DIR at the end. What is
there after an interruption is checked against its digests before it counts.
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
from safetensors.torch import save_file

from understudy.node.compute.weights import WeightsSnapshot
from understudy.node.data.access import NO_ACCESS, TextAccess
from understudy.node.export.hugging_face import write_small_files
from understudy.node.export.place import MOVING, STEP_FOLDERS, Place, find_place
from understudy.node.export.shards import read_stage, shard_name, stage_names
from understudy.node.files.atomic import ASIDE, sync, sync_folder, write_atomically, writing_aside
from understudy.protocol.errors import SettingsError, StorageError
from understudy.protocol.manifest import RunManifest

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


class ExportFolder:
    """DIR, and its parts until it is whole. Made by `reserved`."""

    def __init__(self, place: Place, manifest_digest: str) -> None:
        self._place = place
        self.target, self.partial = place.target, place.partial
        self.is_whole = False
        """Nothing is left to fetch: an earlier export was interrupted when it had all."""
        self._manifest_digest = manifest_digest
        self._origins: dict[int, dict[str, Origin]] = {}
        """By step and stage. A stage of an older step may still be on its way to the disk when another is begun."""

    @classmethod
    @contextmanager
    def reserved(cls, target: Path, manifest_digest: str) -> Iterator[ExportFolder]:
        """Reserve DIR for us. Raises `SettingsError` if it cannot be what a person wants."""
        folder = cls(find_place(target), manifest_digest)
        try:
            folder.partial.mkdir(parents=True, exist_ok=True)
            folder._check_partial()
            # A file and not the folder itself: over NFS only what is open for writing can be locked.
            lock = os.open(folder.partial / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SHARD_MODE)
        except OSError as error:
            raise SettingsError(f"{target} cannot be written ({error.strerror}): choose another folder") from error
        try:
            folder._lock(lock)
            folder._complete()
            folder._forget_half_files()
            try:
                yield folder
            finally:
                folder._tidy()
        finally:
            os.close(lock)

    def _complete(self) -> None:
        """Go on where an earlier export was interrupted while its files moved to their place."""
        if not self._place.is_moving:
            return
        try:
            self._place.move_up()
        except OSError as error:
            raise SettingsError(f"{self.target} cannot be completed: {error}") from error
        self.is_whole = True

    def _forget_half_files(self) -> None:
        """A kill left them, and DIR is to hold nothing but the export."""
        try:
            for path in self.partial.glob(f"{STEP_FOLDERS}/*{ASIDE}"):
                path.unlink()
        except OSError as error:
            raise SettingsError(f"{self.partial} cannot be tidied up: {error}") from error

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
        paths = [*self.partial.glob(f"{STEP_FOLDERS}/{EXPORT_FILE}"), self.target / EXPORT_FILE]
        records = [record for path in paths if (record := read_record(path))]
        if any(record.manifest_digest != self._manifest_digest for record in records):
            raise SettingsError(f"{self.partial} is of another run: remove it, or choose another folder")

    def _tidy(self) -> None:
        """Leave nothing behind that is of no use."""
        if self.partial.is_dir() and not self.has_shards and not self._place.is_moving:
            shutil.rmtree(self.partial, ignore_errors=True)

    @property
    def has_shards(self) -> bool:
        """Whether the same command has something to go on with."""
        return any(self.partial.glob(f"{STEP_FOLDERS}/*.safetensors"))

    @property
    def identity_path(self) -> Path:
        """The exporter's own key, gone with the partial folder."""
        return self.partial / IDENTITY_FILE

    # --- what is there ---

    def resume(self, manifest: RunManifest) -> tuple[int, Mapping[int, str]] | None:
        """The step of an interrupted export and the digests of its whole stages. Forgets what is not whole."""
        for path in sorted(self.partial.glob(f"{STEP_FOLDERS}/{EXPORT_FILE}")):
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
            for old in self.partial.glob(STEP_FOLDERS):
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
        names = [spec.name for spec in weights.specs]
        try:
            with writing_aside(path) as aside:
                save_file(dict(zip(names, weights.tensors, strict=True)), aside, metadata={"format": "pt"})
                aside.chmod(SHARD_MODE)
            self._origins.setdefault(step, {})[str(stage)] = origin
            self._write_record(manifest, step)
        except (OSError, SafetensorError) as error:
            raise _storage_error(self.partial, error) from error

    def _write_record(self, manifest: RunManifest, step: int) -> None:
        tokens = step * manifest.tokens_per_step
        origins = dict(sorted(self._origins[step].items(), key=lambda entry: int(entry[0])))
        record = ExportRecord(manifest.run_id(), manifest.digest(), step, tokens, origins)
        content = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
        write_atomically(self._step_folder(step) / EXPORT_FILE, content)

    def finish(self, manifest: RunManifest, step: int, access: TextAccess = NO_ACCESS) -> Path:
        """All stages are there: write the rest and let it appear under its name. Raises `StorageError`."""
        stages = range(manifest.stage_count)
        files = {
            name: shard_name(stage, manifest.stage_count)
            for stage in stages
            for name in stage_names(manifest.model, stage)
        }
        whole = self._step_folder(step)
        try:
            write_small_files(whole, manifest, step, files, access)
            for path in whole.iterdir():
                sync(path)
            sync_folder(whole)
            self._place.reveal(whole)
        except OSError as error:
            raise _storage_error(self.partial, error) from error
        return self.target


def _is_ours(path: Path) -> bool:
    """Whether an export wrote this entry of a partial folder: a file of its own, or a step with nothing but files."""
    if path.name in (IDENTITY_FILE, LOCK_FILE, MOVING):
        return True
    is_step = _STEP_FOLDER.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()
    return is_step and all(entry.is_file() and not entry.is_symlink() for entry in path.iterdir())


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


def _storage_error(where: Path, error: OSError | SafetensorError) -> StorageError:
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)
    what_to_do = "the disk is full; make room" if is_full else f"{error}; mend that"
    return StorageError(f"the export cannot be written to {where}: {what_to_do} and run the same command again")
