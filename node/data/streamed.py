"""Microbatches of a text that does not fit into one machine: data.source = "huggingface".

What a microbatch holds is a pure function of (seed, step, index), as for the other sources, and a new driver finds
it without tokenizing everything before it:

    step -> texts     every step takes the same number of texts, so the number of its first one is a product
    texts -> tokens   the step's texts, less those held out, tokenized, each ended, one after the other
    tokens -> windows as many as the step has rows, at equal distances, shifted by a draw from (seed, step)

How many texts a step takes follows from the mean length of the first ones, so that the windows use most of the
tokens once: where the texts of a step are longer than usual there are gaps between the windows, where they are
shorter the windows overlap. In memory are the tokens of two steps, the current one and the one that is read ahead.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from concurrent.futures import Future
from itertools import accumulate
from typing import NamedTuple, TypeVar

import msgspec

from understudy.node.data.access import TextAccess
from understudy.node.data.hf_dataset import open_dataset
from understudy.node.data.prefetch import ReadAhead
from understudy.node.data.texts import Texts
from understudy.node.data.tokenizer import TokenIds, Tokens
from understudy.node.data.training_data import TokensAndLabels, consecutive_windows, windows
from understudy.protocol.errors import LocalProtocolError, SettingsError, TextError
from understudy.protocol.manifest import RunManifest

logger = logging.getLogger(__name__)

SAMPLE_TEXTS = 256
"""The first texts: the digest covers them."""
SAMPLE_CHARACTERS = 1 << 18
"""So many characters of them are tokenized: their mean length says how many texts a step takes."""
VALIDATION_TEXTS = 4096
"""Texts looked at for what is held out."""
STEP_TEXTS_MAX = 1 << 20
"""Texts that a step may take before the dataset is called empty."""
READ_ATTEMPTS = 3
RETRY_AFTER_S = 5.0

_DRAW_BYTES = 8

T = TypeVar("T")


class _Sample(NamedTuple):
    """What the files and the first texts say of all."""

    digest: str
    texts_per_step: int


class StreamedBatches:
    """Microbatches of a run: any order, any process, the same answer; in order of steps it is fast."""

    def __init__(self, manifest: RunManifest, access: TextAccess, reading: ReadAhead) -> None:
        """Open the dataset and read its first texts.

        Raises `SettingsError` with what to change, `TextError` if the text is out of reach.
        """
        self._manifest, self._data, self._access = manifest, manifest.data, access
        self._context = manifest.model.context_length
        self._rows = manifest.step.microbatch_size
        self._reading = reading
        self._step_read: tuple[int, TokenIds] | None = None
        self._ahead: tuple[int, Future[TokenIds]] | None = None
        self._validation: TokenIds | None = None
        try:
            self._tokens, self._texts, self._sample = self._read(self._open)
        except BaseException:
            self._reading.close()
            raise

    @property
    def digest(self) -> str:
        """Hex SHA-256 over the settings of the text, the tokenizer's file, the number of shards and the first texts."""
        return self._sample.digest

    @property
    def tokenizer_digest(self) -> str:
        """SHA-256 of the tokenizer's file."""
        return self._tokens.digest

    @property
    def has_validation(self) -> bool:
        """Whether enough is held out for `validation`."""
        return len(self._held_out()) > self._context

    def microbatch(self, step: int, index: int) -> TokensAndLabels:
        """Tokens and labels, both int64 of (microbatch_size, context_length); labels[b, t] follows tokens[b, t].

        May wait for the text of the step; the next step's is then read ahead. Raises `TextError` if reading fails.
        """
        if step < 0 or not 0 <= index < self._manifest.step.microbatches:
            raise LocalProtocolError(f"there is no microbatch (step {step}, index {index})")
        tokens = self._of_step(step)
        count = self._manifest.step.microbatches * self._rows
        draw = int.from_bytes(self._draw(f"windows/{step}"), "little")
        span, scale = len(tokens) - self._context, 1 << (8 * _DRAW_BYTES)
        numbers = range(index * self._rows, (index + 1) * self._rows)
        return windows(tokens, self._context, [(number * scale + draw) * span // (count * scale) for number in numbers])

    def prepare(self, step: int) -> None:
        """Read the text of a step and of the next. Raises `TextError` if reading fails."""
        self._of_step(step)
        if self._ahead is not None:
            self._reading.result(self._ahead[1])

    def validation(self, index: int) -> TokensAndLabels:
        """Held-out tokens and labels, shaped as by `microbatch`: consecutive windows, over and over.

        Raises `SettingsError` if too little is held out.
        """
        if index < 0:
            raise LocalProtocolError(f"there is no validation microbatch {index}")
        if not self.has_validation:
            raise SettingsError(
                f"{len(self._held_out())} tokens are held out, a window of model.context_length = {self._context} "
                f"needs {self._context + 1}: raise data.validation_fraction or name a data.validation_split"
            )
        return consecutive_windows(self._held_out(), self._context, range(self._rows * index, self._rows * (index + 1)))

    def close(self) -> None:
        """Close files and end the reading thread."""
        self._reading.close(self._texts.close)

    # --- on the thread that asks ---

    def _of_step(self, step: int) -> TokenIds:
        """The tokens of a step, which were perhaps read ahead; starts reading the next step's."""
        if self._step_read is None or self._step_read[0] != step:
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0] == step:
                self._step_read = step, self._reading.result(ahead[1])
            else:
                self._step_read = step, self._read(lambda: self._gather(step))
            self._ahead = step + 1, self._reading.start(lambda: self._gather(step + 1))
        return self._step_read[1]

    def _held_out(self) -> TokenIds:
        if self._validation is None:
            self._validation = self._read(self._gather_held_out)
        return self._validation

    def _read(self, read: Callable[[], T]) -> T:
        return self._reading.result(self._reading.start(read))

    def _draw(self, purpose: str) -> bytes:
        return hashlib.shake_128(f"{purpose}/{self._manifest.seed}".encode()).digest(_DRAW_BYTES)

    # --- on the reading thread ---

    def _open(self) -> tuple[Tokens, Texts, _Sample]:
        tokens = Tokens(self._data, self._manifest.model.vocabulary_size, self._access)
        texts = self._open_split(self._data.split)
        return tokens, texts, self._take_sample(tokens, texts)

    def _open_split(self, split: str) -> Texts:
        dataset = open_dataset(self._data, split, self._access)
        return Texts(dataset, lambda shard: (self._draw(f"shards/{shard}"), shard), self._reading.progress)

    def _take_sample(self, tokens: Tokens, texts: Texts) -> _Sample:
        first = texts.read_first(SAMPLE_TEXTS)
        before = [0, *accumulate(len(text) for text in first)]
        measured = [text for text, characters in zip(first, before, strict=False) if characters < SAMPLE_CHARACTERS]
        token_count = len(tokens.encode(self._to_train(measured)))
        if not token_count:
            flaw = f": {texts.first_flaw}" if texts.first_flaw else ""
            raise SettingsError(
                f"data.dataset: no text to train on among the first {len(measured)} of {texts.name}{flaw}"
            )
        settings = msgspec.structs.replace(self._data, digest="", tokenizer_digest="")
        described = [msgspec.to_builtins(settings), tokens.digest, texts.order, first]
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode("ascii")).hexdigest()
        return _Sample(digest, max(1, round(self._manifest.tokens_per_step * len(measured) / token_count)))

    def _gather(self, step: int) -> TokenIds:
        """The tokens of a step, at least one window."""
        count = self._sample.texts_per_step
        number = step * count
        while True:
            texts = self._insist(lambda: self._texts.read(number, count))  # noqa: B023 - called at once
            tokens = self._tokens.encode(self._to_train(texts))
            if len(tokens) > self._context:
                return tokens
            count *= 2
            if count > STEP_TEXTS_MAX:
                raise TextError(f"{self._texts.name}: not one window in {count // 2} texts from number {number} on")

    def _gather_held_out(self) -> TokenIds:
        if not self._data.validation_split:
            texts = self._insist(lambda: self._texts.read_first(VALIDATION_TEXTS))
            return self._tokens.encode([text for text in texts if text and self._is_held_out(text)])
        held_out = self._open_split(self._data.validation_split)
        try:
            return self._tokens.encode(self._insist(lambda: held_out.read_first(VALIDATION_TEXTS)))
        finally:
            held_out.close()

    def _insist(self, read: Callable[[], list[str]]) -> list[str]:
        """Try again if reading fails. Raises `TextError` when it fails for the last time."""
        for _ in range(READ_ATTEMPTS - 1):
            try:
                return read()
            except TextError as error:
                self._reading.pause(RETRY_AFTER_S)
                logger.warning("%s; trying again", error)
        return read()

    # --- what is held out ---

    def _to_train(self, texts: list[str]) -> list[str]:
        return [text for text in texts if text and not self._is_held_out(text)]

    def _is_held_out(self, text: str) -> bool:
        """By its own words, so that a text that comes twice is on one side."""
        if self._data.validation_split:
            return False
        draw = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_DRAW_BYTES], "little")
        return draw < int(self._data.validation_fraction * 2 ** (8 * _DRAW_BYTES))
