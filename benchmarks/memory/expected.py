"""What a stage has to keep in memory, from the manifest alone. Bytes."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.protocol.ids import DRIVER_STAGE
from understudy.protocol.manifest import RunManifest

FACTOR = 1.5
OVERHEAD_BYTES = 600_000_000
"""Python, torch, the libp2p daemon."""
FLOAT_BYTES = 4

HIDDEN_SAVED = 8
"""What autograd keeps per token and layer in widths of the residual stream: the input of each norm and its output, the
rotated query and key, the value, and the mixture of the values that the output projection reads."""
INTERMEDIATE_SAVED = 4
"""And in widths of the feed-forward half: gate, its activation, up, and their product."""
LOGIT_COPIES = 3
"""Logits, their logarithm of the softmax, and its gradient, of the one microbatch whose loss is computed."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Of one stage."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Of all microbatches in flight."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def bound(self) -> int:
        """What a node's peak must not exceed."""
        return round(FACTOR * self.total) + OVERHEAD_BYTES


def expected(manifest: RunManifest, stage: int) -> Expected:
    """Weights, gradients and AdamW's two averages in float32, and the activations of a full window."""
    weights = manifest.model.stage_bytes(stage)
    activations = manifest.window * activation_bytes(manifest, stage) + logit_bytes(manifest, stage)
    return Expected(weights, weights, 2 * weights, activations)


def activation_bytes(manifest: RunManifest, stage: int) -> int:
    """What a stage keeps of one microbatch from its forward pass to its backward pass."""
    model = manifest.model
    tokens = manifest.step.microbatch_size * model.context_length
    if stage == DRIVER_STAGE:
        return FLOAT_BYTES * tokens * model.hidden_size
    layer = HIDDEN_SAVED * model.hidden_size + INTERMEDIATE_SAVED * model.intermediate_size
    ends = 2 * model.hidden_size
    return FLOAT_BYTES * tokens * (model.layers_per_stage * layer + ends)


def logit_bytes(manifest: RunManifest, stage: int) -> int:
    """What the loss takes on S0."""
    model = manifest.model
    tokens = manifest.step.microbatch_size * model.context_length
    return LOGIT_COPIES * FLOAT_BYTES * tokens * model.vocabulary_size if stage == DRIVER_STAGE else 0
