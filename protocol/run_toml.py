"""A founder's ``run.toml``: the settings that all peers agree on, and beside them the founder's own files.

What is in a manifest is read by strangers, and believed by their machines; so where the text lies is said by whoever
sits at a machine, and by nobody else.
"""

from __future__ import annotations

import tomllib
from typing import Any, NamedTuple

import msgspec

from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import RunManifest
from understudy.protocol.manifest_reader import manifest_from_table


class OwnFiles(NamedTuple):
    """Files of the founder's machine, as they were written."""

    texts: tuple[str, ...] = ()
    """text: UTF-8 files and folders of them. huggingface: the folder of a dataset."""
    tokenizer: str = ""
    """A tokenizer.json, or the folder that holds one."""


NO_FILES = OwnFiles()


class RunToml(NamedTuple):
    """What a founder wrote."""

    manifest: RunManifest
    files: OwnFiles


def parse_run_toml(text: str, source: str) -> RunToml:
    """Read a ``run.toml``. ``source`` names it in messages. Raises `SettingsError`."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{source} is not valid TOML: {error}") from error
    return run_from_table(table, source)


def run_from_table(table: dict[str, Any], source: str) -> RunToml:
    """Take the founder's own files out of a table of settings, and validate the rest. Raises `SettingsError`."""
    data = table.get("data")
    if not isinstance(data, dict):
        return RunToml(manifest_from_table(table, source), NO_FILES)
    settings, files = _apart(data, source)
    _check_named(settings, files)
    return RunToml(manifest_from_table({**table, "data": settings}, source), files)


def is_local(name: object) -> bool:
    """Whether a dataset's or tokenizer's name is a path of this machine rather than a name of the hub."""
    return isinstance(name, str) and name.startswith(("/", "./", "../", "~"))


def _apart(data: dict[str, Any], source: str) -> tuple[dict[str, Any], OwnFiles]:
    """The settings without what names a file, and those names."""
    settings = dict(data)
    try:
        texts = msgspec.convert(settings.pop("paths", ()), tuple[str, ...])
    except msgspec.ValidationError as error:
        raise SettingsError(f"{source}: data.paths: {error}") from error
    kind = data.get("source", "python-stdlib")
    if texts and kind != "text":
        raise SettingsError(f"data.paths belongs to data.source = 'text', not to {kind!r}: remove it")
    if kind != "huggingface":
        return settings, OwnFiles(texts)
    dataset, tokenizer = (_taken(settings, key) for key in ("dataset", "tokenizer"))
    return settings, OwnFiles((dataset,) if dataset else (), tokenizer)


def _taken(settings: dict[str, Any], key: str) -> str:
    """The setting, taken out if it is a path; else ""."""
    return str(settings.pop(key)) if is_local(settings.get(key)) else ""


def _check_named(settings: dict[str, Any], files: OwnFiles) -> None:
    """Raises `SettingsError` unless the run's text has a name, of the hub or of this machine."""
    if settings.get("source") == "text" and not files.texts:
        raise SettingsError("data.source = 'text' needs data.paths: files or folders of UTF-8 text")
    if settings.get("source") != "huggingface":
        return
    for key, named, example in (
        ("dataset", files.texts, "owner/name or a folder"),
        ("tokenizer", files.tokenizer, "owner/name or a tokenizer.json"),
    ):
        if not named and not settings.get(key):
            raise SettingsError(f"data.source = 'huggingface' needs data.{key}: {example}")
