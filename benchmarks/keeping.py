"""Results on the disk."""

from __future__ import annotations

from pathlib import Path

import msgspec


def keep(result: msgspec.Struct, path: Path) -> Path:
    """Write a result as JSON: whole or not at all. Makes the folder; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode(result) + b"\n")
    partial.replace(path)
    return path
