"""AdamW for one stage's parameters: mean, measure, clip, update.

The order matters to recovery: the squared gradient norm that becomes a blending coefficient is
that of the mean gradient *before* clipping (measured after it, two clipped neighbours would
always weigh the same).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.manifest import OptimizerSettings


class StageOptimizer:
    """Applies one step at a time to the parameters of a stage. Weight decay covers all of them.

    A recovered stage gets a new optimizer with the run's ``learning_rate_scale``; since the scale
    always multiplies the manifest's rate, recovering twice does not compound it. With ``decay_steps``
    the scale goes back to one, in a straight line over as many updates.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        settings: OptimizerSettings,
        learning_rate_scale: float = 1.0,
        decay_steps: int = 0,
    ) -> None:
        self.learning_rate_scale = learning_rate_scale
        self.decay_steps = decay_steps
        self.age = 0
        """Updates so far."""
        self._settings = settings
        self._parameters = list(parameters)
        self.means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self.mean_squares = [torch.zeros_like(parameter) for parameter in self._parameters]
        self.counts = [torch.zeros((), device=parameter.device) for parameter in self._parameters]

    def restore(
        self, means: Sequence[Tensor], mean_squares: Sequence[Tensor], age: int, learning_rate_scale: float
    ) -> None:
        """Go on where another optimizer of these parameters stood: its moments, in order, age and scale.

        They are copied. A warm-up that is over does not come again, and a decaying scale goes on as if never lost.
        """
        for own, given in zip((*self.means, *self.mean_squares), (*means, *mean_squares), strict=True):
            own.copy_(given)
        for count in self.counts:
            count.fill_(age)
        self.age, self.learning_rate_scale = age, learning_rate_scale

    def learning_rate(self, step: int) -> float:
        """The rate of a step of the run, counted from 1: linear warm-up, then constant.

        A fresh optimizer warms up again, whatever the run's step: AdamW's first updates move every weight by
        the full rate, and after a recovery the loss jumped from 3.1 to 4.3 for a step (docs/experiments.md).
        """
        if step < 1:
            raise LocalProtocolError(f"steps count from 1, not {step}")
        full = self._settings.learning_rate * self._scale()
        age = min(step, self.age + 1)
        if age >= self._settings.warmup_steps:
            return full
        return full * age / self._settings.warmup_steps

    def _scale(self) -> float:
        """Of the next update."""
        if not self.decay_steps:
            return self.learning_rate_scale
        left = max(0.0, 1.0 - (self.age + 1) / self.decay_steps)
        return 1.0 + (self.learning_rate_scale - 1.0) * left

    def apply(self, step: int, counted: int | Sequence[int]) -> float | None:
        """Update the parameters from ``.grad``, the sum over ``counted`` microbatches, and drop the gradients.

        ``counted`` may differ from parameter to parameter; one number is meant for all. Returns the squared L2 norm
        of the mean gradient, in float64, before clipping. If it is not finite nothing was updated, and the caller
        should say so. Returns None, and updates nothing, when nothing was counted. A parameter without a
        gradient, or that counted nothing, has a gradient of zero.
        """
        counts = [counted] * len(self._parameters) if isinstance(counted, int) else list(counted)
        if min(counts) < 0:
            raise LocalProtocolError(f"a stage cannot have counted {min(counts)} microbatches")
        if max(counts) == 0:
            self.drop_gradients()
            return None
        rate = self.learning_rate(step)
        gradients = self._mean_gradients(counts)
        squared_norm = squared_l2_norm(gradients)
        if math.isfinite(squared_norm):
            self._clip(gradients, math.sqrt(squared_norm))
            self._update(gradients, rate)
        self.drop_gradients()
        return squared_norm

    def drop_gradients(self) -> None:
        """Forget what was accumulated, and its memory."""
        for parameter in self._parameters:
            parameter.grad = None

    def _update(self, gradients: list[Tensor], rate: float) -> None:
        """One AdamW update, by torch's functional form and its fused kernel.

        The optimizer classes import torch's compiler when the first of them is made: 2 s of CPU, which a
        spare would pay while the swarm waits for it. Milliseconds per update of the presets' stages on
        one core of an AMD EPYC, torch 2.13, loop / foreach / fused: tiny 0.83 / 0.43 / 0.16,
        124m 29.5 / 39.7 / 11.1.
        """
        self.age += 1
        with torch.no_grad():
            adamw(
                [parameter.detach() for parameter in self._parameters],
                gradients,
                self.means,
                self.mean_squares,
                [],
                self.counts,
                fused=True,
                amsgrad=False,
                beta1=self._settings.beta1,
                beta2=self._settings.beta2,
                lr=rate,
                weight_decay=self._settings.weight_decay,
                eps=self._settings.epsilon,
                maximize=False,
            )

    def _mean_gradients(self, counts: Sequence[int]) -> list[Tensor]:
        """Turn the sums into means, in place."""
        gradients = []
        for parameter, counted in zip(self._parameters, counts, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad.div_(max(1, counted)))
        return gradients

    def _clip(self, gradients: list[Tensor], norm: float) -> None:
        """Scale the gradients in place so that their joint norm is at most ``clip_norm``."""
        if norm > self._settings.clip_norm:
            for gradient in gradients:
                gradient.mul_(self._settings.clip_norm / norm)


def squared_l2_norm(tensors: Iterable[Tensor]) -> float:
    """The sum of the squares of all elements, summed in float64: finite unless an element is not."""
    norms = [torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64) for tensor in tensors]
    return float(torch.stack(norms).square().sum())
