"""Where an export is written, and how it comes to be there: whole, or not at all as far as a disk allows.

A folder that is not there yet is written beside its place, to DIR.partial, and appears in one rename. A folder that
is there already may be a container's volume, which nothing can be renamed over: it is filled from within, out of
DIR/export.partial. Before the first file moves up the mark `MOVING` says so, and config.json, without which nothing
reads the folder as a model, moves last. After a crash in between the same command moves the rest.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from understudy.node.files.atomic import sync_folder
from understudy.protocol.errors import SettingsError, StorageError

PARTIAL = "export.partial"
MOVING = "moving"
LAST_FILE = "config.json"
STEP_FOLDERS = "step-*"
OF_THE_DISK = frozenset({"lost+found"})
"""What an empty disk has in it."""


@dataclass(frozen=True, slots=True)
class Place:
    """DIR, and where what comes is kept until all of it is there."""

    target: Path
    partial: Path

    @property
    def is_within(self) -> bool:
        """DIR is there already and is filled from within."""
        return self.partial.parent == self.target

    @property
    def is_moving(self) -> bool:
        """All had come, and was being moved to its place when we were interrupted."""
        return self.is_within and (self.partial / MOVING).exists()

    def reveal(self, whole: Path) -> None:
        """Let a folder that is whole and on the disk appear as DIR. Raises `OSError`, `StorageError`."""
        if not self.is_within:
            whole.rename(self.target)
            sync_folder(self.target.parent)
            shutil.rmtree(self.partial)
            return
        taken = [path.name for path in whole.iterdir() if (self.target / path.name).exists()]
        if taken:
            raise StorageError(f"{self.target} has a {taken[0]} by now: move it away and run the same command again")
        (self.partial / MOVING).touch()
        sync_folder(self.partial)
        self.move_up()

    def move_up(self) -> None:
        """Move what has not moved yet, what makes it a model last. Raises `OSError`."""
        files = [path for folder in self.partial.glob(STEP_FOLDERS) for path in folder.iterdir()]
        for path in sorted(files, key=lambda path: path.name == LAST_FILE):
            if path.name == LAST_FILE:
                sync_folder(self.target)
            path.rename(self.target / path.name)
        sync_folder(self.target)
        mark = self.partial / MOVING
        for path in [path for path in self.partial.iterdir() if path != mark]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        mark.unlink()
        self.partial.rmdir()


def find_place(wanted: Path) -> Place:
    """A link is followed. Raises `SettingsError` if the place is taken."""
    try:
        target = Path(os.path.realpath(wanted))
        if not target.exists():
            return Place(target, target.with_name(f"{target.name}.partial"))
        place = Place(target, target / PARTIAL)
        is_free = target.is_dir() and {path.name for path in target.iterdir()} <= {PARTIAL, *OF_THE_DISK}
        if is_free or place.is_moving:
            return place
    except OSError as error:
        raise SettingsError(f"{wanted} cannot be looked at ({error.strerror}): choose another folder") from error
    raise SettingsError(f"{target} is there already and not empty: choose another folder, or remove it")
