"""A stage that this node owns: the host that trains it, and what its owner does for others meanwhile.

For others it vouches for claims (`Witness`) and holds weights for exporters (`SnapshotLeases`); for itself it has its
weights copied (`CopySource`). The host knows the latter two as observers of its steps only; all their work on the
weights goes through the one queue of the stage.
"""

from __future__ import annotations

from understudy.protocol.events import JobDone
from understudy.protocol.export.lease import SnapshotLeases
from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.jobs import DigestJob, ImageJob, LeaseJob, SnapshotJob
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.coordinator import Coordinator
from understudy.protocol.pipeline.edge_host import EdgeHost
from understudy.protocol.pipeline.observer import StepObserver
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.recovery.split import SplitJudge
from understudy.protocol.recovery.witness import Witness
from understudy.protocol.standby.shelf import Shelf
from understudy.protocol.standby.source import CopySource
from understudy.protocol.wire.messages import CopyKept, FetchRequest, LeaseRelease, LeaseRequest


class OwnedStage:
    """All that belongs to one tenure of ours; it is gone with the tenure."""

    def __init__(self, state: NodeState, shelf: Shelf) -> None:
        """``state``: with the tenure, and the step that the weights stand at. ``shelf``: what we hold of others."""
        self._queue = WorkQueue()
        self._leases = SnapshotLeases(state, self._queue)
        self._copies = CopySource(state, self._queue)
        self.witness = Witness(state, self._queue, shelf)
        observers: list[StepObserver] = [self._leases, self._copies]
        self.host: EdgeHost | BlockStage
        self.coordinator: Coordinator | None = None
        if state.stage == DRIVER_STAGE:
            self.host = EdgeHost(state, self._queue, observers)
            self.coordinator = Coordinator(state, self.host)
        else:
            self.host = BlockStage(state, self._queue, observers)
        self.split = SplitJudge(state, self.host)

    @property
    def is_wanted(self) -> bool:
        """An exporter is about to fetch our weights."""
        return self._leases.is_wanted

    @property
    def running(self) -> int:
        """Jobs of this stage that the compute thread has not finished."""
        return self._queue.running

    def may_fetch(self, peer: PeerId, request: FetchRequest) -> bool:
        """Whether the peer may have weights that we hold: as a holder of our copies, an exporter, or a claimant."""
        is_holder = self._copies.may_fetch(peer, request)
        return is_holder or self._leases.may_fetch(peer, request) or self.witness.may_fetch(peer, request)

    def on_tick(self) -> None:
        """Forget exporters that fell silent, see to copies; on S0, see to what is late."""
        self._leases.expire()
        self._copies.advance()
        if self.coordinator is None:
            self.host.pump()
        else:
            self.coordinator.on_tick()

    def on_job_done(self, event: JobDone) -> None:
        """The compute thread finished a job: of training, or a copy of the weights for somebody."""
        match event.job:
            case SnapshotJob():
                self._queue.finished()
                self.witness.on_snapshot(*event.result)
            case ImageJob(parts=parts):
                self._queue.finished()
                self._copies.on_images(parts, event.result)
            case LeaseJob() | DigestJob() as job:
                self._queue.finished()
                self._leases.on_job_done(job, event.result)
            case _:
                self.host.on_job_done(event)
                return
        self.host.pump()

    def on_kept(self, peer: PeerId, message: CopyKept) -> None:
        """A holder has a copy of our weights, or no room for it."""
        self._copies.on_kept(peer, message)
        self.host.pump()

    def on_lease_message(self, peer: PeerId, message: LeaseRequest | LeaseRelease) -> None:
        """An exporter wants our weights held still, or needs them no more."""
        if isinstance(message, LeaseRelease):
            self._leases.release(peer, message.step)
        else:
            self._leases.on_request(peer, message, self.host.step)
            self.host.pump()

    def review(self) -> None:
        """Who is lost or back among the stages that we witness?"""
        self.witness.review()
        self.host.pump()
