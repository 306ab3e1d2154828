"""Holding weights still for exporters: the owner's side of an export.

An exporter asks every owner for its weights as they are after one and the same step (`LeaseRequest`). Whoever
is not there yet takes note and copies them between that step's update and the next, so training waits
for a plain copy in memory and for nothing else; the digests are computed when the compute thread has
nothing better to do. What is held is leased: an exporter that says nothing more is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from understudy.protocol.actions import ReleaseLease
from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.ids import PeerId
from understudy.protocol.jobs import DigestJob, LeaseJob
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.observer import StepObserver
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.wire.fields import LeaseState
from understudy.protocol.wire.messages import FetchRequest, LeaseRequest, LeaseStatus

SNAPSHOTS_MAX = 3
"""Steps asked for at a time; each costs a copy of the stage's weights."""
AHEAD_MAX = 4096
"""Steps ahead of ours that may be asked for, the run's last excepted: nobody reserves what comes in a year."""
COPY_EVERY_S = 2.0
"""Two copies are so far apart at least: exporters cannot make training wait more often."""
SNAPSHOT_LIFETIME_S = 3600.0
"""A copy is kept no longer than this, whatever its exporters say."""
LEASES_PER_SNAPSHOT_MAX = 8
"""Exporters of one step."""
LEASE_S = 120.0
"""Held this long after the exporter's last word: so long it may take to start an interrupted export again."""

LINGER_S = 10.0
"""After the run's last step an owner stays this long for an exporter that says nothing more."""


@dataclass(slots=True)
class LeasedSnapshot:
    """The weights after one step, for those who asked for them."""

    asked_at: float
    leases: dict[PeerId, float] = field(default_factory=dict)
    """Until when, by exporter."""
    ordered_at: float | None = None
    """When the copy was ordered; from then on it is of this step whatever comes."""
    payload_bytes: int = 0
    digest: str = ""
    """Empty until the copy is made and its digest known."""


