"""The stage this node holds, and the jobs the compute thread does on it.

Only the compute thread calls `StageHost.work`, one job at a time in the core's order. Gradients sum
up in ``.grad``; a job that is not counted computes the input's gradient and leaves the sums alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from understudy.node.compute.magnitude import root_mean_square
from understudy.node.compute.model import HEAD_NAMES, BlockStage, EdgeStage, blank_stage, build_stage
from understudy.node.compute.moments import moments_among
from understudy.node.compute.optimizer import StageOptimizer
from understudy.node.compute.parts import PART_NAMES
from understudy.node.compute.precision import arithmetic
from understudy.node.compute.shelf import Shelf
from understudy.node.compute.suspicion import Suspicion
from understudy.node.compute.tensors import from_wire, rooted, to_wire
from understudy.node.compute.weights import adopt, blend
from understudy.node.data.access import NO_ACCESS, TextAccess
from understudy.node.data.data_check import DriverText
from understudy.node.data.training_data import TrainingData
from understudy.protocol.actions import Discard, Keep, ReleaseCopy, ReleaseLease, ReleaseSnapshot
from understudy.protocol.errors import LocalProtocolError, WeightsError
from understudy.protocol.ids import Attempt, Microbatch
from understudy.protocol.jobs import (
    Applied,
    ApplyJob,
    BackwardJob,
    BlendJob,
    DigestJob,
    ForwardJob,
    ImageJob,
    InitialiseJob,
    Job,
    LeaseJob,
    LossJob,
    SnapshotJob,
)
from understudy.protocol.manifest import RunManifest

Key = tuple[Microbatch, Attempt]


@dataclass(slots=True)
class Saved:
    """What a backward pass needs of its forward pass."""

    source: Tensor | None
    """The leaf whose gradient goes to the previous stage; None on S0."""
    output: Tensor
    labels: Tensor | None = None
    is_finite: bool = True
    """What came with the forward pass, if anything did."""


class StageHost:
    """Weights, optimizer and saved activations of at most one stage."""

    def __init__(self, manifest: RunManifest, device: str, access: TextAccess = NO_ACCESS) -> None:
        self._manifest = manifest
        self._device = torch.device(device)
        self._module: BlockStage | EdgeStage | None = None
        self._optimizer: StageOptimizer | None = None
        self.text = DriverText(manifest, access)
        self._batches: TrainingData | None = None
        self._saved: dict[Key, Saved] = {}
        self._suspicion: Suspicion | None = None
        """Since the last update that was skipped, or lacked a microbatch."""
        self._left_out = self._head_left_out = 0
        """Microbatches of this step that are not in the sum, as what came in was not finite; S0: also in the head's."""
        self.came: float | None = None
        """The root mean square of what came with the last job; None: nothing did."""
        self.shelf = Shelf()

    # --- jobs ---

    def work(self, job: Job) -> Any:
        """Do a job; see protocol/jobs.py for what each returns."""
        self.came = None
        match job:
            case ForwardJob():
                return self._forward(job)
            case LossJob():
                return self._loss(job)
            case BackwardJob():
                return self._backward(job)
            case ApplyJob():
                return self._apply(job)
            case SnapshotJob() | ImageJob() | LeaseJob() | DigestJob():
                return self._shelve(job)
            case InitialiseJob() | BlendJob():
                return self._build(job)

    def discard(self, discard: Discard) -> None:
        """Free what an outdated attempt left."""
        self._saved.pop((discard.microbatch, discard.attempt), None)

    def keep(self, keep: Keep) -> None:
        """Hold a copy of another's stage, to serve it in turn."""
        self.shelf.kept[keep.digest] = keep.payload

    def release_copy(self, release: ReleaseCopy) -> None:
        self.shelf.kept.pop(release.digest, None)

    def release_snapshot(self, release: ReleaseSnapshot) -> None:
        self.shelf.release_snapshot(release.digest)

    def release_lease(self, release: ReleaseLease) -> None:
        self.shelf.release_lease(release.step)

    def release(self) -> None:
        """Forget the stage, and not the copies of others' that we keep."""
        self._module = self._optimizer = self._batches = None
        self.text.release()
        self._saved.clear()
        self.shelf.release()

    def close(self) -> None:
        """From any thread: let go of the text. A job that waits for it fails."""
        self.text.close()

    # --- building ---

    def _install(self, module: BlockStage | EdgeStage, learning_rate_scale: float) -> None:
        self._saved.clear()
        self._suspicion = None
        self._left_out = self._head_left_out = 0
        if isinstance(module, EdgeStage):
            self._batches = self.text.open()
        self._module = module.to(self._device)
        self._optimizer = StageOptimizer(
            list(self._module.parameters()),
            self._manifest.optimizer,
            learning_rate_scale,
            self._manifest.recovery.learning_rate_decay_steps,
        )

    def _build(self, job: InitialiseJob | BlendJob) -> str | None:
        """Build the stage from the seed or from donors' weights; the reason, if these cannot be used."""
        try:
            module = self._blended(job) if isinstance(job, BlendJob) else self._initialised(job)
            moments = moments_among(job.parts, module) if isinstance(job, InitialiseJob) else None
        except WeightsError as error:
            return str(error)
        self._install(module, job.learning_rate_scale)
        if moments is not None:
            self.optimizer.restore(moments.means, moments.mean_squares, moments.age, moments.learning_rate_scale)
        return None

    def _blended(self, job: BlendJob) -> BlockStage | EdgeStage:
        """No weight is drawn that the blend replaces: for 200 MB that takes longer than the blend."""
        module = blank_stage(self._manifest.model, job.stage)
        adopt(module, blend([donor.tensors for donor in job.payloads], job.coefficients))
        return module

    def _initialised(self, job: InitialiseJob) -> BlockStage | EdgeStage:
        """From the copies; what there is no copy of is drawn from the seed."""
        module = blank_stage(self._manifest.model, job.stage)
        names = {name for name, _ in module.named_parameters()}
        parts = [(part, copy) for part, copy in job.parts if part != "moments"]
        covered = {name for part, _ in parts for name in PART_NAMES[part] or names}
        if covered != names:
            module = build_stage(self._manifest.model, job.stage, self._manifest.seed)
        for part, copy in parts:
            adopt(module, [tensor.clone() for tensor in copy.tensors], PART_NAMES[part])
        return module

    def _shelve(self, job: SnapshotJob | ImageJob | LeaseJob | DigestJob) -> Any:
        match job:
            case SnapshotJob():
                return self.shelf.add_snapshot(self.module)
            case ImageJob(_, parts):
                return self.shelf.renew_images(parts, self.module, self.optimizer)
            case LeaseJob(step):
                return self.shelf.lease(step, self.module)
            case DigestJob(step):
                return self.shelf.digest_next(step)

    # --- microbatches ---

    def _forward(self, job: ForwardJob) -> Tensor:
        module = self.module
        if isinstance(module, EdgeStage):
            saved = self._embed(module, job.microbatch)
        else:
            source = from_wire(job.payload, self._device)
            is_finite = self._weigh(source)
            source.requires_grad_()
            with arithmetic(self._manifest, self._device):
                saved = Saved(source, module(source), is_finite=is_finite)
        self._suspect(saved.source, saved.output)
        self._saved[job.microbatch, job.attempt] = saved
        return to_wire(saved.output, self._manifest.wire.dtype)

    def _embed(self, module: EdgeStage, microbatch: Microbatch) -> Saved:
        if self._batches is None:
            raise LocalProtocolError("S0 holds no data")
        tokens, labels = self._batches.microbatch(microbatch.step, microbatch.index)
        return Saved(None, module.embed(tokens.to(self._device)), labels.to(self._device))

    def _loss(self, job: LossJob) -> tuple[float, Tensor]:
        module = self.module
        saved = self._saved.get((job.microbatch, job.attempt))
        if not isinstance(module, EdgeStage) or saved is None or saved.labels is None:
            raise LocalProtocolError(f"no labels for {job.microbatch}")
        hidden = from_wire(job.payload, self._device)
        is_finite = self._weigh(hidden)
        hidden.requires_grad_()
        with arithmetic(self._manifest, self._device):
            loss = module.loss(hidden, saved.labels)
        self._head_left_out += job.is_counted and not is_finite
        gradient = _input_gradient(loss, hidden, None, is_counted=job.is_counted and is_finite)
        self._suspect(hidden, loss)
        self._suspect(hidden, gradient)
        return loss.item(), to_wire(gradient, self._manifest.wire.dtype)

    def _backward(self, job: BackwardJob) -> Tensor | None:
        saved = self._saved.pop((job.microbatch, job.attempt), None)
        if saved is None:
            raise LocalProtocolError(f"no saved activation for {job.microbatch} attempt {job.attempt}")
        gradient = from_wire(job.payload, self._device)
        is_usable = self._weigh(gradient) and saved.is_finite
        is_counted = job.is_counted and is_usable
        self._left_out += job.is_counted and not is_usable
        if saved.source is None:
            if is_counted:
                torch.autograd.backward([rooted(saved.output, gradient)])
            return None
        passed_on = _input_gradient(saved.output, saved.source, gradient, is_counted=is_counted)
        self._suspect(gradient, passed_on)
        return to_wire(passed_on, self._manifest.wire.dtype)

    def _weigh(self, came: Tensor) -> bool:
        """Note how large a tensor is that came. False: it is not finite, and nothing made of it may enter a sum."""
        self.came = root_mean_square(came)
        return math.isfinite(self.came)

    def _suspect(self, came: Tensor | None, went: Tensor) -> None:
        if self._suspicion is not None:
            self._suspicion.look(came, went)

    # --- the step ---

    def _apply(self, job: ApplyJob) -> Applied:
        """Update the weights; everything saved for this step and before is outdated."""
        optimizer = self.optimizer
        self._saved = {key: saved for key, saved in self._saved.items() if key[0].step > job.step}
        left_out = max(self._left_out, self._head_left_out)
        norm = optimizer.apply(job.step, self._counts(job))
        self._left_out = self._head_left_out = 0
        is_skipped = left_out > 0 if norm is None else not math.isfinite(norm)
        is_own = self._suspicion is not None and self._suspicion.is_confirmed
        self._suspicion = Suspicion() if is_skipped or left_out else None
        return Applied(None if is_skipped else norm, is_skipped, is_own, left_out)

    def _counts(self, job: ApplyJob) -> int | list[int]:
        """How many microbatches each parameter's sum is of: on S0, head and embedding are counted apart."""
        counted = max(0, job.counted - self._left_out)
        if not isinstance(self.module, EdgeStage):
            return counted
        head_counted = max(0, job.head_counted - self._head_left_out)
        names = (name for name, _ in self.module.named_parameters())
        return [head_counted if name in HEAD_NAMES else counted for name in names]

    @property
    def module(self) -> BlockStage | EdgeStage:
        """The stage itself. Raises `LocalProtocolError` if none is held."""
        if self._module is None:
            raise LocalProtocolError("a job for a stage came to a node that holds none")
        return self._module

    @property
    def optimizer(self) -> StageOptimizer:
        """Of the stage. Raises `LocalProtocolError` if none is held."""
        if self._optimizer is None:
            raise LocalProtocolError("a commit came to a node without a stage")
        return self._optimizer


def _input_gradient(output: Tensor, source: Tensor, gradient: Tensor | None, *, is_counted: bool) -> Tensor:
    """Back-propagate to the source; through the weights' sums only if the microbatch is counted here."""
    root = output if gradient is None else rooted(output, gradient)
    if is_counted:
        torch.autograd.backward([root])
        result = source.grad
    else:
        (result,) = torch.autograd.grad(root, [source])
    if result is None:
        raise LocalProtocolError("the stage passed no gradient to its input")
    return result
