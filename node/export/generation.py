"""Text from an export, with the project's own model code.

No cache of keys and values: every token computes the window again. That is slow for long contexts and
simple; whoever wants speed loads the export with transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from understudy.node.compute.model import BlockStage, EdgeStage
from understudy.node.compute.weights import check_specs
from understudy.node.data.tokenizer import TOKENIZER_FILE, encode_plain, parse_tokenizer
from understudy.node.export.hugging_face import read_config
from understudy.node.export.shards import load_tensors, ordered_stage
from understudy.protocol.errors import SettingsError, WeightsError

HALF_CHARACTER = "\ufffd"
"""What a decoder puts where the bytes of a character are not complete yet."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What to write."""

    tokens: int = 200
    temperature: float = 0.8
    """Zero: always the likeliest byte."""
    seed: int = 0


class ExportedModel:
    """All stages of an export, in one process."""

    def __init__(self, folder: Path) -> None:
        """Raises `SettingsError`, `StorageError` or `WeightsError`, each saying what is wrong with the folder."""
        config = read_config(folder)
        self.settings = config.model_settings()
        self._end_of_text = config.end_of_text
        with torch.device("meta"):
            self._edge = EdgeStage(self.settings)
            self._blocks = [BlockStage(self.settings, stage) for stage in range(1, self.settings.block_stages + 1)]
        self.tensors = load_tensors(folder)
        """By the names that LlamaForCausalLM gives them."""
        modules: list[nn.Module] = [self._edge, *self._blocks]
        for stage, module in enumerate(modules):
            weights = ordered_stage(self.tensors, self.settings, stage, folder)
            check_specs(weights.specs, module)
            names = [spec.name for spec in weights.specs]
            module.load_state_dict(dict(zip(names, weights.tensors, strict=True)), assign=True)
        self._tokenizer = read_tokenizer(folder)
        highest = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self._token_count = min(highest + 1, self.settings.vocabulary_size)

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> Tensor:
        """int64 (batch, context) -> float32 (batch, context, vocabulary)."""
        hidden = self._edge.embed(tokens)
        for block in self._blocks:
            hidden = block(hidden)
        return self._edge.logits(hidden)

    def write(self, prompt: str, wish: Wish) -> Iterator[str]:
        """The continuation, piece by piece. The same wish gives the same text, on the same machine."""
        generator = torch.Generator().manual_seed(wish.seed)
        tokens = self.tokens_of(prompt)
        written = len(self._decode(tokens))
        for _ in range(wish.tokens):
            window = torch.tensor([tokens[-self.settings.context_length :]])
            # The rows that no token uses were never trained.
            token = choose(self.logits(window)[0, -1, : self._token_count], wish.temperature, generator)
            tokens.append(token)
            text = self._decode(tokens)
            if not text.endswith(HALF_CHARACTER):
                yield text[written:]
                written = len(text)
        yield self._decode(tokens)[written:]

    def tokens_of(self, prompt: str) -> list[int]:
        """At least one: a text without a prompt follows the end of another, or of a line."""
        beginning = [self._end_of_text] if self._end_of_text is not None else encode_plain(self._tokenizer, "\n")
        return encode_plain(self._tokenizer, prompt) or beginning or [0]

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text


def read_tokenizer(folder: Path) -> Tokenizer:
    """The export's tokenizer. Raises `SettingsError`."""
    path = folder / TOKENIZER_FILE
    try:
        tokenizer: Tokenizer = parse_tokenizer(path.read_bytes())
        return tokenizer
    except Exception as error:
        raise SettingsError(f"{path} is not a tokenizer: copy the one of the run there ({error})") from error


def use_threads(count: int) -> None:
    """Arithmetic threads of this process."""
    torch.set_num_threads(count)


def choose(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """One of the tokens, at random by their probabilities at this temperature, however low or high.

    Raises `WeightsError` if there are none. The likeliest token counts as 0 and all others as less, so that nothing
    overflows but to minus infinity.
    """
    if not logits.isfinite().all():
        raise WeightsError("the model computes numbers that are not finite: its weights are damaged")
    if temperature == 0:
        return int(logits.argmax())
    below = logits.double() - logits.double().max()
    return int(torch.multinomial((below / temperature).softmax(dim=-1), 1, generator=generator))
