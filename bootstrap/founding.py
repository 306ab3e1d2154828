"""Founding: from a preset or a run.toml to a signed manifest and its join string."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec

from understudy.node.files.atomic import write_atomically
from understudy.node.files.plain_files import read_plain
from understudy.node.join_file import write_join
from understudy.node.p2p.addresses import JoinString, parse_join, told_to_others
from understudy.node.p2p.identity import Identity
from understudy.protocol.admission.invite import Ticket
from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import RunManifest
from understudy.protocol.manifest_reader import check, check_founded, decode_manifest
from understudy.protocol.presets import PRESETS, preset
from understudy.protocol.run_toml import NO_FILES, RunToml, parse_run_toml
from understudy.protocol.wire.records import ManifestRecord

MANIFEST_FILE = "manifest.json"
JOIN_FILE = "join.txt"


def load_run(source: str, total_steps: int | None = None) -> RunToml:
    """The run of a preset's name or a run.toml's path, made unique by a nonce. Raises `SettingsError`."""
    manifest, files = RunToml(preset(source), NO_FILES) if source in PRESETS else _read(source)
    manifest = msgspec.structs.replace(manifest, founding_nonce=secrets.token_hex(8))
    manifest = with_steps(manifest, total_steps)
    check(manifest)
    return RunToml(manifest, files)


def load_manifest(source: str, total_steps: int | None = None) -> RunManifest:
    """What all peers of it agree on. Raises `SettingsError`."""
    return load_run(source, total_steps).manifest


def with_steps(manifest: RunManifest, total_steps: int | None) -> RunManifest:
    """With another end; None: with its own. Raises `SettingsError`."""
    if total_steps is None:
        return manifest
    if total_steps < 1:
        raise SettingsError("--steps must be at least 1")
    step = msgspec.structs.replace(manifest.step, total_steps=total_steps)
    return msgspec.structs.replace(manifest, step=step)


def _read(source: str) -> RunToml:
    path = Path(source)
    if not path.suffix and not path.exists():
        return RunToml(preset(source), NO_FILES)
    try:
        return parse_run_toml(read_plain(path).decode(), source)
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


def check_founder(folder: Path, manifest: RunManifest, founder: Identity) -> None:
    """Nobody who has the run's join string would believe another founder. Raises `SettingsError`."""
    try:
        known = parse_join(read_plain(folder / JOIN_FILE).decode())
    except (OSError, UnicodeDecodeError, SettingsError):  # there is none, or it is damaged: it is written anew
        return
    if known.digest == manifest.digest() and known.founder != founder.peer_id:
        raise SettingsError(
            f"{folder} holds a run of the founder {known.founder}, and {founder.path} is the key of {founder.peer_id}: "
            "name the founder's key with --identity, or choose another --dir"
        )


def keep_founding(folder: Path, manifest: RunManifest, join: JoinString) -> None:
    """Write manifest.json and join.txt. Raises `SettingsError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / MANIFEST_FILE, manifest.encode() + b"\n")
        write_join(folder / JOIN_FILE, join)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror}; choose another --dir") from error


def found(manifest: RunManifest, founder: Identity) -> ManifestRecord:
    """Sign the manifest. Raises `SettingsError` if nobody would take it."""
    check_founded(manifest)
    encoded = manifest.encode()
    return ManifestRecord(founder.peer_id, encoded, founder.public_key_bytes, founder.sign(encoded))


def join_string(
    manifest: RunManifest, founder: Identity, addresses: Sequence[str], ticket: Ticket | None = None
) -> JoinString:
    """What newcomers need. Loopback is left out if there is any other address: at best nobody answers there."""
    reachable = told_to_others(addresses)
    return JoinString(manifest.run_id(), manifest.digest(), founder.peer_id, reachable, ticket)
