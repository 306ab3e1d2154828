"""An export as Hugging Face's libraries expect it: the small files around the weights.

The stages' tensors carry LlamaForCausalLM's names already (node/compute/model.py), so what is left to write is
the configuration, the index of the shards, the tokenizer and the model card.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from understudy.node.data.access import TextAccess
from understudy.node.data.tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, save_tokenizer
from understudy.node.export.shards import INDEX_FILE
from understudy.node.files.plain_files import require_plain_entries
from understudy.protocol.errors import SettingsError, TextError
from understudy.protocol.manifest import ModelSettings, RunManifest
from understudy.protocol.printable import printable

logger = logging.getLogger(__name__)

CONFIG_FILE, GENERATION_FILE, CARD_FILE = "config.json", "generation_config.json", "README.md"
BYTE_VALUES = 256


ROPE_THETA_IF_UNSAID = 10000.0
"""As in transformers."""


class RopeParameters(msgspec.Struct, frozen=True):
    """Where transformers from 5 on keeps what it knows of rotary positions."""

    rope_theta: float | None = None
    rope_type: str = "default"


class LlamaConfig(msgspec.Struct, frozen=True):
    """What we need of a LlamaForCausalLM's config.json. Everything else in it is left alone."""

    model_type: str
    vocab_size: Annotated[int, Meta(ge=BYTE_VALUES)]
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_hidden_layers: int
    max_position_embeddings: int
    rms_norm_eps: float
    num_key_value_heads: int
    rope_theta: float | None = None
    """transformers up to 4 writes it here, from 5 on into ``rope_parameters``."""
    rope_parameters: RopeParameters | None = None
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    eos_token_id: int | list[int] | None = None

    @property
    def _theta(self) -> float:
        told = self.rope_parameters.rope_theta if self.rope_parameters is not None else None
        return next((theta for theta in (told, self.rope_theta) if theta is not None), ROPE_THETA_IF_UNSAID)

    @property
    def end_of_text(self) -> int | None:
        """The token that ends a text, if there is one."""
        ends = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        return next((end for end in ends if end is not None and 0 <= end < self.vocab_size), None)

    def model_settings(self, block_stages: int | None = None) -> ModelSettings:
        """The model, cut into that many block stages, or one for each layer. Raises `SettingsError`."""
        stages = block_stages or self.num_hidden_layers
        table = {
            "vocabulary_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "attention_heads": self.num_attention_heads,
            "block_stages": stages,
            "layers_per_stage": self.num_hidden_layers // stages,
            "context_length": self.max_position_embeddings,
            "rope_theta": self._theta,
            "norm_epsilon": self.rms_norm_eps,
        }
        if self.model_type != "llama" or self.num_key_value_heads != self.num_attention_heads:
            raise SettingsError("it is not a LLaMA with as many key-value heads as heads")
        if self.tie_word_embeddings:
            raise SettingsError("its embedding and head share their weights, ours do not")
        if self.hidden_act != "silu" or self.attention_bias or self.mlp_bias:
            raise SettingsError("it has biases, or another activation than silu: ours has not")
        is_scaled = self.rope_parameters is not None and self.rope_parameters.rope_type != "default"
        if is_scaled or self.rope_scaling:
            raise SettingsError("its rotary positions are scaled, ours are not")
        try:
            return msgspec.convert(table, ModelSettings)
        except msgspec.ValidationError as error:
            raise SettingsError(f"its configuration does not fit: {error}") from error


