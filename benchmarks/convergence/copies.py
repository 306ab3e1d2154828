"""Standby copies in the study: what holders have of each block stage, by the swarm's own arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.convergence.strategies import Strategy
from understudy.node.compute.moments import moments_of, read_moments
from understudy.node.compute.stage import StageHost
from understudy.node.compute.standby import difference, follow
from understudy.node.compute.weights import WeightsSnapshot


class Copies:
    """The holders of a run's block stages: images of their weights, now and then their optimizer's state."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self.images: dict[int, list[Tensor]] = {}
        self._moments: dict[int, WeightsSnapshot] = {}

    def take(self, step: int, hosts: Sequence[StageHost]) -> None:
        """Copy every block stage if the step is one after which copies are made."""
        every = self._strategy.standby_every
        if not every or step % every:
            return
        has_moments = step % (every * self._strategy.moments_every) == 0
        for stage, host in enumerate(hosts[1:], start=1):
            self._copy(stage, host)
            if has_moments and self._strategy.moments != "none":
                self._moments[stage] = moments_of(host.module, host.optimizer)

    def _copy(self, stage: int, host: StageHost) -> None:
        weights = [parameter.detach() for parameter in host.module.parameters()]
        image = self.images.get(stage)
        if image is None:
            self.images[stage] = [weight.clone() for weight in weights]
        else:
            self.images[stage] = follow(image, difference(weights, image))

    def restore_moments(self, stage: int, host: StageHost) -> None:
        """Go on with what the holder has of the optimizer's state; without any it stays fresh, and warms up again.

        Of "second" only the mean squares count: the means begin at zero and, as the optimizer is not young, grow to
        their size within tens of updates, which is a warm-up of its own.
        """
        payload = self._moments.get(stage)
        if payload is None:
            return
        moments, optimizer = read_moments(payload, host.module), host.optimizer
        means = moments.means if self._strategy.moments == "both" else list(map(torch.zeros_like, moments.means))
        optimizer.restore(means, moments.mean_squares, moments.age, optimizer.learning_rate_scale)
