"""How large are the numbers of a tensor? Asked of every tensor that comes, so it must cost nearly nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def root_mean_square(tensor: Tensor) -> float:
    """Of all elements, summed in the tensor's own float32; not finite if one of them is not.

    Nor is it of finite numbers beyond about 1e15, whose squares overflow: they are as useless to training. A product
    with itself reads the tensor once; `torch.isfinite` took a hundred times as long (docs/experiments.md).
    """
    flat = tensor.detach().reshape(-1)
    return math.sqrt(float(torch.dot(flat, flat)) / max(1, flat.numel()))
