"""What happens to an activation or a gradient between two stages, in the runs that are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.convergence.trainer import Carry, as_it_is
from benchmarks.quantised.results import NOISE, WireName
from understudy.node.compute.quantisation import LEVELS, SCALE_MIN
from understudy.protocol.manifest import WireDtype

DTYPES: dict[WireName, WireDtype] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "int8": "int8",
    "int8-row": "float32",
    "noise": "float32",
}
"""What the stages send. The last two are made from it on the way: nothing in the swarm sends them."""


def carry_of(wire: WireName, seed: int) -> Carry:
    """What a wire adds to its dtype."""
    match wire:
        case "int8-row":
            return by_row
        case "noise":
            return _noise(seed)
        case _:
            return as_it_is


def by_row(numbers: Tensor) -> Tensor:
    """There and back in int8 with one float32 scale for each row, as it was before blocks had theirs."""
    return there_and_back(numbers, numbers.shape[-1], torch.float32)


def there_and_back(numbers: Tensor, block_channels: int, scale: torch.dtype) -> Tensor:
    """float32 in and out, and between them int8 with a scale for so many channels of a row."""
    return torch.cat([_block(block, scale) for block in torch.split(numbers, block_channels, -1)], -1)


def _block(numbers: Tensor, scale: torch.dtype) -> Tensor:
    scales = (numbers.abs().amax(-1, keepdim=True) / LEVELS).clamp_min_(SCALE_MIN).to(scale).to(torch.float32)
    return (numbers * scales.reciprocal()).round_().mul_(scales)


def _noise(seed: int) -> Carry:
    """Errors that are nobody's rounding: each number times 1 + 0.002 z, where z is drawn from a normal distribution."""
    generator = torch.Generator().manual_seed(seed)

    def carry(numbers: Tensor) -> Tensor:
        return numbers * torch.randn(numbers.shape, generator=generator).mul_(NOISE).add_(1.0)

    return carry
