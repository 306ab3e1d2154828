"""The parts of a stage that travel on their own: all of it, or what S0's neighbours keep copies of."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.node.compute.model import EMBEDDING_NAMES, HEAD_NAMES, blank_stage
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


def check_part(specs: Sequence[TensorSpec], part: Part, model: ModelSettings, stage: int) -> None:
    """Refuse specs that do not describe this part of a stage that we are about to build, or of S0 if it is a copy.

    Raises `WeightsError` naming the first that differs. Nothing is built for it that takes memory.
    """
    is_whole = part in ("stage", "initial")
    check_specs(specs, blank_stage(model, stage if is_whole else DRIVER_STAGE), PART_NAMES[part])
