"""How short a step can be when every byte has to cross links of a given bandwidth.

In a swarm with the block stages S1..Sn a microbatch makes 2(n + 1) hops: S0, S1, ..., Sn, S0 with its activation, and
back with its gradient. Every stage therefore sends two tensors for each microbatch, and receives two.
"""

from __future__ import annotations

from understudy.protocol.manifest import RunManifest
from understudy.protocol.wire.frames import tensor_bytes
from understudy.protocol.wire.tensors import TensorHeader


def activation_bytes(manifest: RunManifest) -> int:
    """Of one microbatch's activation, and of its gradient, on the wire."""
    model, step = manifest.model, manifest.step
    shape = (step.microbatch_size, model.context_length, model.hidden_size)
    return tensor_bytes(TensorHeader(manifest.wire.dtype, shape))


def bytes_per_step(manifest: RunManifest) -> int:
    """What the busiest direction of a link carries: one stage's activations and gradients, without any header."""
    return 2 * manifest.step.microbatches * activation_bytes(manifest)


def plain_bound_s(manifest: RunManifest, compute_s: float, bytes_per_s: float) -> float:
    """max(compute, bytes / bandwidth): as if compute and transfer were always both under way.

    ``compute_s``: the step where links are no limit.
    """
    return max(compute_s, bytes_per_step(manifest) / bytes_per_s)


def fill_hops(block_stages: int) -> int:
    """For how many transfers of one tensor the busiest link must wait, before its first and after its last.

    A step begins when the last gradient of the one before is home. Sn cannot send before an activation has made n hops
    to it; the last it sends is a gradient, which has n - 1 more hops to S0 than the one that Sn's own link makes.
    """
    return 2 * block_stages - 1


def filled_bound_s(manifest: RunManifest, compute_s: float, bytes_per_s: float, delay_s: float = 0.0) -> float:
    """No schedule that ends one step before it begins the next can be faster.

    The busiest link carries its bytes, and stands idle while the pipeline fills and drains. The time of computing
    during these hops is left out, so this is still a bound from below. ``delay_s``: one way, of each hop: n before
    Sn's link sends anything, and behind the last that it sends its own and n - 1 more. No step is shorter than the
    way of one microbatch, whose 2(n + 1) hops follow each other.
    """
    stages, tensor_s = manifest.model.block_stages, activation_bytes(manifest) / bytes_per_s
    link_s = bytes_per_step(manifest) / bytes_per_s + fill_hops(stages) * tensor_s + 2 * stages * delay_s
    way_s = 2 * (stages + 1) * (tensor_s + delay_s)
    return max(compute_s, link_s, way_s)
