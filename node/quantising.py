"""Activations and gradients in int8: one byte per number, and one scale per row.

A row is the last dimension, one token's hidden vector of n numbers x. It travels as n + 4 bytes::

    int8 round(x / scale), n times | float32 scale = max |x| / 127        little-endian, as all that travels

and comes back as int8 x scale: every number within half a scale of what it was. Rounding is to the nearest, ties to
even, so the same row comes back the same everywhere. It stays one tensor: (..., n) becomes (..., n + 4).

A row that holds NaN or Inf comes back as NaN throughout, and so does one under a scale that nobody sends (negative,
Inf, NaN): a stage skips an update with NaN in it (node/optimizer.py), which it could not if it got plausible numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from understudy.protocol.messages import SCALE_BYTES

LEVELS = 127
"""Of each sign. There is no -128, so a gradient and its negative are rounded alike."""
SCALE_MIN = torch.finfo(torch.float32).tiny
"""Below it float32 loses digits, and its inverse may overflow: such rows, of numbers below 1.5e-36, travel as zeros."""


def quantised(tensor: Tensor) -> Tensor:
    """Rows of numbers (..., n) -> rows of bytes (..., n + 4), int8, on the same device. Contiguous."""
    numbers = tensor.detach().to(torch.float32)
    scales = numbers.abs().amax(-1, keepdim=True) / LEVELS
    scales.masked_fill_(scales < SCALE_MIN, 0.0)
    scales.masked_fill_(scales.isinf(), math.nan)
    levels = (numbers * scales.reciprocal()).round_()  # any at all under a scale of 0 or NaN: they come to 0 and NaN
    size = (*numbers.shape[:-1], numbers.shape[-1] + SCALE_BYTES)
    rows = torch.empty(size, dtype=torch.int8, device=numbers.device)
    rows[..., :-SCALE_BYTES] = levels
    rows[..., -SCALE_BYTES:] = scales.view(torch.int8)
    return rows


def restored(rows: Tensor) -> Tensor:
    """The inverse of `quantised`: (..., n + 4) -> float32 (..., n), on the same device, in memory of its own."""
    # Cloned, because a scale may lie at any byte: float32 has to be aligned.
    scales = rows[..., -SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    scales.masked_fill_((scales < 0) | scales.isinf(), math.nan)
    return rows[..., :-SCALE_BYTES].to(torch.float32).mul_(scales)