class SnapshotLeases(StepObserver):
    """The leases that exporters have on an owner's weights, and the snapshots that are there for them."""

    def __init__(self, state: NodeState, queue: WorkQueue) -> None:
        self._state, self._queue = state, queue
        self._snapshots: dict[int, LeasedSnapshot] = {}
        self._last_copied, self._copied_at = -1, float("-inf")

    @property
    def is_wanted(self) -> bool:
        """An exporter that spoke just now has use for weights that we have: the run's end waits for it a while."""
        horizon = self._state.now + LEASE_S - LINGER_S
        return any(
            snapshot.ordered_at is not None and not self._is_stale(snapshot) and max(snapshot.leases.values()) > horizon
            for snapshot in self._snapshots.values()
        )

    def _is_stale(self, snapshot: LeasedSnapshot) -> bool:
        return snapshot.ordered_at is not None and self._state.now - snapshot.ordered_at > SNAPSHOT_LIFETIME_S

    def on_request(self, peer: PeerId, message: LeaseRequest, open_step: int) -> None:
        """Note the wish, or renew its lease. ``open_step``: all before it are closed here, their updates queued."""
        total = self._state.manifest.step.total_steps
        if 0 < total < message.step:
            raise RemoteProtocolError(f"step {message.step} is beyond the run's last")
        tenure = self._state.tenure
        if tenure is None or (tenure.stage, tenure.incarnation) != (message.stage, message.incarnation):
            self._answer(peer, message, "not mine", open_step)
        elif message.step not in self._snapshots and message.step < open_step - 1:
            self._answer(peer, message, "passed", open_step)
        elif self._is_out_of_reach(message.step, open_step) or not self._lease(peer, message.step):
            self._answer(peer, message, "full", open_step)
        else:
            if message.step == open_step - 1:
                self.closed(message.step)
            self._answer(peer, message, self._status(message.step), open_step)

    def _is_out_of_reach(self, step: int, open_step: int) -> bool:
        """For now: it is far away, or the last copy was just now."""
        is_far = step > open_step + AHEAD_MAX and step != self._state.manifest.step.total_steps
        return is_far or (step == open_step - 1 and step not in self._snapshots and self._is_too_soon(step))

    def _is_too_soon(self, step: int) -> bool:
        """Whether another copy would make training wait too often. The run's last step has its first one at once."""
        is_first_of_last = step == self._state.manifest.step.total_steps and step != self._last_copied
        return self._state.now - self._copied_at < COPY_EVERY_S and not is_first_of_last

    def _lease(self, peer: PeerId, step: int) -> bool:
        """Whether there is room for this wish, the only one of this exporter: a new one replaces the old."""
        for other in [other for other in self._snapshots if other != step]:
            self.release(peer, other)
        snapshot = self._snapshots.get(step)
        if snapshot is None:
            if len(self._snapshots) >= SNAPSHOTS_MAX:
                return False
            snapshot = self._snapshots[step] = LeasedSnapshot(self._state.now)
        if peer not in snapshot.leases and len(snapshot.leases) >= LEASES_PER_SNAPSHOT_MAX:
            return False
        snapshot.leases[peer] = self._state.now + LEASE_S
        return True

    def _status(self, step: int) -> LeaseState:
        return "held" if self._snapshots[step].digest else "noted"

    def _answer(self, peer: PeerId, asked: LeaseRequest, status: LeaseState, open_step: int) -> None:
        snapshot = self._snapshots.get(asked.step)
        what = (snapshot.payload_bytes, snapshot.digest) if snapshot is not None and status == "held" else (0, "")
        self._state.send(peer, LeaseStatus(asked.stage, asked.incarnation, asked.step, status, open_step - 1, *what))

    # --- the copy ---

    def closed(self, step: int) -> None:
        """The step's update is queued, and no later one: the place for a copy is right behind it."""
        snapshot = self._snapshots.get(step)
        if snapshot is None or snapshot.ordered_at is not None:
            return
        if self._is_too_soon(step):
            del self._snapshots[step]  # its exporters will hear that it is past
            return
        snapshot.ordered_at = self._copied_at = self._state.now
        self._last_copied = step
        self._queue.push(LeaseJob(step))

    def on_job_done(self, job: LeaseJob | DigestJob, result: tuple[int, str] | None) -> None:
        """One more piece of work on a copy is done."""
        snapshot = self._snapshots.get(job.step)
        if snapshot is None:
            self._state.act(ReleaseLease(job.step))
        elif result is None:
            self._queue.push(DigestJob(job.step))
        elif not snapshot.digest:
            snapshot.payload_bytes, snapshot.digest = result
            self._tell_exporters(job.step, snapshot)

    def _tell_exporters(self, step: int, snapshot: LeasedSnapshot) -> None:
        seconds = self._state.now - snapshot.asked_at
        self._state.emit(
            "weights.held", step=step, bytes=snapshot.payload_bytes, digest=snapshot.digest, seconds=seconds
        )
        news = LeaseStatus(
            self._state.stage, self._state.incarnation, step, "held", step, snapshot.payload_bytes, snapshot.digest
        )
        for peer in snapshot.leases:
            self._state.send(peer, news)

    def may_fetch(self, peer: PeerId, request: FetchRequest) -> bool:
        """Whether the peer asks for what we hold for it."""
        tenure = self._state.tenure
        if tenure is None or (tenure.stage, tenure.incarnation) != (request.stage, request.incarnation):
            return False
        return any(
            snapshot.digest == request.digest and peer in snapshot.leases for snapshot in self._snapshots.values()
        )

    # --- the end ---

    def release(self, peer: PeerId, step: int) -> None:
        """The exporter has what it wanted, or wants something else."""
        snapshot = self._snapshots.get(step)
        if snapshot is not None and snapshot.leases.pop(peer, None) is not None and not snapshot.leases:
            self._free(step)

    def expire(self) -> None:
        """Forget exporters that fell silent, and all of a copy that is kept for too long."""
        for step, snapshot in list(self._snapshots.items()):
            is_stale = self._is_stale(snapshot)
            for peer in [peer for peer, until in snapshot.leases.items() if is_stale or until <= self._state.now]:
                self.release(peer, step)

    def _free(self, step: int) -> None:
        snapshot = self._snapshots.pop(step)
        if snapshot.ordered_at is not None:
            self._state.act(ReleaseLease(step))
