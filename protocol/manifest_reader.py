"""From bytes or a table to a manifest that keeps all rules. A ``run.toml``: run_toml.py."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args, get_origin

import msgspec

from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import PROTOCOL_VERSION, DataSettings, RunManifest
from understudy.protocol.printable import printable

MANIFEST_BYTES_MAX = 16 * 1024
STAGE_BYTES_MAX = 1 << 37
"""Of a stage's weights: 34 billion numbers. What a machine can hold is judged there (node/compute/room.py)."""
ACTIVATION_BYTES_MAX = 1 << 30
"""Of a microbatch between two stages in float32: no frame is longer (protocol/wire/frames.py)."""
LOGIT_BYTES_MAX = 1 << 37
"""Of a microbatch, on S0."""
COMPLAINT_CHARACTERS_MAX = 300
"""An error of the decoder's repeats names that it was given."""

_PARTS_OF_PATHS = re.compile(r"[/\\]|\.\.")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_STREAMED_KEYS = (
    "dataset", "config", "split", "column", "revision", "tokenizer", "tokenizer_revision", "end_of_text",
    "validation_split",
)  # fmt: skip


def decode_manifest(encoded: bytes) -> RunManifest:
    """The inverse of `RunManifest.encode`. Raises `SettingsError`."""
    if len(encoded) > MANIFEST_BYTES_MAX:
        raise SettingsError(f"the manifest is {len(encoded)} bytes; at most {MANIFEST_BYTES_MAX} are allowed")
    try:
        manifest = msgspec.json.decode(encoded, type=RunManifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SettingsError(f"the manifest does not fit: {printable(str(error)[:COMPLAINT_CHARACTERS_MAX])}") from error
    check(manifest)
    check_founded(manifest)
    return manifest


def manifest_from_table(table: dict[str, Any], source: str) -> RunManifest:
    """Validate a table of settings. Raises `SettingsError`."""
    _check_choices(table, source)
    try:
        manifest = msgspec.convert(table, type=RunManifest)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{source}: {error}") from error
    check(manifest)
    return manifest


def _check_choices(table: dict[str, Any], source: str) -> None:
    """Say what a setting may be, where msgspec says only what it must not be. Raises `SettingsError`."""
    for section in msgspec.structs.fields(RunManifest):
        given = table.get(section.name)
        if not isinstance(given, dict) or not isinstance(section.type, type):
            continue
        for field in msgspec.structs.fields(section.type):
            allowed = get_args(field.type) if get_origin(field.type) is Literal else ()
            if allowed and given.get(field.name, allowed[0]) not in allowed:
                setting, choices = f"{section.name}.{field.name}", " or ".join(repr(choice) for choice in allowed)
                raise SettingsError(f"{source}: {setting} is {given[field.name]!r}: it must be {choices}")


def check(manifest: RunManifest) -> None:
    """Rules across fields. Raises `SettingsError`."""
    model, timing = manifest.model, manifest.timing
    if manifest.protocol_version != PROTOCOL_VERSION:
        raise SettingsError(
            f"the run speaks protocol version {manifest.protocol_version}, this node speaks {PROTOCOL_VERSION}: "
            "install the version of understudy that the run was founded with"
        )
    if len(manifest.initial.digests) not in (0, manifest.stage_count) or (
        bool(manifest.initial.digests) != bool(manifest.initial.peer)
    ):
        raise SettingsError("[initial] is not for a run.toml: name the weights with bootstrap --initial-weights DIR")
    if model.hidden_size % model.attention_heads:
        raise SettingsError(
            f"model.hidden_size {model.hidden_size} must be a multiple of model.attention_heads {model.attention_heads}"
        )
    if (model.hidden_size // model.attention_heads) % 2:
        raise SettingsError("model.hidden_size / model.attention_heads must be even: rotary embedding turns pairs")
    if not timing.heartbeat_s < timing.suspect_after_s < timing.dead_after_s:
        raise SettingsError("timing must satisfy heartbeat_s < suspect_after_s < dead_after_s")
    if not 2 * timing.record_refresh_s <= timing.record_lifetime_s:
        raise SettingsError("timing.record_lifetime_s must be at least twice timing.record_refresh_s")
    _check_sizes(manifest)
    _check_data(manifest.data)


def _check_sizes(manifest: RunManifest) -> None:
    """What follows from several settings together. Raises `SettingsError`."""
    model, rows = manifest.model, manifest.step.microbatch_size * manifest.model.context_length
    for what, size, most in (
        ("the weights of S0", model.stage_bytes(0), STAGE_BYTES_MAX),
        ("the weights of a block stage", model.stage_bytes(1), STAGE_BYTES_MAX),
        ("the activation of a microbatch", 4 * rows * model.hidden_size, ACTIVATION_BYTES_MAX),
        ("the logits of a microbatch", 4 * rows * model.vocabulary_size, LOGIT_BYTES_MAX),
    ):
        if size > most:
            raise SettingsError(f"{what} would be {size / 1e9:,.1f} GB, and {most / 1e9:,.1f} GB are allowed")


def check_founded(manifest: RunManifest) -> None:
    """What a founding must have entered: without a digest any file of a machine would do. Raises `SettingsError`."""
    data = manifest.data
    if data.source != "python-stdlib" and not data.digest:
        raise SettingsError(
            f"the manifest has data.source = {data.source!r} and no digest of the text: do not join this run, "
            "it would be trained on whatever files a machine has"
        )
    if data.source == "huggingface" and not data.tokenizer_digest:
        raise SettingsError("the manifest has no digest of its tokenizer: do not join this run")


def _check_data(data: DataSettings) -> None:
    """Rules within the table. Raises `SettingsError`."""
    for name, value in msgspec.structs.asdict(data).items():
        if isinstance(value, str) and not value.isprintable():
            raise SettingsError(f"data.{name} has characters that cannot be printed: {printable(value)}")
    if _PARTS_OF_PATHS.search(data.config):
        raise SettingsError(f"data.config is {data.config!r}, which is no name of a dataset's configuration")
    if data.source == "huggingface":
        _check_streamed(data)
        return
    for field in msgspec.structs.fields(DataSettings):
        if field.name in _STREAMED_KEYS and getattr(data, field.name) != field.default:
            raise SettingsError(
                f"data.{field.name} belongs to data.source = 'huggingface', not to {data.source!r}: remove it"
            )


def _check_streamed(data: DataSettings) -> None:
    for key, example in (
        ("end_of_text", "the token that ends each text, such as <|endoftext|>"),
        ("split", "such as train"),
        ("column", "such as text"),
    ):
        if not getattr(data, key):
            raise SettingsError(f"data.source = 'huggingface' needs data.{key}: {example}")
    if data.validation_split == data.split:
        raise SettingsError(
            f"data.validation_split is data.split, {data.split!r}: hold out another split, or a fraction"
        )
    _check_hub_name("dataset", data.dataset, data.revision)
    _check_hub_name("tokenizer", data.tokenizer, data.tokenizer_revision)


def _check_hub_name(kind: str, name: str, revision: str) -> None:
    """A name without an owner is refused: the datasets library has a meaning of its own for some of them."""
    key = "revision" if kind == "dataset" else f"{kind}_revision"
    if not name:
        if revision:
            raise SettingsError(f"data.{key}: files of this machine have no revisions: remove it")
        return
    if not _HUB_NAME.fullmatch(name):
        raise SettingsError(f"data.{kind} is {name!r}, and names of the hub are owner/name")
    if not _COMMIT.fullmatch(revision):
        raise SettingsError(
            f"data.{key} must be the full commit hash (40 hexadecimal digits) of {name}, so that its text "
            "cannot change during the run: the hub shows it at 'Files and versions' (a path begins with / . or ~)"
        )
