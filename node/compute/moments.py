"""The state of a stage's optimizer as a thing to send: its moments in bfloat16, its age and the scale of its rate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from understudy.node.compute.optimizer import StageOptimizer
from understudy.node.compute.parts import AGE_AND_SCALE, mean_name, mean_square_name, tensors_of
from understudy.node.compute.weights import WeightsSnapshot, check_tensors, described, require_finite
from understudy.protocol.errors import WeightsError
from understudy.protocol.jobs import Payload
from understudy.protocol.wire.fields import Part

AGE_MAX = 2**53
"""Updates; beyond it not every whole number is a float."""
SCALE_MAX = 100.0
"""As in a manifest (protocol/manifest.py)."""


@dataclass(frozen=True, slots=True)
class Moments:
    """What a `StageOptimizer` goes on with."""

    means: tuple[Tensor, ...]
    mean_squares: tuple[Tensor, ...]
    age: int
    learning_rate_scale: float


def moments_of(module: nn.Module, optimizer: StageOptimizer) -> WeightsSnapshot:
    """Mean and mean square of each parameter in order, in bfloat16, then age and scale, in float32, all on the CPU.

    A float32 holds every age up to 2^24, more than a run may have updates.
    """
    tensors: dict[str, Tensor] = {}
    names = [name for name, _ in module.named_parameters()]
    for name, mean, mean_square in zip(names, optimizer.means, optimizer.mean_squares, strict=True):
        tensors[mean_name(name)] = mean.to(device="cpu", dtype=torch.bfloat16)
        tensors[mean_square_name(name)] = mean_square.to(device="cpu", dtype=torch.bfloat16)
    tensors[AGE_AND_SCALE] = torch.tensor([optimizer.age, optimizer.learning_rate_scale], dtype=torch.float32)
    return described(tensors)


def read_moments(payload: WeightsSnapshot, module: nn.Module) -> Moments:
    """What `moments_of` made of a stage like this module. Raises `WeightsError` if no optimizer can go on with it."""
    check_tensors(payload.specs, tensors_of("moments", module))
    for spec, tensor in zip(payload.specs, payload.tensors, strict=True):
        require_finite(tensor, spec.name)
    means, mean_squares = payload.tensors[:-1:2], payload.tensors[1:-1:2]
    if any(bool((mean_square < 0).any()) for mean_square in mean_squares):
        raise WeightsError("a mean of squares is negative: these moments are unusable")
    age, scale = payload.tensors[-1].tolist()
    if not (age.is_integer() and 0 <= age <= AGE_MAX and 0 < scale <= SCALE_MAX):
        raise WeightsError(f"no optimizer has done {age:g} updates, or has a rate scaled by {scale:g}")
    return Moments(means, mean_squares, int(age), scale)


def moments_among(parts: Iterable[tuple[Part, Payload]], module: nn.Module) -> Moments | None:
    """Those that came with the parts of a stage, if any did. Raises like `read_moments`."""
    found = (read_moments(payload, module) for part, payload in parts if part == "moments")
    return next(found, None)
