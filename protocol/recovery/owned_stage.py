"""A stage that this node owns: the host that trains it, and what its owner does for others meanwhile.

For others it vouches for claims and holds backups of S0 (`Witness`), holds weights for exporters (`SnapshotLeases`)
and, on S0, has its own weights copied (`DriverBackupSource`). The host knows the latter two as observers of its steps
only; all their work on the weights goes through the one queue of the stage.
"""

from __future__ import annotations

from understudy.protocol.events import Fetched, FetchFailed, JobDone
from understudy.protocol.export.lease import SnapshotLeases
from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.jobs import DigestJob, LeaseJob, SnapshotJob
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.coordinator import Coordinator
from understudy.protocol.pipeline.edge_host import EdgeHost
from understudy.protocol.pipeline.observer import StepObserver
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.recovery.driver_backup import DriverBackupSource
from understudy.protocol.recovery.split import SplitJudge
from understudy.protocol.recovery.witness import Witness
from understudy.protocol.wire.messages import EdgeCopy, EdgeCopyKept, FetchRequest, LeaseRelease, LeaseRequest


class OwnedStage:
    """All that belongs to one tenure of ours; it is gone with the tenure."""

    def __init__(self, state: NodeState) -> None:
        """``state``: with the tenure, and the step that the weights stand at."""
        self._queue = WorkQueue()
        self._leases = SnapshotLeases(state, self._queue)
        self._backup = DriverBackupSource(state, self._queue) if state.stage == DRIVER_STAGE else None
        self.witness = Witness(state, self._queue)
        observers: list[StepObserver] = [self._leases] if self._backup is None else [self._leases, self._backup]
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
        """Whether the peer may have weights that we hold: as a holder of S0's backups, an exporter, or a claimant."""
        is_backup = self._backup is not None and self._backup.may_fetch(peer, request)
        return is_backup or self._leases.may_fetch(peer, request) or self.witness.may_fetch(peer, request)

    def on_tick(self) -> None:
        """Forget exporters that fell silent; on S0, see to what is late."""
        self._leases.expire()
        if self.coordinator is not None:
            self.coordinator.on_tick()

    def on_job_done(self, event: JobDone) -> None:
        """The compute thread finished a job: of training, or a copy of the weights for somebody."""
        match event.job:
            case SnapshotJob(parts=("stage",)):
                self._queue.finished()
                self.witness.on_snapshot(*event.result[0])
            case SnapshotJob(parts=parts):
                self._queue.finished()
                if self._backup is not None:
                    self._backup.on_snapshots(parts, event.result)
            case LeaseJob() | DigestJob() as job:
                self._queue.finished()
                self._leases.on_job_done(job, event.result)
            case _:
                self.host.on_job_done(event)
                return
        self.host.pump()

    def on_copy_message(self, peer: PeerId, message: EdgeCopy | EdgeCopyKept) -> None:
        """S0 offers us a copy of its weights, or we are S0 and a holder has a copy of ours."""
        if self._backup is None:
            if isinstance(message, EdgeCopy):
                self.witness.backups.on_offer(peer, message)
        elif isinstance(message, EdgeCopyKept):
            self._backup.on_kept(peer, message)
            self.host.pump()

    def on_lease_message(self, peer: PeerId, message: LeaseRequest | LeaseRelease) -> None:
        """An exporter wants our weights held still, or needs them no more."""
        if isinstance(message, LeaseRelease):
            self._leases.release(peer, message.step)
        else:
            self._leases.on_request(peer, message, self.host.step)
            self.host.pump()

    def on_fetch_ended(self, event: Fetched | FetchFailed) -> None:
        """What an owner fetches are copies of S0's weights."""
        if isinstance(event, Fetched):
            self.witness.backups.on_fetched(event)
        else:
            self.witness.backups.on_fetch_failed(event)

    def review(self) -> None:
        """Who is lost or back among the stages that we witness?"""
        self.witness.review()
        self.host.pump()
