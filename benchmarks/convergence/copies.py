"""Standby copies in the study: what holders have of each block stage, by the swarm's own arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.convergence.strategies import Strategy
from understudy.node.compute.optimizer import StageOptimizer
from understudy.node.compute.stage import StageHost
from understudy.node.compute.standby import difference, follow


@dataclass(slots=True)
class Moments:
    """An optimizer's state as it travels: bfloat16."""

    means: list[Tensor]
    mean_squares: list[Tensor]
    age: int


class Copies:
    """The holders of a run's block stages: images of their weights, now and then their optimizer's state."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self.images: dict[int, list[Tensor]] = {}
        self._moments: dict[int, Moments] = {}

    def take(self, step: int, hosts: Sequence[StageHost]) -> None:
        """Copy every block stage if the step is one after which copies are made."""
        every = self._strategy.standby_every
        if not every or step % every:
            return
        has_moments = step % (every * self._strategy.moments_every) == 0
        for stage, host in enumerate(hosts[1:], start=1):
            self._copy(stage, host)
            if has_moments and self._strategy.moments != "none":
                self._copy_moments(stage, host.optimizer)

    def _copy(self, stage: int, host: StageHost) -> None:
        weights = [parameter.detach() for parameter in host.module.parameters()]
        image = self.images.get(stage)
        if image is None:
            self.images[stage] = [weight.clone() for weight in weights]
        else:
            self.images[stage] = follow(image, difference(weights, image))

    def _copy_moments(self, stage: int, optimizer: StageOptimizer) -> None:
        def packed(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.to(torch.bfloat16) for tensor in tensors]

        self._moments[stage] = Moments(packed(optimizer.means), packed(optimizer.mean_squares), optimizer.age)

    def restore_moments(self, stage: int, optimizer: StageOptimizer) -> None:
        """Go on with what the holder has of the optimizer's state; without any it stays fresh, and warms up again.

        Of "second" only the mean squares count: the means begin at zero and, as the optimizer is not young, grow to
        their size within tens of updates, which is a warm-up of its own.
        """
        moments = self._moments.get(stage)
        if moments is None:
            return
        for own, kept in zip(optimizer.mean_squares, moments.mean_squares, strict=True):
            own.copy_(kept)
        if self._strategy.moments == "both":
            for own, kept in zip(optimizer.means, moments.means, strict=True):
                own.copy_(kept)
        optimizer.age = moments.age
        for count in optimizer.counts:
            count.fill_(moments.age)
