"""Results on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from understudy.node.files.atomic import write_atomically

FOLDER = Path("docs/performance")
"""Where results lie, unless they are the study's."""
PAGE = Path("docs/performance.md")
"""Which shows them."""

Kept = TypeVar("Kept", bound=msgspec.Struct)


def keep(result: msgspec.Struct, path: Path) -> Path:
    """Write a result as JSON: whole or not at all. Makes the folder; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, msgspec.json.encode(result) + b"\n")
    return path


def read_kept(folder: Path, pattern: str, kind: type[Kept]) -> list[Kept]:
    """The results in the files of a folder that match. Raises `msgspec.ValidationError` for a file that is none."""
    return [msgspec.json.decode(path.read_bytes(), type=kind) for path in sorted(folder.glob(pattern))]
