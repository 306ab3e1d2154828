"""What the compute thread does, one job at a time. Its results come back as `events.JobDone`.

Payloads (tensors, snapshots) are opaque to the protocol: it passes them on and never looks inside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from understudy.protocol.ids import Attempt, Microbatch, Tenure
from understudy.protocol.wire.fields import Part

Payload = Any
"""A tensor to the node, a symbol to the simulator, nothing at all to the protocol."""


class Priority(IntEnum):
    """Lower runs first: what frees memory and unblocks others goes before what fills them."""

    APPLY = 0
    SNAPSHOT = 1
    BACKWARD = 2
    LOSS = 3
    FORWARD = 4
    COPY = 5


@dataclass(frozen=True, slots=True)
class ForwardJob:
    """Run the stage on an activation (S0: embed the tokens of the microbatch). Result: activation."""

    microbatch: Microbatch
    attempt: Attempt
    payload: Payload = None
    origin: Tenure | None = field(default=None, compare=False)
    """Who sent the payload; of each of the three jobs that get one."""


@dataclass(frozen=True, slots=True)
class LossJob:
    """S0: norm, head and loss on the last stage's activation. Result: (loss, gradient)."""

    microbatch: Microbatch
    attempt: Attempt
    payload: Payload
    is_counted: bool
    origin: Tenure | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class BackwardJob:
    """Back-propagate a gradient. Result: gradient for the previous stage (None on S0).

    ``is_counted`` False: compute the input's gradient only and leave the stage's sum alone.
    """

    microbatch: Microbatch
    attempt: Attempt
    payload: Payload
    is_counted: bool
    origin: Tenure | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ApplyJob:
    """Apply the mean gradient over ``counted`` microbatches. Result: `Applied`."""

    step: int
    counted: int
    head_counted: int = 0
    """S0: the microbatches in the sum of norm and head; ``counted`` are those in the embedding's."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of an update."""

    squared_gradient_norm: float | None = None
    """Of the mean gradient, before clipping; None if nothing was counted or it is not finite."""
    is_skipped: bool = False
    """The gradient is not finite, or nothing that came in was: the weights stayed as they were."""
    is_own: bool = False
    """Finite numbers came in and others went out, so it is this stage that spoils them."""
    left_out: int = 0
    """Microbatches that are not in the sum, because what came in was not finite."""


@dataclass(frozen=True, slots=True)
class SnapshotJob:
    """Copy the weights as they are for a claimant; the shell keeps the copy. Result: (payload_bytes, digest)."""

    step: int


@dataclass(frozen=True, slots=True)
class ImageJob:
    """Bring the images up to date that holders have of these parts, all at one moment; the shell keeps the new ones.

    An image of weights follows what they are by differences in bfloat16 (node/compute/standby.py), unless there is
    none yet. Result: (payload_bytes, digest) of each part.
    """

    step: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class LeaseJob:
    """Copy the weights for exporters; they are as they were after ``step``. No digests yet. Result: nothing."""

    step: int


@dataclass(frozen=True, slots=True)
class DigestJob:
    """Compute the digest of the held copy's next tensor. Result: None; after the last (payload_bytes, digest)."""

    step: int


@dataclass(frozen=True, slots=True)
class InitialiseJob:
    """Build the stage from the run's seed, and load the parts of which there are copies; with ``moments`` its optimizer
    goes on with the state, the age and the rate's scale that these hold."""

    stage: int
    incarnation: int
    learning_rate_scale: float = 1.0
    parts: tuple[tuple[Part, Payload], ...] = ()


@dataclass(frozen=True, slots=True)
class BlendJob:
    """Build the stage from donors' weights: the sum of coefficient times weights, in this order."""

    stage: int
    incarnation: int
    payloads: tuple[Payload, ...]
    coefficients: tuple[float, ...]
    learning_rate_scale: float


MicrobatchJob = ForwardJob | LossJob | BackwardJob
CopyingJob = SnapshotJob | ImageJob | LeaseJob | DigestJob
Job = MicrobatchJob | ApplyJob | CopyingJob | InitialiseJob | BlendJob
