"""The parts of a stage that travel on their own: all of its weights, those of one end of S0, its optimizer's state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from understudy.node.compute.model import EMBEDDING_NAMES, HEAD_NAMES, BlockStage, EdgeStage, blank_stage
from understudy.node.compute.weights import check_tensors, selected
from understudy.protocol.ids import DRIVER_STAGE
from understudy.protocol.manifest import ModelSettings
from understudy.protocol.wire.fields import Part
from understudy.protocol.wire.tensors import TensorSpec

PART_NAMES: dict[Part, tuple[str, ...]] = {
    "stage": (),
    "embedding": EMBEDDING_NAMES,
    "head": HEAD_NAMES,
    "initial": (),
    "moments": (),
}
"""The parameters that each part is of; none named means all of them."""

AGE_AND_SCALE = "age_and_scale"
"""The last tensor of the moments: float32, the optimizer's updates so far and the scale of its rate."""

SPEC_BYTES = 160
"""Of a tensor in a fetch header, without its name: a digest of 64, dtype, shape, and room for a longer layer number."""
HEADER_BYTES = SPEC_BYTES + 128
"""Of a fetch header without its tensors: the digest that a difference is to is at most 128 long."""


def mean_name(name: str) -> str:
    """Of a parameter's first moment."""
    return f"mean.{name}"


def mean_square_name(name: str) -> str:
    """Of a parameter's second moment."""
    return f"mean_square.{name}"


def tensors_of(part: Part, module: nn.Module, *, is_difference: bool = False) -> list[tuple[str, Tensor]]:
    """Names, dtypes and shapes of what a donation of this part holds, in order, on torch's meta device.

    A difference has the part's parameters in bfloat16; there is none of moments.
    """
    parameters = [(name, parameter.detach().to("meta")) for name, parameter in selected(module, PART_NAMES[part])]
    if part == "moments":
        names = [(kind(name), shaped) for name, shaped in parameters for kind in (mean_name, mean_square_name)]
        return [*_narrow(names), (AGE_AND_SCALE, torch.empty(2, dtype=torch.float32, device="meta"))]
    return _narrow(parameters) if is_difference else parameters


def _narrow(tensors: Sequence[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    return [(name, tensor.to(torch.bfloat16)) for name, tensor in tensors]


def header_bytes_max(part: Part, model: ModelSettings, stage: int) -> int:
    """How long the header of a fetch of this part can be. Raises `LocalProtocolError` for a stage that is none."""
    return HEADER_BYTES + sum(SPEC_BYTES + len(name) for name, _ in tensors_of(part, _blank(part, model, stage)))


def _blank(part: Part, model: ModelSettings, stage: int) -> BlockStage | EdgeStage:
    return blank_stage(model, DRIVER_STAGE if part in ("embedding", "head") else stage)


def check_part(
    specs: Sequence[TensorSpec], part: Part, model: ModelSettings, stage: int, *, is_difference: bool = False
) -> None:
    """Refuse specs that do not describe this part of a stage, or of S0 if it is one of its ends, or a difference to it.

    Raises `WeightsError` naming the first that differs. Nothing is built for it that takes memory.
    """
    check_tensors(specs, tensors_of(part, _blank(part, model, stage), is_difference=is_difference))
