"""Founding: from a preset or a run.toml to a signed manifest and its join string."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec

from understudy.node.addresses import JoinString, told_to_others
from understudy.node.identity import Identity
from understudy.node.join_file import write_join
from understudy.node.plain_files import read_plain
from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import PRESETS, RunManifest, check, decode_manifest, parse_manifest, preset
from understudy.protocol.records import ManifestRecord

MANIFEST_FILE = "manifest.json"
JOIN_FILE = "join.txt"


def load_manifest(source: str, total_steps: int | None = None) -> RunManifest:
    """The manifest of a preset's name or a run.toml's path, made unique by a nonce. Raises `SettingsError`."""
    manifest = preset(source) if source in PRESETS else _read(source)
    manifest = msgspec.structs.replace(manifest, founding_nonce=secrets.token_hex(8))
    if total_steps is not None:
        if total_steps < 1:
            raise SettingsError("--steps must be at least 1")
        step = msgspec.structs.replace(manifest.step, total_steps=total_steps)
        manifest = msgspec.structs.replace(manifest, step=step)
    check(manifest)
    return manifest


def _read(source: str) -> RunManifest:
    path = Path(source)
    if not path.suffix and not path.exists():
        return preset(source)
    try:
        return parse_manifest(read_plain(path).decode(), source)
    except OSError as error:
        raise SettingsError(f"{source} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{source} is not UTF-8 text: it should be a run.toml") from error


def reload_manifest(folder: Path) -> RunManifest | None:
    """The manifest of a run that was founded with this folder, so that its seed can be started again."""
    path = folder / MANIFEST_FILE
    if not path.exists():
        return None
    try:
        return decode_manifest(read_plain(path).strip())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}; choose another --dir") from error
    except SettingsError as error:
        raise SettingsError(f"{path} is not the manifest of a run ({error}): choose another --dir") from error


def keep_founding(folder: Path, manifest: RunManifest, join: JoinString) -> None:
    """Write manifest.json and join.txt. Raises `SettingsError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST_FILE).write_bytes(manifest.encode() + b"\n")
        write_join(folder / JOIN_FILE, join)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror}; choose another --dir") from error


def found(manifest: RunManifest, founder: Identity) -> ManifestRecord:
    """Sign the manifest."""
    encoded = manifest.encode()
    return ManifestRecord(founder.peer_id, encoded, founder.public_key_bytes, founder.sign(encoded))


def join_string(manifest: RunManifest, founder: Identity, addresses: Sequence[str]) -> JoinString:
    """What newcomers need. Loopback is left out if there is any other address: at best nobody answers there."""
    reachable = told_to_others(addresses)
    return JoinString(manifest.run_id(), manifest.digest(), founder.peer_id, reachable)
