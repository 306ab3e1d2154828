"""What an export looks like to Hugging Face's libraries: the same model, the same tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy.node.export_folder import ExportFolder, Origin
from understudy.node.generation import ExportedModel, Wish, choose
from understudy.node.hugging_face import byte_characters, read_config, tokenizer
from understudy.node.model import UnsplitModel
from understudy.node.weights import snapshot
from understudy.protocol.errors import SettingsError, StorageError, UnderstudyError, WeightsError
from understudy.protocol.manifest import ModelSettings, RunManifest

MODEL = ModelSettings(
    vocabulary_size=300,
    hidden_size=32,
    intermediate_size=48,
    attention_heads=4,
    block_stages=3,
    layers_per_stage=2,
    context_length=16,
    rope_theta=500.0,
    norm_epsilon=1e-4,
)
MANIFEST = RunManifest(name="exported", model=MODEL)


@pytest.fixture(scope="module")
def unsplit() -> UnsplitModel:
    """Every stage, with weights large enough that a wrong constant would show."""
    model = UnsplitModel(MODEL, seed=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.fixture(scope="module")
def exported(unsplit: UnsplitModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exports") / "out"
    with ExportFolder.reserved(target, MANIFEST.digest()) as folder:
        folder.begin(7, 0)
        for stage, module in enumerate(unsplit.stages):
            weights = snapshot(module)
            folder.add(MANIFEST, 7, stage, (weights, Origin("peer", 1, weights.digest)))
        return folder.finish(MANIFEST, 7)


def ours(model: UnsplitModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        hidden = model.edge.embed(tokens)
        for block in model.blocks:
            hidden = block(hidden)
        return model.edge.logits(hidden)


def some_tokens(rows: int = 3) -> torch.Tensor:
    return torch.randint(256, (rows, MODEL.context_length), generator=torch.Generator().manual_seed(2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_transformers_computes_what_the_stages_compute(unsplit: UnsplitModel, exported: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exported, local_files_only=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float32
    tokens = some_tokens()
    with torch.inference_mode():
        theirs = model(tokens).logits
    expected = ours(unsplit, tokens)
    assert expected.abs().max() > 1
    torch.testing.assert_close(theirs, expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_transformers_takes_bytes_for_tokens(exported: Path) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(exported, local_files_only=True)
    text = "def naïve(x):\n\treturn 'ß €' * 2  \n"
    assert loaded(text)["input_ids"] == list(text.encode())
    assert loaded.decode(list(text.encode())) == text


@given(st.text())
def test_a_token_is_a_byte(text: str) -> None:
    made = tokenizer()
    encoded = made.encode(text).ids
    assert encoded == list(text.encode())
    assert made.decode(encoded) == text


def test_every_byte_has_a_character_of_its_own() -> None:
    assert sorted(byte_characters().values()) == list(range(256))


def test_our_own_code_reads_the_same_model_back(unsplit: UnsplitModel, exported: Path) -> None:
    model = ExportedModel(exported)
    assert model.settings == msgspec.structs.replace(MODEL, block_stages=6, layers_per_stage=1)
    assert torch.equal(model.logits(some_tokens()), ours(unsplit, some_tokens()))


def test_an_export_can_be_cut_into_other_stages(exported: Path) -> None:
    assert read_config(exported).model_settings(block_stages=3) == MODEL


# --- generating ---


def text_of(folder: Path, prompt: str, wish: Wish) -> str:
    return "".join(ExportedModel(folder).write(prompt, wish))


def test_the_same_wish_gives_the_same_text(exported: Path) -> None:
    assert text_of(exported, "def ", Wish(40, 1.0, 3)) == text_of(exported, "def ", Wish(40, 1.0, 3))
    assert text_of(exported, "def ", Wish(40, 1.0, 3)) != text_of(exported, "def ", Wish(40, 1.0, 4))


def test_without_temperature_the_likeliest_byte_follows(unsplit: UnsplitModel, exported: Path) -> None:
    """Beyond the context the window slides."""
    tokens = list(b"def ")
    for _ in range(MODEL.context_length + 3):
        window = torch.tensor([tokens[-MODEL.context_length :]])
        tokens.append(int(ours(unsplit, window)[0, -1, :256].argmax()))
    expected = bytes(tokens[4:]).decode(errors="replace")
    assert text_of(exported, "def ", Wish(MODEL.context_length + 3, 0.0)) == expected


def test_a_prompt_may_be_empty_or_of_any_language(exported: Path) -> None:
    assert text_of(exported, "", Wish(3))
    assert text_of(exported, "ß€", Wish(3))


def test_the_rows_that_no_byte_uses_are_never_chosen(unsplit: UnsplitModel, exported: Path) -> None:
    model = ExportedModel(exported)
    model._edge.lm_head.weight.data[256:] = 100.0 * torch.sign(model._edge.lm_head.weight.data[:1])
    assert "".join(model.write("def ", Wish(5)))


def test_a_choice_follows_the_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -50.0])
    drawn = [choose(logits, 1.0, generator) for _ in range(300)]
    assert drawn.count(2) == 0
    assert drawn.count(1) / 300 == pytest.approx(0.731, abs=0.08)
    assert choose(logits, 0.0, generator) == 1


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-20, 1e300])
def test_no_temperature_is_too_low_or_too_high(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([3e38, -3e38, 2.9e38])
    drawn = {choose(logits, temperature, generator) for _ in range(60)}
    assert drawn == ({0, 1, 2} if temperature > 1 else {0})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_computes_no_numbers_is_said_to_be_damaged(temperature: float) -> None:
    with pytest.raises(WeightsError, match="not finite"):
        choose(torch.tensor([0.0, math.nan]), temperature, torch.Generator())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "no such file"),
        ("config.json", "{", "does not describe"),
        ("config.json", '{"model_type": "llama"}', "does not describe"),
        ("model.safetensors.index.json", None, "finished"),
        ("model.safetensors.index.json", '{"weight_map": {"x": "../x.safetensors"}}', "outside"),
        ("model.safetensors.index.json", '{"weight_map": {"x": "gone.safetensors"}}', "cannot be read"),
        ("model.safetensors.index.json", '{"weight_map": {}}', "lacks"),
        ("tokenizer.json", None, "not a tokenizer"),
        ("tokenizer.json", "{}", "not a tokenizer"),
        ("model-00002-of-00004.safetensors", "nonsense", "cannot be read"),
    ],
)
def test_a_damaged_folder_is_one_clear_error(
    name: str, content: str | None, message: str, exported: Path, tmp_path: Path
) -> None:
    for path in exported.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises((SettingsError, StorageError), match=message) as caught:
        ExportedModel(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model_type": "gpt2"}, SettingsError),
        ({"num_key_value_heads": 2}, SettingsError),
        ({"tie_word_embeddings": True}, SettingsError),
        ({"hidden_size": -1}, SettingsError),
        ({"intermediate_size": 50}, WeightsError),
    ],
)
def test_a_model_of_another_kind_is_refused(
    change: dict[str, object], error: type[UnderstudyError], exported: Path, tmp_path: Path
) -> None:
    for path in exported.iterdir():
        (tmp_path / path.name).symlink_to(path)
    table = json.loads((exported / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**table, **change}))
    with pytest.raises(error):
        ExportedModel(tmp_path)
