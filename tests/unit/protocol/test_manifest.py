"""What all peers agree on: canonical bytes, limits, and messages that a person can act on."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import PROTOCOL_VERSION, ModelSettings, RunManifest, StepSettings
from understudy.protocol.manifest_reader import MANIFEST_BYTES_MAX, decode_manifest, manifest_from_table
from understudy.protocol.presets import PRESETS, preset
from understudy.protocol.run_toml import parse_run_toml, run_from_table


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_valid_and_travels(name: str) -> None:
    manifest = preset(name)
    assert manifest.name == name
    assert decode_manifest(manifest.encode()) == manifest


@pytest.mark.parametrize(
    ("name", "hidden_size", "heads", "layers", "context_length", "learning_rate"),
    [("124m", 512, 8, 12, 512, 6e-4), ("500m", 1024, 16, 24, 1024, 3e-4), ("1.5b", 2048, 16, 24, 4096, 3e-4)],
)
def test_presets_have_the_papers_dimensions(
    name: str, hidden_size: int, heads: int, layers: int, context_length: int, learning_rate: float
) -> None:
    manifest = preset(name)
    model = manifest.model
    assert (model.hidden_size, model.attention_heads, model.context_length) == (hidden_size, heads, context_length)
    assert model.block_stages * model.layers_per_stage == layers
    assert manifest.optimizer.learning_rate == learning_rate


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"use one of tiny, 124m, 500m, 1\.5b, or the path of a run\.toml"):
        preset("huge")


# --- identity ---


def test_the_digest_is_of_the_canonical_bytes() -> None:
    manifest = preset("tiny")
    assert manifest.digest() == preset("tiny").digest()
    assert len(manifest.digest()) == 64
    assert manifest.run_id() == f"tiny-{manifest.digest()[:12]}"


def test_the_canonical_bytes_do_not_depend_on_the_order_of_a_file() -> None:
    one = parse_run_toml('name = "run"\n[step]\nmicrobatches = 8\nwindow = 3\n', "a").manifest
    two = parse_run_toml('name = "run"\n[step]\nwindow = 3\nmicrobatches = 8\n', "b").manifest
    assert one.encode() == two.encode()


def test_a_setting_at_its_default_is_the_same_run() -> None:
    assert parse_run_toml('name = "run"\nseed = 0\n', "a").manifest.digest() == RunManifest(name="run").digest()


@pytest.mark.parametrize("changes", [{"seed": 1}, {"founding_nonce": "n"}, {"step": StepSettings(window=1)}])
def test_any_other_setting_is_another_run(changes: dict[str, object]) -> None:
    manifest = RunManifest(name="run")
    assert msgspec.structs.replace(manifest, **changes).digest() != manifest.digest()


def test_it_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        preset("tiny").seed = 1  # type: ignore[misc]


# --- what follows from it ---


def test_stages_are_s0_and_the_blocks() -> None:
    manifest = RunManifest(name="run", model=ModelSettings(block_stages=5))
    assert (manifest.stage_count, manifest.last_stage) == (6, 5)


@pytest.mark.parametrize(
    ("window", "microbatches", "expected"), [(0, 100, 40), (0, 4, 4), (3, 100, 3), (50, 8, 8), (1, 1, 1)]
)
def test_the_window(window: int, microbatches: int, expected: int) -> None:
    manifest = RunManifest(name="run", step=StepSettings(window=window, microbatches=microbatches))
    assert manifest.stage_count == 5
    assert manifest.window == expected


def test_tokens_per_step() -> None:
    step = StepSettings(microbatches=3, microbatch_size=2)
    assert RunManifest(name="run", model=ModelSettings(context_length=10), step=step).tokens_per_step == 60


# --- what is refused ---


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("name = ", "run.toml is not valid TOML"),
        ("seed = 1", "run.toml: .*name"),
        ('name = "a b"', "run.toml: .*name"),
        ('name = "run"\nstages = 3', "unknown field `stages`"),
        ('name = "run"\n[step]\nmicrobatch = 3', r"unknown field `microbatch`.*step"),
        ('name = "run"\n[step]\nmicrobatches = 0', "run.toml: .*>= 1"),
        ('name = "run"\n[recovery]\nnorm_exponent = 3', "run.toml: .*<= 2"),
        ('name = "run"\n[wire]\ndtype = "float16"', "'float16': it must be 'float32' or 'bfloat16' or 'int8'$"),
        ('name = "run"\n[recovery]\nmethod = 3', "recovery.method is 3: it must be 'checkfree' or 'checkfree\\+'$"),
        ('name = "run"\nwire = "int8"', "run.toml: Expected `object`, got `str` .*wire"),
        ('name = "run"\n[seed]\nwire = "int8"', "run.toml: Expected `int`, got `object` .*seed"),
        (
            'name = "run"\nprotocol_version = 99',
            f"speaks protocol version 99, this node speaks {PROTOCOL_VERSION}: install",
        ),
        ('name = "run"\n[model]\nhidden_size = 130', "hidden_size 130 must be a multiple of model.attention_heads 4"),
        ('name = "run"\n[model]\nhidden_size = 132', "must be even"),
        ('name = "run"\n[timing]\ndead_after_s = 1.0', "heartbeat_s < suspect_after_s < dead_after_s"),
        ('name = "run"\n[timing]\nrecord_refresh_s = 10.0', "at least twice timing.record_refresh_s"),
        ('name = "run"\n[data]\nsource = "text"', "needs data.paths"),
        ('name = "run"\n[data]\npaths = ["a"]', "data.paths belongs to data.source = 'text', not to 'python-stdlib'"),
        ('name = "run"\n[data]\ncolumn = "words"', "data.column belongs to data.source = 'huggingface', not to"),
    ],
)
def test_a_mistake_is_explained(toml: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_run_toml(toml, "run.toml")


def streamed(**changes: Any) -> dict[str, Any]:
    named = {"dataset": "some/where", "revision": "a" * 40, "tokenizer": "./tokenizer.json", "end_of_text": "<|end|>"}
    return {"name": "run", "data": {"source": "huggingface"} | named | changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ""}, "needs data.dataset: owner/name or a folder"),
        ({"tokenizer": ""}, "needs data.tokenizer"),
        ({"end_of_text": ""}, "needs data.end_of_text: the token that ends each text"),
        ({"split": ""}, "needs data.split"),
        ({"column": ""}, "needs data.column"),
        ({"paths": ["a"]}, "data.paths belongs to data.source = 'text', not to 'huggingface'"),
        ({"validation_split": "train"}, "data.validation_split is data.split, 'train': hold out another"),
        ({"revision": "main"}, r"data.revision must be the full commit hash .* of some/where"),
        ({"revision": "a" * 41}, "data.revision must be the full commit hash"),
        ({"tokenizer": "open/gpt2"}, "data.tokenizer_revision must be the full commit hash .* of open/gpt2"),
        ({"tokenizer": "gpt2"}, "data.tokenizer is 'gpt2', and names of the hub are owner/name"),
        ({"dataset": "~/texts"}, "data.revision: files of this machine have no revisions: remove it"),
        ({"tokenizer_revision": "a" * 40}, "data.tokenizer_revision: files of this machine have no revisions"),
        ({"dataset": "x" * 1025}, "data.dataset"),
    ],
)
def test_a_streamed_text_is_named_in_full_and_for_good(changes: dict[str, Any], message: str) -> None:
    run_from_table(streamed(), "run.toml")
    with pytest.raises(SettingsError, match=message):
        run_from_table(streamed(**changes), "run.toml")


def test_a_table_is_checked_like_a_file() -> None:
    assert manifest_from_table({"name": "run"}, "a table") == RunManifest(name="run")
    with pytest.raises(SettingsError, match="a table: "):
        manifest_from_table({"name": 3}, "a table")


def test_a_manifest_from_the_network_is_bounded() -> None:
    with pytest.raises(SettingsError, match="at most 16384 are allowed"):
        decode_manifest(b" " * (MANIFEST_BYTES_MAX + 1))


def test_a_manifest_from_the_network_obeys_the_rules_across_fields() -> None:
    other = msgspec.structs.replace(preset("tiny"), protocol_version=PROTOCOL_VERSION + 1)
    with pytest.raises(SettingsError, match="install the version of understudy"):
        decode_manifest(other.encode())


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_are_refused_and_nothing_else(data: bytes) -> None:
    with pytest.raises(SettingsError):
        decode_manifest(data)


@settings(deadline=None)
@given(st.integers(0, 2000), st.integers(0, 255))
def test_a_damaged_manifest_is_refused_or_another_run(at: int, byte: int) -> None:
    encoded = bytearray(preset("tiny").encode())
    encoded[at % len(encoded)] = byte
    try:
        decoded = decode_manifest(bytes(encoded))
    except SettingsError:
        return
    assert (decoded == preset("tiny")) == (decoded.digest() == preset("tiny").digest())


# --- a hostile founder ---

TEXT_RUN = {"name": "run", "data": {"source": "text", "digest": "0" * 64}}
NANOSECONDS = dict.fromkeys(msgspec.to_builtins(RunManifest(name="x").timing), 1e-09)
HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"data": {"source": "text", "paths": ["~/.ssh", "/proc/self/environ"]}}, "unknown field `paths`"),
    ({"data": {"source": "text", "paths": [], "digest": "0" * 64}}, "unknown field `paths`"),
    ({"data": {"source": "text"}}, "no digest of the text: do not join this run"),
    ({"data": {"source": "text", "digest": "../.."}}, "digest"),
    ({"data": {"tokenizer": "/dev/zero"}}, "belongs to data.source = 'huggingface'"),
    *(
        ({"data": {"source": "huggingface", "end_of_text": ".", "digest": "0" * 64, **named}}, told)
        for named, told in (
            ({}, "no digest of its tokenizer"),
            ({"dataset": "/home", "revision": "a" * 40}, "names of the hub are owner/name"),
            ({"dataset": "~/.ssh", "revision": "a" * 40}, "names of the hub are owner/name"),
            ({"dataset": "text", "revision": "a" * 40}, "names of the hub are owner/name"),
            ({"dataset": "a/../b", "revision": "a" * 40}, "names of the hub are owner/name"),
            ({"dataset": "some/where\n# heading", "revision": "a" * 40}, r"cannot be printed: some/where\\n# heading"),
            ({"tokenizer": "./tokenizer.json", "tokenizer_revision": "a" * 40}, "names of the hub are owner/name"),
            ({"tokenizer": "a/b\x1b[2J", "tokenizer_revision": "a" * 40}, r"cannot be printed: a/b\\x1b\[2J"),
            ({"config": "../../cache"}, "no name of a dataset's configuration"),
            ({"split": "train\x9b1m"}, "cannot be printed"),
            ({"end_of_text": "\u202e"}, "cannot be printed"),
        )
    ),
    ({"name": "a\nb"}, "name"),
    ({"name": "\x1b[2J"}, "name"),
    ({"\x1b[2J\nfield": 1}, r"unknown field `\\x1b\[2J\\nfield`"),
    ({"founding_nonce": "\x1b"}, "founding_nonce"),
    ({"initial": {"digests": ["0" * 64] * 5, "peer": "Qm", "run_id": "a`\n# b"}}, "run_id"),
    ({"initial": {"digests": ["0" * 64] * 5, "peer": "Qm\x1b"}}, "peer"),
    ({"protocol_version": 1 << 63}, "protocol_version"),
    *(({"timing": {name: value}}, f"timing.{name}") for name, value in NANOSECONDS.items()),
    *(({"timing": {name: 1e9}}, f"timing.{name}") for name in NANOSECONDS),
    ({"step": {"microbatch_timeout_s": 1e-9}}, "step.microbatch_timeout_s"),
    ({"step": {"total_steps": 1 << 60}}, "step.total_steps"),
    ({"optimizer": {"learning_rate": 1e300}}, "optimizer.learning_rate"),
    ({"optimizer": {"warmup_steps": 1 << 60}}, "optimizer.warmup_steps"),
    ({"recovery": {"learning_rate_scale": 1e300}}, "recovery.learning_rate_scale"),
    (
        {"model": {"hidden_size": 1 << 16, "intermediate_size": 1 << 18, "layers_per_stage": 1024}},
        r"the weights of a block stage would be 281,475.* GB, and 137.4 GB are allowed",
    ),
    ({"model": {"hidden_size": 1 << 16, "vocabulary_size": 1 << 20}}, "the weights of S0 would be 549.8 GB"),
    ({"step": {"microbatch_size": 1 << 16}}, "the activation of a microbatch would be 4.3 GB"),
    (
        {"model": {"vocabulary_size": 1 << 20, "context_length": 1 << 18, "hidden_size": 8}},
        "the logits of a microbatch",
    ),
]


@pytest.mark.parametrize(("settings_", "told"), HOSTILE)
def test_a_manifest_of_a_hostile_founder_is_refused(settings_: dict[str, Any], told: str) -> None:
    encoded = json.dumps({"name": "run", "protocol_version": PROTOCOL_VERSION, **settings_}).encode()
    with pytest.raises(SettingsError, match=told) as caught:
        decode_manifest(encoded)
    assert str(caught.value).isprintable()


def test_the_same_manifest_without_the_attack_is_taken() -> None:
    assert decode_manifest(json.dumps(TEXT_RUN).encode()).data.digest
