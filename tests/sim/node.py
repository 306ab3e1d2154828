"""One simulated node: the real core, with a symbolic compute thread instead of torch.

Payloads are symbols that carry their own history, so every stage can check that it was visited in
the right order; every gradient that enters a sum is accounted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from understudy.protocol.actions import Discard, Keep, ReleaseCopy, ReleaseLease, ReleaseSnapshot, ReleaseStage
from understudy.protocol.core import Core
from understudy.protocol.ids import DRIVER_STAGE, PeerId
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
from understudy.protocol.pipeline.updates import OWN_SKIPS_MAX
from understudy.protocol.routing import Route, route

HEAD = 1_000_000
"""S0 counts a microbatch twice: in the embedding's sum, and offset by this in the head's."""


class Violation(AssertionError):
    """An invariant of the protocol was broken."""


@dataclass
class Activation:
    """The symbol of an activation: where its microbatch has been."""

    microbatch: Any
    visited: tuple[int, ...]


@dataclass
class Gradient:
    """The symbol of a gradient: where its microbatch still has to go back to."""

    microbatch: Any
    remaining: tuple[int, ...]


@dataclass(frozen=True)
class Snapshot:
    """The symbol of donated weights: whose they are, and what its donor must say of them."""

    peer: PeerId
    stage: int
    step: int
    weights: float
    squared_gradient_norm: float | None
    earlier: Snapshot | None = None
    """The same weights after an earlier step: the update between was skipped."""

    def as_of(self, step: int) -> Snapshot:
        """What was donated, if these weights were those of this step, too."""
        copy: Snapshot | None = self
        while copy is not None and copy.step != step:
            copy = copy.earlier
        return copy or self


@dataclass
class Hosting:
    """The simulated weights of a stage, and what was done to them."""

    stage: int
    incarnation: int
    weights: float
    donors: tuple[Snapshot, ...] = ()
    coefficients: tuple[float, ...] = ()
    squared_gradient_norm: float | None = None
    applied: list[int] = field(default_factory=list)
    skipped: int = 0
    """Updates skipped in a row."""
    sums: dict[int, Counter[int]] = field(default_factory=dict)
    saved: dict[tuple[Any, Any], Activation] = field(default_factory=dict)


def held_digest(copy: Snapshot) -> str:
    return f"held by {copy.peer} at {copy.step}: {copy.weights!r}"


class SimNode:
    """A core and its body. The simulation owns time and delivery."""

    def __init__(self, peer: PeerId, core: Core) -> None:
        self.peer = peer
        self.core = core
        self.is_alive = True
        self.is_stopped = False
        self.is_silent = False
        self.paused_until = 0.0
        self.busy_until = 0.0
        self.stuck_until = 0.0
        self.timer_serial = 0
        self.hosting: Hosting | None = None
        self.snapshots: dict[str, Snapshot] = {}
        self.kept: dict[str, Snapshot] = {}
        """Copies of other stages."""
        self.holds: dict[int, Snapshot] = {}
        """What is held for exporters, by step."""
        self.half_digested: set[int] = set()
        self.overflowing = 0
        """So many of the next updates are not finite."""
        self.past: list[Hosting] = []
        self.is_driven_twice = False
        """After a split two peers serve S0 under one incarnation, which no quorum forbids: both send microbatches."""
        self.unreadable: frozenset[int] = frozenset()
        """The steps whose text cannot be read on this machine."""

    def text_failure(self, step: int) -> str | None:
        return f"the text of step {step} is not there" if step in self.unreadable else None

    @property
    def microbatches(self) -> int:
        return self.core.state.manifest.step.microbatches

    def path(self, index: int) -> Route:
        manifest = self.core.state.manifest
        return route(manifest.recovery.method, manifest.model.block_stages, index)

    def work(self, job: Job) -> Any:
        """Do a job symbolically and return its result."""
        match job:
            case InitialiseJob(stage, incarnation, parts=parts):
                weights = [copy for part, copy in parts if part != "moments"]
                self._host(Hosting(stage, incarnation, float(stage), tuple(weights)))
                for copy in weights:
                    self.hosting.weights = copy.weights
            case BlendJob(stage, incarnation, payloads, coefficients):
                weights = sum(c * donor.weights for c, donor in zip(coefficients, payloads, strict=True))
                self._host(Hosting(stage, incarnation, weights, payloads, coefficients))
            case ForwardJob():
                return self._forward(job)
            case LossJob():
                return self._loss(job)
            case BackwardJob():
                return self._backward(job)
            case ApplyJob():
                return self._apply(job)
            case LeaseJob(step):
                self._hold(step)
            case SnapshotJob() | ImageJob() | DigestJob():
                return self._copy(job)
        return None

    def _copy(self, job: SnapshotJob | ImageJob | DigestJob) -> Any:
        if isinstance(job, ImageJob):
            return tuple(self._snapshot(f"image of {part}") for part in job.parts)
        return self._snapshot("stage") if isinstance(job, SnapshotJob) else self._digest(job.step)

    def _host(self, hosting: Hosting) -> None:
        self.release()
        self.hosting = hosting

    def release(self) -> None:
        if self.hosting is not None:
            self.past.append(self.hosting)
        self.hosting = None
        self.snapshots, self.holds = {}, {}

    def fetchable(self, digest: str) -> Snapshot:
        """What is behind a digest that was offered."""
        held = {held_digest(copy): copy for copy in self.holds.values()}
        return {**held, **self.kept, **self.snapshots}[digest]

    def _forward(self, job: ForwardJob) -> Activation:
        hosting = self.hosting
        assert hosting is not None
        if hosting.stage == DRIVER_STAGE:
            activation = Activation(job.microbatch, ())
        else:
            activation = job.payload
            if activation.microbatch != job.microbatch:
                raise Violation(f"{job} carries another microbatch's activation")
            expected = self.path(job.microbatch.index)
            if activation.visited != expected[: expected.index(hosting.stage)]:
                raise Violation(f"{activation} came to S{hosting.stage} out of order")
        hosting.saved[job.microbatch, job.attempt] = activation
        in_flight = {microbatch for microbatch, _ in hosting.saved}
        if len(in_flight) > self.core.state.manifest.window and not self.is_driven_twice:
            raise Violation(f"S{hosting.stage} holds activations of {len(in_flight)} microbatches, beyond the window")
        visited = activation.visited + ((hosting.stage,) if hosting.stage != DRIVER_STAGE else ())
        return Activation(job.microbatch, visited)

    def _loss(self, job: LossJob) -> tuple[float, Gradient]:
        hosting = self.hosting
        assert hosting is not None
        if job.payload.visited != self.path(job.microbatch.index):
            raise Violation(f"{job.payload} reached the loss without visiting every stage")
        if job.is_counted:
            self._count(hosting, job.microbatch, part=1)
        return 1.0 / job.microbatch.step, Gradient(job.microbatch, job.payload.visited)

    def _backward(self, job: BackwardJob) -> Gradient | None:
        hosting = self.hosting
        assert hosting is not None
        if hosting.saved.pop((job.microbatch, job.attempt), None) is None:
            raise Violation(f"S{hosting.stage} has no saved activation for {job.microbatch} {job.attempt}")
        if job.is_counted:
            self._count(hosting, job.microbatch, part=0)
        if hosting.stage == DRIVER_STAGE:
            if job.payload.remaining:
                raise Violation(f"{job.payload} came home early")
            return None
        if job.payload.remaining[-1] != hosting.stage:
            raise Violation(f"{job.payload} came to S{hosting.stage} out of order")
        return Gradient(job.microbatch, job.payload.remaining[:-1])

    @staticmethod
    def _count(hosting: Hosting, microbatch: Any, part: int) -> None:
        sums = hosting.sums.setdefault(microbatch.step, Counter())
        sums[microbatch.index + part * HEAD] += 1

    def _apply(self, job: ApplyJob) -> Applied:
        """Account the step: exactly once each, unless the stage began in its middle."""
        hosting = self.hosting
        assert hosting is not None
        counts = hosting.sums.pop(job.step, Counter())
        hosting.saved = {key: saved for key, saved in hosting.saved.items() if key[0].step > job.step}
        if hosting.applied and job.step != hosting.applied[-1] + 1:
            raise Violation(f"S{hosting.stage} applied step {job.step} after {hosting.applied[-1]}")
        if any(times != 1 for times in counts.values()):
            raise Violation(f"S{hosting.stage} counted a microbatch of step {job.step} twice: {counts}")
        own = {index for index in counts if index < HEAD}
        head = {index - HEAD for index in counts if index >= HEAD}
        if (len(own), len(head)) != (job.counted, job.head_counted):
            raise Violation(f"S{hosting.stage} counted {sorted(own)} and in the head {sorted(head)}, but does {job}")
        is_joining = hosting.incarnation > 1 and not hosting.applied
        whole = set(range(self.microbatches))
        is_whole = own == whole and head == (whole if hosting.stage == DRIVER_STAGE else set())
        if not is_whole and not is_joining:
            raise Violation(f"S{hosting.stage}/{hosting.incarnation} did {job} with {sorted(own)} and {sorted(head)}")
        hosting.applied.append(job.step)
        if not counts:
            return Applied()
        if self.overflowing:
            return self._skip(hosting)
        hosting.skipped = 0
        hosting.weights += 0.125 * max(len(own), len(head)) * (hosting.stage + 1)
        hosting.squared_gradient_norm = float(job.step * (hosting.stage + 1))
        return Applied(hosting.squared_gradient_norm)

    def _skip(self, hosting: Hosting) -> Applied:
        """The update is not finite, by this stage's own doing."""
        self.overflowing -= 1
        hosting.skipped += 1
        if hosting.skipped > OWN_SKIPS_MAX and not self.is_stopped:
            raise Violation(
                f"{self.peer} still holds S{hosting.stage} after {hosting.skipped} skipped updates in a row"
            )
        hosting.squared_gradient_norm = None
        return Applied(is_skipped=True, is_own=True)

    def _snapshot(self, part: str) -> tuple[int, str]:
        hosting = self.hosting
        assert hosting is not None
        digest = f"{part} of {self.peer}@{hosting.weights!r}"
        step = self.core.state.committed
        norm = hosting.squared_gradient_norm
        earlier = self.snapshots.get(digest)
        self.snapshots[digest] = Snapshot(self.peer, hosting.stage, step, hosting.weights, norm, earlier)
        return 8, digest

    def _hold(self, step: int) -> None:
        """The weights may be copied for a step when they are as it left them, at no other time."""
        hosting = self.hosting
        assert hosting is not None
        stands_at = hosting.applied[-1] if hosting.applied else self.core.state.committed
        if stands_at != step:
            raise Violation(f"S{hosting.stage} holds its weights of step {stands_at} for step {step}")
        norm = hosting.squared_gradient_norm
        self.holds[step] = Snapshot(self.peer, hosting.stage, step, hosting.weights, norm)

    def _digest(self, step: int) -> tuple[int, str] | None:
        copy = self.holds.get(step)
        if copy is None or step not in self.half_digested:
            self.half_digested.add(step)
            return None
        manifest = self.core.state.manifest
        return manifest.model.stage_bytes(copy.stage), held_digest(copy)

    def last_committed(self, stage: int, incarnation: int) -> int | None:
        """The last step that was applied in a tenure."""
        for hosting in [*self.past, self.hosting]:
            if hosting is not None and (hosting.stage, hosting.incarnation) == (stage, incarnation):
                return hosting.applied[-1] if hosting.applied else None
        return None

    def perform(self, action: Discard | Keep | ReleaseCopy | ReleaseLease | ReleaseSnapshot | ReleaseStage) -> None:
        """Actions that only touch the body."""
        if isinstance(action, ReleaseStage):
            self.release()
        elif isinstance(action, Keep):
            self.kept[action.digest] = action.payload
        elif isinstance(action, ReleaseCopy):
            del self.kept[action.digest]
        elif isinstance(action, ReleaseSnapshot):
            del self.snapshots[action.digest]
        elif isinstance(action, ReleaseLease):
            self.holds.pop(action.step, None)
        elif self.hosting is not None:
            self.hosting.saved.pop((action.microbatch, action.attempt), None)