def config(settings: ModelSettings, end_of_text: int | None = None) -> dict[str, Any]:
    """config.json of a LlamaForCausalLM. ``rope_theta`` twice: transformers 5 reads the second place."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": settings.vocabulary_size,
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.intermediate_size,
        "num_hidden_layers": settings.block_stages * settings.layers_per_stage,
        "num_attention_heads": settings.attention_heads,
        "num_key_value_heads": settings.attention_heads,
        "head_dim": settings.hidden_size // settings.attention_heads,
        "hidden_act": "silu",
        "max_position_embeddings": settings.context_length,
        "initializer_range": 0.02,
        "rms_norm_eps": settings.norm_epsilon,
        "rope_theta": settings.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": settings.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": end_of_text,
        "pad_token_id": None,
        "dtype": "float32",
        "use_cache": True,
    }


def read_config(folder: Path) -> LlamaConfig:
    """config.json of a folder. Raises `SettingsError`."""
    path = folder / CONFIG_FILE
    try:
        require_plain_entries(folder)
        return msgspec.json.decode(path.read_bytes(), type=LlamaConfig)
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise SettingsError(
            f"{path} cannot be read ({reason}): name a folder that 'understudy export' wrote"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} does not describe one of our models: {error}") from error


def index(files: Mapping[str, str], payload_bytes: int) -> dict[str, Any]:
    """model.safetensors.index.json: which file holds which tensor."""
    return {"metadata": {"total_size": payload_bytes}, "weight_map": dict(sorted(files.items()))}


def byte_characters() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's), by byte value."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(BYTE_VALUES) if value not in printable]
    stand_ins = {value: chr(BYTE_VALUES + position) for position, value in enumerate(hidden)}
    return {stand_ins.get(value, chr(value)): value for value in range(BYTE_VALUES)}


def tokenizer() -> Tokenizer:
    """A token is a byte: ids 0 to 255 are the bytes of the UTF-8 text, as in node/data/corpus.py. Nothing is merged."""
    made = Tokenizer(BPE(vocab=byte_characters(), merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


def tokenizer_config(settings: ModelSettings) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": settings.context_length,
        "clean_up_tokenization_spaces": False,
    }


def card(manifest: RunManifest, step: int) -> str:
    """README.md: where these weights come from, and how to use them."""
    model, data = manifest.model, manifest.data
    source = _cell(": ".join(filter(None, (data.source, data.dataset, data.revision))))
    tokens_are = "a token is a byte, so ids above 255 are unused"
    if data.tokenizer:
        tokens_are = _cell(f"tokenizer {data.tokenizer} {data.tokenizer_revision}")
    tokens = step * manifest.tokens_per_step
    begun = manifest.initial
    start = f"step {begun.step} of `{_cell(begun.run_id)}`" if begun.digests else f"a draw from seed {manifest.seed}"
    return f"""---
library_name: transformers
tags:
- llama
- understudy
---
# {manifest.name}, step {step}

A LLaMA trained by volunteers with Understudy: every stage of the model on another machine, no checkpoints.
These are its weights after one and the same optimizer step, fetched from the peers that trained them.

| | |
|---|---|
| run | `{manifest.run_id()}` |
| manifest digest | `{manifest.digest()}` |
| step | {step} |
| tokens seen | {tokens:,} |
| begun from | {start} |
| text | {source} (digest `{data.digest or "not recorded"}`) |
| layers, width, heads | {model.block_stages * model.layers_per_stage}, {model.hidden_size}, {model.attention_heads} |
| context | {model.context_length} tokens |
| vocabulary | {model.vocabulary_size} rows; {tokens_are} |
| weights | float32 |

The manifest digest names the run's settings: it is part of the join string that its founder gave out.
`export.json` says which peer gave which stage, with the digest of its weights.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIR")
model = AutoModelForCausalLM.from_pretrained("DIR")
inputs = tokenizer("def ", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100, do_sample=True, temperature=0.7)[0]))
```

Without transformers: `understudy generate DIR --prompt "def "`. A run that goes on from here:
`understudy bootstrap ... --initial-weights DIR`.
"""


def _cell(text: str) -> str:
    """A founder's text in a table of Markdown: neither a heading, nor a link, nor another column."""
    return re.sub(r"([\\`*_\[\]<>|#!])", r"\\\1", printable(text))


def write_tokenizer(folder: Path, manifest: RunManifest, access: TextAccess) -> int | None:
    """The run's tokenizer. The token that ends a text, if it has one.

    Raises `SettingsError` or `TextError` if it cannot be had on this machine.
    """
    if manifest.data.source == "huggingface":
        return save_tokenizer(manifest.data, folder, access)
    (folder / TOKENIZER_FILE).write_text(tokenizer().to_str(pretty=True), encoding="utf-8")
    about = json.dumps(tokenizer_config(manifest.model), indent=2)
    (folder / TOKENIZER_CONFIG_FILE).write_text(f"{about}\n", encoding="utf-8")
    return None


def write_small_files(
    folder: Path, manifest: RunManifest, step: int, files: Mapping[str, str], access: TextAccess
) -> None:
    """Everything but the weights. ``files``: which shard holds which tensor. Raises `OSError`.

    A tokenizer that cannot be had here is no reason to lose the weights: it is left out, with a warning.
    """
    model = manifest.model
    total_bytes = sum(model.stage_bytes(stage) for stage in range(manifest.stage_count))
    end_of_text = None
    try:
        end_of_text = write_tokenizer(folder, manifest, access)
    except (SettingsError, TextError) as error:
        logger.warning("the export has no tokenizer: %s", error)
    tables = {
        CONFIG_FILE: config(model, end_of_text),
        GENERATION_FILE: {"eos_token_id": end_of_text},
        INDEX_FILE: index(files, total_bytes),
    }
    for name, table in tables.items():
        (folder / name).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(card(manifest, step), encoding="utf-8")
