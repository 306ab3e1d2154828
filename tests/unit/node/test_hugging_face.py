"""What an export looks like to Hugging Face's libraries: the same model, the same tokens."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from understudy.node.compute.model import UnsplitModel
from understudy.node.compute.weights import snapshot
from understudy.node.data.access import NO_ACCESS, TextAccess
from understudy.node.data.tokenizer import Tokens
from understudy.node.export.folder import ExportFolder, Origin
from understudy.node.export.generation import ExportedModel, Wish, choose
from understudy.node.export.hugging_face import byte_characters, card, read_config, tokenizer
from understudy.node.export.initial_weights import InitialWeights
from understudy.node.export.shards import load_tensors
from understudy.protocol.errors import SettingsError, StorageError, UnderstudyError, WeightsError
from understudy.protocol.manifest import DataSettings, ModelSettings, RunManifest

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
    return export_of(unsplit, MANIFEST, tmp_path_factory.mktemp("exports") / "out")


def export_of(unsplit: UnsplitModel, manifest: RunManifest, target: Path, access: TextAccess = NO_ACCESS) -> Path:
    with ExportFolder.reserved(target, manifest.digest()) as folder:
        folder.begin(7, 0)
        for stage, module in enumerate(unsplit.stages):
            weights = snapshot(module)
            folder.add(manifest, 7, stage, (weights, Origin("peer", 1, weights.digest)))
        return folder.finish(manifest, 7, access)


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


# --- what transformers makes of it ---

QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def saved_again(source: Path, target: Path, dtype: torch.dtype = torch.float32, **how: Any) -> Path:
    """A folder, loaded and saved by transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(target, **how)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    return target


@QUIET
@pytest.mark.parametrize("how", [{}, {"max_shard_size": "20KB"}, {"max_shard_size": "1GB"}], ids=str)
def test_what_transformers_saved_again_is_read(
    how: dict[str, Any], unsplit: UnsplitModel, exported: Path, tmp_path: Path
) -> None:
    folder = saved_again(exported, tmp_path, **how)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert (files == ["model.safetensors"]) == (how != {"max_shard_size": "20KB"})
    assert "rope_theta" not in json.loads((folder / "config.json").read_text()), "transformers 5 writes it elsewhere"
    tokens = some_tokens()
    assert torch.equal(ExportedModel(folder).logits(tokens), ours(unsplit, tokens))
    assert text_of(folder, "def ", Wish(5)) == text_of(exported, "def ", Wish(5))
    assert InitialWeights(folder, MODEL).digests == InitialWeights(exported, MODEL).digests


@QUIET
def test_saving_over_an_export_leaves_an_index_of_files_that_are_gone(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    shutil.copytree(exported, folder)
    saved_again(folder, folder)
    assert not (folder / "model-00001-of-00004.safetensors").exists()
    assert torch.equal(ExportedModel(folder).logits(some_tokens()), ExportedModel(exported).logits(some_tokens()))


@QUIET
def test_half_precision_is_read_as_the_numbers_it_holds(exported: Path, tmp_path: Path) -> None:
    folder = saved_again(exported, tmp_path, dtype=torch.bfloat16)
    tensors, whole = load_tensors(folder), load_tensors(exported)
    assert set(tensors) == set(whole)
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, whole[name].bfloat16().float())
    InitialWeights(folder, MODEL)


# --- a tokenizer that adds tokens ---

BEGIN, END = "<s>", "</s>"


def bracketing_tokenizer(path: Path) -> Path:
    """Bytes, and two more tokens that its post-processor puts around a text."""
    made = Tokenizer(models.BPE(vocab=byte_characters(), merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    made.add_special_tokens([BEGIN, END])
    made.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, 256), (END, 257)]
    )
    made.enable_truncation(2)
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def bracketed(unsplit: UnsplitModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a run whose tokenizer brackets its texts."""
    folder = tmp_path_factory.mktemp("bracketed")
    path = bracketing_tokenizer(folder / "tokenizer.json")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    data = DataSettings(source="huggingface", end_of_text=END, tokenizer_digest=digest)
    return export_of(unsplit, msgspec.structs.replace(MANIFEST, data=data), folder / "out", TextAccess(tokenizer=path))


@QUIET
def test_a_prompt_is_encoded_as_the_texts_in_training(bracketed: Path) -> None:
    from transformers import AutoTokenizer

    data = DataSettings(end_of_text=END)
    trained_on = Tokens(data, MODEL.vocabulary_size, TextAccess(tokenizer=bracketed)).encode(["def "]).tolist()
    assert trained_on == [*b"def ", 257]
    model = ExportedModel(bracketed)
    assert model.tokens_of("def ") == trained_on[:-1]
    assert model.tokens_of("") == [257], "after the end of another text a new one begins"
    assert model.tokens_of(END) == [*END.encode()], "a text that spells out a special token is text"
    assert AutoTokenizer.from_pretrained(bracketed)("def ")["input_ids"] == trained_on[:-1]


@QUIET
def test_the_end_of_a_text_is_known_to_transformers(bracketed: Path, exported: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert json.loads((bracketed / "config.json").read_text())["eos_token_id"] == 257
    model = AutoModelForCausalLM.from_pretrained(bracketed)
    assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (257, 257)
    assert AutoTokenizer.from_pretrained(bracketed).eos_token_id == 257
    assert AutoModelForCausalLM.from_pretrained(exported).generation_config.eos_token_id is None
    assert read_config(bracketed).end_of_text == 257
    assert read_config(exported).end_of_text is None


def test_an_export_without_its_tokenizer_has_no_end_of_text(unsplit: UnsplitModel, tmp_path: Path) -> None:
    data = DataSettings(source="huggingface", end_of_text=END, tokenizer_digest="0" * 64)
    folder = export_of(unsplit, msgspec.structs.replace(MANIFEST, data=data), tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] is None


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
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0}}, SettingsError),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, SettingsError),
        ({"hidden_act": "gelu"}, SettingsError),
        ({"mlp_bias": True}, SettingsError),
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


def test_a_founders_text_is_no_heading_link_or_column_of_the_card() -> None:
    """Names like these do not get through a manifest; the card does not rely on it."""
    data = DataSettings(source="huggingface", dataset="a\n# b|c", tokenizer="[x](http://y)`")
    written = card(msgspec.structs.replace(MANIFEST, data=data), 1)
    assert "huggingface: a\\\\n\\# b\\|c" in written
    assert "tokenizer \\[x\\](http://y)\\`" in written
