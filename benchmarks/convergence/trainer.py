"""A whole run in one process, from the code that the swarm runs.

Every stage is a `StageHost` (node/compute/stage.py), which gets the jobs that its node's core would give it;
microbatches take the routes of protocol/routing.py; a lost stage comes back by the ladder of
protocol/recovery/ladder.py. Nothing is on a wire, so 1,000 iterations of a small model take
minutes. As in the paper, stages are lost between iterations only.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import torch

from benchmarks.convergence.copies import Copies
from benchmarks.convergence.improvements import DECAY_ITERATIONS, Memory, blend_moments, probe
from benchmarks.convergence.strategies import Strategy
from understudy.node.compute.model import BlockStage, EdgeStage, blank_stage, build_stage
from understudy.node.compute.stage import StageHost
from understudy.node.compute.weights import WeightsSnapshot, described, snapshot
from understudy.node.data.sources import open_data
from understudy.protocol.ids import DRIVER_STAGE, Attempt, Microbatch, PeerId
from understudy.protocol.jobs import ApplyJob, BackwardJob, BlendJob, ForwardJob, InitialiseJob, LossJob, SnapshotJob
from understudy.protocol.manifest import RunManifest
from understudy.protocol.recovery.case import GrantedDonations, Plan, RecoveryCase
from understudy.protocol.recovery.ladder import plan_recovery
from understudy.protocol.routing import neighbours, route
from understudy.protocol.wire.messages import Donation

ATTEMPT = Attempt(1, 1)
VALIDATION_MICROBATCHES = 8
VALIDATION_STRIDE = 61
"""From one held-out microbatch to the next: together they come from all over the text, not from one file."""
REDRAW_SEEDS = 1000
"""Beyond the seeds of any study."""
Carry = Callable[[torch.Tensor], torch.Tensor]
"""What becomes of an activation or a gradient between two stages."""
ANEW = Plan("random", "drawn anew", 0, coefficients=(1.0,))


def as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@dataclass(frozen=True, slots=True)
class Recovery:
    """One stage that was lost and came back."""

    step: int
    """The last step that was committed before the loss."""
    stage: int
    method: str
    donors: tuple[int, ...]
    coefficients: tuple[float, ...]
    squared_norms: tuple[float | None, ...]
    """Of the donors' last gradients, before clipping."""


