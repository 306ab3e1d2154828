"""How tensors are described on the wire: those behind a message, and those of a stage's weights."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from understudy.protocol.manifest import WireDtype
from understudy.protocol.wire.fields import VISIBLE

TENSOR_DIMENSIONS_MAX = 8
WeightsDtype = Literal["float32", "bfloat16"]
"""Of weights: they are never quantised, so what a recovery rebuilds is the formula's."""
DTYPE_BYTES: dict[WireDtype, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
BLOCK_CHANNELS = 32
"""Consecutive numbers of an int8 row that share a scale; a row's last block may be shorter."""
SCALE_BYTES = 2
"""Of a block: the bfloat16 that its numbers are multiples of."""


def quantised_bytes(width: int) -> int:
    """Of an int8 row of ``width`` numbers: one for each, and a scale for each block."""
    return width + SCALE_BYTES * -(-width // BLOCK_CHANNELS)


class TensorHeader(msgspec.Struct, frozen=True, array_like=True):
    """Describes the raw little-endian bytes that follow a message.

    ``shape`` is that of the numbers: of int8, each row of the last dimension has its scales besides (`row_bytes`).
    """

    dtype: WireDtype
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**32)], ...], Meta(max_length=TENSOR_DIMENSIONS_MAX)]

    @property
    def row_bytes(self) -> int:
        """Of the last dimension, as it travels."""
        width = self.shape[-1] if self.shape else 1
        return quantised_bytes(width) if self.dtype == "int8" else DTYPE_BYTES[self.dtype] * width


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of a donation, in order. ``digest`` is the hex SHA-256 of its raw bytes."""

    # SHA-256 and not BLAKE2b: 1715 against 890 MiB/s on a core with SHA instructions (AMD EPYC, OpenSSL 3).
    name: Annotated[str, Meta(min_length=1, max_length=256, pattern=VISIBLE)]
    dtype: WeightsDtype
    shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=1 << 32)], ...], Meta(max_length=4)]
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]

    @property
    def payload_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]
