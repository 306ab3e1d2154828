"""What int8 loses by how many channels share a scale: why `BLOCK_CHANNELS` and `SCALE_BYTES` are what they are."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
import torch
from torch import Tensor

from benchmarks.convergence.strategies import STRATEGIES
from benchmarks.convergence.trainer import Trainer
from benchmarks.origin import Origin
from benchmarks.page import render
from benchmarks.quantised.wires import there_and_back
from understudy.protocol.manifest import RunManifest

ScaleDtype = Literal["float32", "bfloat16"]
SCALES: dict[ScaleDtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BLOCKS: tuple[int | None, ...] = (16, 32, 64, 128, None)
"""None: the whole row."""
SAMPLED = (1, 20, 60)
"""Iterations whose first microbatch is looked at, with 20 of warming up."""
OUTLIER = 30
HIDDEN = 512


class Loss(msgspec.Struct, frozen=True):
    """Of the numbers' norm, how much the error's is, with one way of scaling."""

    block_channels: int | None
    scale: ScaleDtype
    bytes_per_number: float
    """At hidden size 512."""
    activations: float
    gradients: float
    others: float
    """Of normally distributed rows of 512 with one channel 30 times as large: the other channels."""


class BlockLosses(msgspec.Struct, frozen=True):
    """What each way of scaling loses."""

    losses: tuple[Loss, ...]
    origin: Origin


def measure_blocks(manifest: RunManifest, sampled: Sequence[int] = SAMPLED) -> BlockLosses:
    """Train the model in float32, and quantise what crosses the wire in some of the iterations."""
    torch.set_num_threads(1)
    activations, gradients = _sample(manifest, sampled)
    numbers = torch.randn(4096, HIDDEN, generator=torch.Generator().manual_seed(0))
    numbers[:, 0] *= OUTLIER

    def loss(block: int | None, scale: ScaleDtype) -> Loss:
        def change(tensor: Tensor) -> Tensor:
            return there_and_back(tensor, block or tensor.shape[-1], SCALES[scale])

        return Loss(
            block,
            scale,
            bytes_per_number=round(1 + SCALES[scale].itemsize / (block or HIDDEN), 4),
            activations=_mean(_relative_error(one, change(one)) for one in activations),
            gradients=_mean(_relative_error(one, change(one)) for one in gradients),
            others=_mean([_relative_error(numbers[:, 1:], change(numbers)[:, 1:])]),
        )

    losses = tuple(loss(block, scale) for block in BLOCKS for scale in SCALES)
    return BlockLosses(losses, Origin.here("cpu", "1 thread"))


def _sample(manifest: RunManifest, sampled: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Activations and gradients as they cross the wire."""
    crossed: list[Tensor] = []

    def carry(tensor: Tensor) -> Tensor:
        crossed.append(tensor.detach())
        return tensor

    trainer, hops = Trainer(manifest, STRATEGIES["none"], 0, carry=carry), manifest.model.block_stages + 1
    activations, gradients = [], []
    for step in range(1, max(sampled) + 1):
        crossed.clear()
        trainer.train_step(step)
        if step in sampled:
            activations += crossed[:hops]
            gradients += crossed[hops : 2 * hops]
    return activations, gradients


def _relative_error(numbers: Tensor, came_back: Tensor) -> float:
    return float((came_back - numbers).norm() / numbers.norm())


def _mean(errors: Iterable[float]) -> float:
    """Over tensors: gradients become smaller from stage to stage, and each is to count."""
    return round(statistics.fmean(errors), 5)


def block_table(found: BlockLosses) -> str:
    """Errors in percent by block and scale."""
    header = ["channels per scale", "scale", "bytes per number", "activations", "gradients", "beside an outlier"]
    rows = [
        [
            str(loss.block_channels or "the row"),
            loss.scale,
            f"{loss.bytes_per_number:.3f}",
            *(f"{share:.2%}" for share in (loss.activations, loss.gradients, loss.others)),
        ]
        for loss in found.losses
    ]
    return render(header, rows)
