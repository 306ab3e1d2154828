"""The image of a stage: what a holder has of it, kept up to date by differences.

After the first full copy only differences travel, in bfloat16, against what the holder *has*. The owner keeps that
image as well, and both add the same numbers in float32: they agree to the bit, and what one difference lost by
rounding is in the next, so errors do not add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from understudy.node.compute.weights import WeightsSnapshot, described
from understudy.protocol.errors import WeightsError


@torch.no_grad()
def difference(weights: Sequence[Tensor], image: Sequence[Tensor]) -> list[Tensor]:
    """What an image lacks: bfloat16 tensors of the weights' shapes, on the image's device.

    A weight that moved by d is followed up to d / 256; its image is right to the bit only where nothing moved.
    """
    return [
        (weight.detach().to(seen.device) - seen).to(torch.bfloat16) for weight, seen in zip(weights, image, strict=True)
    ]


@torch.no_grad()
def follow(image: Sequence[Tensor], differences: Sequence[Tensor]) -> list[Tensor]:
    """The next image, in memory of its own: ``image + float32(difference)``, one rounding for each number."""
    return [seen + lacking.to(torch.float32) for seen, lacking in zip(image, differences, strict=True)]


def followed(base: WeightsSnapshot, lacking: WeightsSnapshot) -> WeightsSnapshot:
    """The image that a difference leads to from ``base``, described anew: its digest says whether it is the right one.

    Raises `WeightsError` if the difference is to an image of other tensors.
    """
    if [(spec.name, spec.shape) for spec in base.specs] != [(spec.name, spec.shape) for spec in lacking.specs]:
        raise WeightsError("a difference came to other weights than we have")
    return described(
        {spec.name: tensor for spec, tensor in zip(base.specs, follow(base.tensors, lacking.tensors), strict=True)}
    )
