"""What all peers agree on: canonical bytes, limits, and messages that a person can act on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import PROTOCOL_VERSION, ModelSettings, RunManifest, StepSettings
from understudy.protocol.manifest_reader import MANIFEST_BYTES_MAX, decode_manifest, manifest_from_table, parse_manifest
from understudy.protocol.presets import PRESETS, preset


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
    one = parse_manifest('name = "run"\n[step]\nmicrobatches = 8\nwindow = 3\n', "a")
    two = parse_manifest('name = "run"\n[step]\nwindow = 3\nmicrobatches = 8\n', "b")
    assert one.encode() == two.encode()


def test_a_setting_at_its_default_is_the_same_run() -> None:
    assert parse_manifest('name = "run"\nseed = 0\n', "a").digest() == RunManifest(name="run").digest()


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
        parse_manifest(toml, "run.toml")


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
        ({"tokenizer": "gpt2"}, "data.tokenizer_revision must be the full commit hash .* of gpt2"),
        ({"dataset": "~/texts"}, "data.revision: ~/texts is a path of this machine and has no revisions"),
        ({"tokenizer_revision": "a" * 40}, "data.tokenizer_revision: ./tokenizer.json is a path of this machine"),
        ({"dataset": "x" * 1025}, "data.dataset"),
    ],
)
def test_a_streamed_text_is_named_in_full_and_for_good(changes: dict[str, Any], message: str) -> None:
    manifest_from_table(streamed(), "run.toml")
    with pytest.raises(SettingsError, match=message):
        manifest_from_table(streamed(**changes), "run.toml")


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
