"""The parts of a stage that travel on their own: all of it, or what S0's neighbours keep copies of."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.node.compute.model import EMBEDDING_NAMES, HEAD_NAMES, BlockStage, EdgeStage, blank_stage
from understudy.node.compute.weights import check_specs
from understudy.protocol.ids import DRIVER_STAGE
from understudy.protocol.manifest import ModelSettings
from understudy.protocol.wire.fields import Part
from understudy.protocol.wire.tensors import TensorSpec

PART_NAMES: dict[Part, tuple[str, ...]] = {
    "stage": (),
    "embedding": EMBEDDING_NAMES,
    "head": HEAD_NAMES,
    "initial": (),
}
"""The parameters of each part; none named means all of them."""


SPEC_BYTES = 160
"""Of a tensor in a fetch header, without its name: a digest of 64, dtype, shape, and room for a longer layer number."""


def header_bytes_max(part: Part, model: ModelSettings, stage: int) -> int:
    """How long the header of a fetch of this part can be. Raises `LocalProtocolError` for a stage that is none."""
    module = _blank(part, model, stage)
    names = PART_NAMES[part] or [name for name, _ in module.named_parameters()]
    return SPEC_BYTES + sum(SPEC_BYTES + len(name) for name in names)


def _blank(part: Part, model: ModelSettings, stage: int) -> BlockStage | EdgeStage:
    return blank_stage(model, stage if part in ("stage", "initial") else DRIVER_STAGE)


def check_part(specs: Sequence[TensorSpec], part: Part, model: ModelSettings, stage: int) -> None:
    """Refuse specs that do not describe this part of a stage that we are about to build, or of S0 if it is a copy.

    Raises `WeightsError` naming the first that differs. Nothing is built for it that takes memory.
    """
    check_specs(specs, _blank(part, model, stage), PART_NAMES[part])