class Trainer:
    """Trains one model under one strategy; between two stages, ``carry`` does what a wire would."""

    def __init__(
        self, manifest: RunManifest, strategy: Strategy, seed: int, device: str = "cpu", carry: Carry = as_it_is
    ) -> None:
        self.manifest = msgspec.structs.replace(strategy.applied_to(manifest), seed=seed)
        self.strategy = strategy
        self.recoveries: list[Recovery] = []
        self.hosts = [StageHost(self.manifest, device) for _ in range(self.manifest.stage_count)]
        self._device = device
        self._carry = carry
        self._data = open_data(self.manifest)
        self._norms: list[float | None] = [None] * len(self.hosts)
        self._incarnations = [1] * len(self.hosts)
        self._missing: set[int] = set()
        self._copies = Copies(strategy)
        self._memories = [Memory(self.manifest.step.microbatches) for _ in self.hosts]
        for stage, host in enumerate(self.hosts):
            host.work(InitialiseJob(stage, 1))

    # --- training ---

    def train_step(self, step: int) -> float:
        """One optimizer update of the whole model; the mean loss of its microbatches before it."""
        count = self.manifest.step.microbatches
        losses = [self._train_microbatch(Microbatch(step, index)) for index in range(count)]
        self._norms = [host.work(ApplyJob(step, count, count)).squared_gradient_norm for host in self.hosts]
        self._copies.take(step, self.hosts)
        return statistics.fmean(losses)

    def _train_microbatch(self, microbatch: Microbatch) -> float:
        edge, path = self.hosts[DRIVER_STAGE], self._route(microbatch.index)
        activation = self._carry(edge.work(ForwardJob(microbatch, ATTEMPT)))
        for stage in path:
            source = activation
            activation = self._carry(self.hosts[stage].work(ForwardJob(microbatch, ATTEMPT, source)))
            if self.strategy.improvement == "regression":
                self._memories[stage].remember(source, activation)
        loss, gradient = edge.work(LossJob(microbatch, ATTEMPT, activation, is_counted=True))
        for stage in reversed(path):
            job = BackwardJob(microbatch, ATTEMPT, self._carry(gradient), is_counted=True)
            gradient = self.hosts[stage].work(job)
        edge.work(BackwardJob(microbatch, ATTEMPT, self._carry(gradient), is_counted=True))
        return float(loss)

    def _route(self, index: int) -> tuple[int, ...]:
        return route(self.manifest.recovery.method, self.manifest.model.block_stages, index)

    def validation_loss(self) -> float:
        """Mean loss in nats per token over held-out microbatches from all over the text, stages in order, in fp32."""
        batches = (self._data.validation(number * VALIDATION_STRIDE) for number in range(VALIDATION_MICROBATCHES))
        return statistics.fmean(self.loss_of(tokens, labels) for tokens, labels in batches)

    @torch.no_grad()
    def loss_of(self, tokens: torch.Tensor, labels: torch.Tensor) -> float:
        """The loss of one batch, both int64 (batch, context), with the weights as they stand."""
        edge, *blocks = (host.module for host in self.hosts)
        assert isinstance(edge, EdgeStage)
        hidden = edge.embed(tokens.to(self._device))
        for block in blocks:
            hidden = block(hidden)
        return float(edge.loss(hidden, labels.to(self._device)))

    # --- losing stages ---

    def lose(self, stages: Sequence[int], step: int) -> None:
        """These stages vanish after ``step`` was committed, and come back as the strategy says."""
        survivors = [other for other in range(len(self.hosts)) if other not in stages]
        self._missing = set(stages)
        for stage in stages:
            self.hosts[stage].release()
            for near in neighbours(self.manifest.recovery.method, self.manifest.model.block_stages, stage):
                self._memories[near].forget()
        for stage in stages:
            self._incarnations[stage] += 1
            self._recover(stage, survivors, step)
            self._missing.remove(stage)

    def _recover(self, stage: int, survivors: Sequence[int], step: int) -> None:
        if stage in self._copies.images:
            self._restore(stage, step)
        else:
            self._rebuild_from(stage, survivors, step)

    def _restore(self, stage: int, step: int) -> None:
        """From its own copy: its weights of some steps before, at the run's rate."""
        names = [name for name, _ in blank_stage(self.manifest.model, stage).named_parameters()]
        copy = described(dict(zip(names, self._copies.images[stage], strict=True)))
        self.hosts[stage].work(InitialiseJob(stage, self._incarnations[stage], parts=(("stage", copy),)))
        self._copies.restore_moments(stage, self.hosts[stage])
        self.recoveries.append(Recovery(step, stage, "standby", (stage,), (1.0,), ()))

    def _rebuild_from(self, stage: int, survivors: Sequence[int], step: int) -> None:
        copies = {donor: self._snapshot(donor, step) for donor in self.strategy.donors_of(stage, survivors)}
        witnesses = tuple(self._witness(donor, copy, step) for donor, copy in copies.items())
        case = RecoveryCase(stage, self.manifest.model.block_stages, witnesses, self.manifest.recovery)
        plan, _ = plan_recovery(case) if copies else (ANEW, 0)
        if self.strategy.improvement == "probe":
            plan = self._probe(stage, plan, copies, step)
        self._rebuild(stage, plan, copies)
        self._improve(stage, plan)
        donors = tuple(source.stage for source in plan.sources)
        norms = tuple(self._norms[donor] for donor in donors)
        self.recoveries.append(Recovery(step, stage, plan.method, donors, plan.coefficients, norms))

    def _snapshot(self, stage: int, step: int) -> WeightsSnapshot:
        """A donor's weights, copied as the donor's node would."""
        host = self.hosts[stage]
        _, digest = host.work(SnapshotJob(step))
        copy = host.shelf.snapshots[digest]
        host.shelf.snapshots.clear()
        assert isinstance(copy, WeightsSnapshot)
        return copy

    def _witness(self, stage: int, copy: WeightsSnapshot, step: int) -> GrantedDonations:
        norm = self.strategy.offered_norm(self._norms[stage], self.manifest.optimizer.clip_norm)
        donation = Donation("stage", stage, step, norm, copy.payload_bytes, copy.digest)
        return GrantedDonations(stage, PeerId(f"S{stage}"), step, (donation,))

    def _rebuild(self, stage: int, plan: Plan, copies: dict[int, WeightsSnapshot]) -> None:
        payloads = [copies[source.stage] for source in plan.sources] or [self._drawn_anew(stage)]
        scale = self.manifest.recovery.learning_rate_scale
        job = BlendJob(stage, self._incarnations[stage], tuple(payloads), plan.coefficients, scale)
        reason = self.hosts[stage].work(job)
        if reason is not None:
            raise RuntimeError(f"S{stage} could not be rebuilt: {reason}")
        if not self.strategy.warms_up_again:
            self.hosts[stage].optimizer.age = self.manifest.optimizer.warmup_steps

    def _drawn_anew(self, stage: int) -> WeightsSnapshot:
        """Weights that no stage of the run ever had."""
        seed = self.manifest.seed + REDRAW_SEEDS * self._incarnations[stage]
        return snapshot(build_stage(self.manifest.model, stage, seed))

    # --- beyond the paper ---

    def _probe(self, stage: int, plan: Plan, copies: dict[int, WeightsSnapshot], step: int) -> Plan:
        """The plan with the coefficients that do best on a microbatch of the last step, if only this stage is lost."""
        if len(plan.sources) < 2 or self._missing != {stage}:
            return plan
        tokens, labels = self._data.microbatch(step, 0)

        def loss_with(coefficients: tuple[float, ...]) -> float:
            self._rebuild(stage, replace(plan, coefficients=coefficients), copies)
            return self.loss_of(tokens, labels)

        return replace(plan, coefficients=probe(plan.coefficients, loss_with))

    def _improve(self, stage: int, plan: Plan) -> None:
        host = self.hosts[stage]
        match self.strategy.improvement:
            case "moments":
                donors = [self.hosts[source.stage].optimizer for source in plan.sources]
                blend_moments(host.optimizer, donors, plan.coefficients)
            case "regression":
                assert isinstance(host.module, BlockStage)
                self._memories[stage].regress(host.module, self.manifest.optimizer, torch.device(self._device))
            case "decay":
                host.optimizer.decay_steps = DECAY_ITERATIONS
