"""Four ideas beyond the paper, tried on a stage that was just blended. docs/results.md says which of them won.

Each takes only what a swarm would have at that moment: the neighbours' optimizer state, one microbatch, and the
activations that went into and came out of the lost stage, which its neighbours computed or received.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import torch
from torch import Tensor

from understudy.node.compute.model import BlockStage
from understudy.node.compute.optimizer import StageOptimizer
from understudy.node.compute.tensors import from_wire
from understudy.node.compute.weights import blend
from understudy.protocol.manifest import OptimizerSettings

PROBE_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the lower neighbour: tried beside the formula's."""
REGRESSION_STEPS = 4
"""Of how many committed steps the neighbours still hold activations."""
REGRESSION_UPDATES = 40
REGRESSION_RATE = 1e-3
DECAY_ITERATIONS = 100


def blend_moments(optimizer: StageOptimizer, donors: Sequence[StageOptimizer], coefficients: Sequence[float]) -> None:
    """Begin with the neighbours' Adam moments, weighted like their weights, at the age of the younger one.

    Such an optimizer is not young, so it does not warm up again.
    """
    for own, theirs in (
        (optimizer.means, [donor.means for donor in donors]),
        (optimizer.mean_squares, [donor.mean_squares for donor in donors]),
    ):
        for state, blended in zip(own, blend(theirs, coefficients), strict=True):
            state.copy_(blended)
    optimizer.age = min(donor.age for donor in donors)
    for count in optimizer.counts:
        count.fill_(optimizer.age)


def probe(formula: Sequence[float], loss_with: Callable[[tuple[float, ...]], float]) -> tuple[float, ...]:
    """Of the formula's coefficients and a few others those with the least loss on one microbatch."""
    candidates = [tuple(formula), *((share, 1.0 - share) for share in PROBE_SHARES)]
    return min(candidates, key=loss_with)


class Memory:
    """What went into a stage and came out of it in the last steps, as its neighbours would hold it.

    The stage before keeps what it sent, the one behind what it received; today's nodes drop both at the commit.
    Tensors are those of the wire: (batch, context, hidden).
    """

    def __init__(self, microbatches: int) -> None:
        self._pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=REGRESSION_STEPS * microbatches)

    def remember(self, source: Tensor, output: Tensor) -> None:
        self._pairs.append((source.detach(), output.detach()))

    def forget(self) -> None:
        """A neighbour is gone, and with it one half of every pair."""
        self._pairs.clear()

    def regress(self, module: BlockStage, settings: OptimizerSettings, device: torch.device) -> None:
        """Fit the stage to what it used to do: mean squared error relative to what the stage changed."""
        fitting = msgspec.structs.replace(settings, learning_rate=REGRESSION_RATE, warmup_steps=5)
        optimizer = StageOptimizer(list(module.parameters()), fitting)
        for update in range(1, REGRESSION_UPDATES + 1 if self._pairs else 1):
            source, output = (from_wire(tensor, device) for tensor in self._pairs[update % len(self._pairs)])
            error = (module(source) - output).square().mean() / (output - source).square().mean()
            error.backward()
            optimizer.apply(update, 1)
