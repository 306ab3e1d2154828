"""What S0 trains on, whatever the source: microbatches, and how they are cut out of a row of tokens.

Only the peer on S0 reads data. What a microbatch holds is a pure function of (seed, step, index): a
re-issued microbatch, or a new peer on S0 with the same text, gets the same tokens. The digest says
whether it is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

TokensAndLabels = tuple[torch.Tensor, torch.Tensor]


class TrainingData(Protocol):
    """What S0 trains on, from whatever source."""

    @property
    def digest(self) -> str:
        """Equal digests, equal microbatches."""

    @property
    def tokenizer_digest(self) -> str:
        """Of the tokenizer's file; empty if there is none."""

    @property
    def has_validation(self) -> bool:
        """Whether enough is held out for `validation`."""

    def microbatch(self, step: int, index: int) -> TokensAndLabels:
        """Tokens and labels, both int64 of (microbatch_size, context_length): a pure function. Raises `TextError`."""

    def prepare(self, step: int) -> None:
        """Read the text of a step and of the next, as far as it is not read yet. Raises `TextError`."""

    def validation(self, index: int) -> TokensAndLabels:
        """Held-out tokens and labels, shaped as by `microbatch`. Raises `SettingsError` if too little is held out."""

    def close(self) -> None:
        """Let go of files and threads."""


def windows(source: npt.NDArray[Any], context_length: int, offsets: Sequence[int]) -> TokensAndLabels:
    """Cut windows out of a row of tokens: tokens from each offset on, and the labels that follow them."""
    rows = np.stack([source[offset : offset + context_length + 1] for offset in offsets])
    cut = torch.from_numpy(rows).to(torch.int64)
    return cut[:, :-1].contiguous(), cut[:, 1:].contiguous()


def consecutive_windows(source: npt.NDArray[Any], context_length: int, numbers: range) -> TokensAndLabels:
    """Windows one behind the other, by number; behind the last comes the first again."""
    count = (len(source) - 1) // context_length
    return windows(source, context_length, [number % count * context_length for number in numbers])
