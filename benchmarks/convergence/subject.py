"""What a result is of: the settings that decide what a trainer computes, and no others.

Results are kept for years, and manifests come and go with versions: a setting that was dropped since, or added, makes
a loss of then no other loss.
"""

from __future__ import annotations

from typing import Self

import msgspec

from understudy.protocol.manifest import ModelSettings, OptimizerSettings, RunManifest


class Method(msgspec.Struct, frozen=True):
    """How a lost stage is rebuilt."""

    method: str
    swapped_pairs: str
    norm_exponent: int
    learning_rate_scale: float


class Batch(msgspec.Struct, frozen=True):
    """What one update is of."""

    microbatches: int
    microbatch_size: int


class Text(msgspec.Struct, frozen=True):
    """What is learned."""

    source: str
    validation_fraction: float


class Wire(msgspec.Struct, frozen=True):
    """How tensors travel between stages."""

    dtype: str


class Subject(msgspec.Struct, frozen=True):
    """A model and how it is trained. Reads any manifest of old: what it does not know it leaves out."""

    name: str
    seed: int
    model: ModelSettings
    data: Text
    optimizer: OptimizerSettings
    recovery: Method
    step: Batch
    wire: Wire

    @classmethod
    def of(cls, manifest: RunManifest) -> Self:
        """Of a run."""
        return msgspec.convert(msgspec.to_builtins(manifest), cls)
