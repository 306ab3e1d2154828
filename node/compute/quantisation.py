"""Activations and gradients in int8: one byte per number, and one scale per block of 32 of them.

A row is the last dimension, one token's hidden vector of n numbers x. It travels as ::

    int8 round(x / scale), n times | bfloat16 scale = max |x| / 127, of each block in turn        little-endian, as all

and comes back as int8 x scale: every number within half a scale of what it was. Rounding is to the nearest, ties to
even, so the same row comes back the same everywhere. It stays one tensor: (..., n) becomes (..., `quantised_bytes(n)`).
A block is 32 consecutive numbers of a row, the last one what is left. A channel that is much larger than the others
takes the digits of its own block only.

A block that holds NaN or Inf comes back as NaN throughout, and so does one under a scale that nobody sends (negative,
Inf, NaN): a stage skips an update with NaN in it (node/compute/optimizer.py), which it could not if it got plausible
numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from understudy.protocol.wire.tensors import BLOCK_CHANNELS, SCALE_BYTES

LEVELS = 127
"""Of each sign. There is no -128, so a gradient and its negative are rounded alike.

bfloat16 rounds a scale down by less than 1/257 of it, so the largest number comes to less than 127.5 scales: to 127.
"""
SCALE_MIN = torch.finfo(torch.float32).tiny
"""Below it floats lose digits, and its inverse may overflow: such blocks, of numbers below 1.5e-36, travel as zeros."""


def quantised(tensor: Tensor) -> Tensor:
    """Rows of numbers (..., n) -> rows of bytes (..., `quantised_bytes(n)`), int8, on the same device. Contiguous."""
    numbers = tensor.detach().to(torch.float32)
    *rows, width = numbers.shape
    lacking = -width % BLOCK_CHANNELS
    blocks = pad(numbers, (0, lacking)) if lacking else numbers
    blocks = blocks.view(*rows, (width + lacking) // BLOCK_CHANNELS, BLOCK_CHANNELS)
    scales = blocks.abs().amax(-1) / LEVELS
    scales.masked_fill_(scales < SCALE_MIN, 0.0)
    scales.masked_fill_(scales.isinf(), math.nan)
    scales = scales.to(torch.bfloat16)
    inverse = scales.to(torch.float32).reciprocal_()
    levels = (blocks * inverse.unsqueeze(-1)).round_()  # any at all under a scale of 0 or NaN: they come to 0 and NaN
    sent = torch.empty((*rows, width + SCALE_BYTES * scales.shape[-1]), dtype=torch.int8, device=numbers.device)
    sent[..., :width] = levels.flatten(-2)[..., :width]
    sent[..., width:] = scales.view(torch.int8)
    return sent


def restored(rows: Tensor) -> Tensor:
    """The inverse of `quantised`, on the same device: float32 (..., n), contiguous, in memory of its own."""
    *outer, row_bytes = rows.shape
    width = width_of(row_bytes)
    # Cloned, because a scale may lie at any byte: bfloat16 has to be aligned.
    scales = rows[..., width:].clone(memory_format=torch.contiguous_format).view(torch.bfloat16).to(torch.float32)
    scales.masked_fill_((scales < 0) | scales.isinf(), math.nan)
    numbers = rows[..., :width].to(torch.float32)
    whole = width // BLOCK_CHANNELS
    split = whole * BLOCK_CHANNELS
    numbers[..., :split].view(*outer, whole, BLOCK_CHANNELS).mul_(scales[..., :whole].unsqueeze(-1))
    numbers[..., split:].mul_(scales[..., whole:])
    return numbers


def width_of(row_bytes: int) -> int:
    """How many numbers a row of so many bytes holds: the inverse of `quantised_bytes`."""
    blocks = -(-row_bytes // (BLOCK_CHANNELS + SCALE_BYTES))
    return row_bytes - SCALE_BYTES * blocks
