"""The queue in front of the compute thread.

The thread works on one job at a time and is given a second one ahead, so that it never waits for the
event loop. Order: what frees memory or unblocks others first (`Priority`), then the older microbatch.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from understudy.protocol.events import (
    ApplyJob,
    BackwardJob,
    DigestJob,
    ForwardJob,
    HoldJob,
    Job,
    LossJob,
    Priority,
    SnapshotJob,
)
from understudy.protocol.ids import Microbatch

JOBS_AHEAD = 2
"""Jobs at the compute thread at once: one running, one waiting."""

_PRIORITY: dict[type, Priority] = {
    ApplyJob: Priority.APPLY,
    HoldJob: Priority.APPLY,  # between two updates, in the order that they were pushed
    SnapshotJob: Priority.SNAPSHOT,
    BackwardJob: Priority.BACKWARD,
    LossJob: Priority.LOSS,
    ForwardJob: Priority.FORWARD,
    DigestJob: Priority.COPY,
}


class WorkQueue:
    """Pending jobs of a stage, and how many the compute thread has."""

    def __init__(self) -> None:
        self._heap: list[tuple[Priority, Microbatch, int, Job]] = []
        self._serial = count()
        self._running = 0

    def push(self, job: Job) -> None:
        microbatch = job.microbatch if isinstance(job, ForwardJob | LossJob | BackwardJob) else Microbatch(0, 0)
        heapq.heappush(self._heap, (_priority(job), microbatch, next(self._serial), job))

    def pop(self) -> Job | None:
        """The next job for the thread, or None if it has enough or there is none."""
        if self._running >= JOBS_AHEAD or not self._heap:
            return None
        self._running += 1
        return heapq.heappop(self._heap)[-1]

    def finished(self) -> None:
        """The thread finished a job."""
        self._running -= 1

    def purge(self, is_outdated: Callable[[Job], bool]) -> None:
        """Drop pending jobs whose result nobody waits for."""
        self._heap = [entry for entry in self._heap if not is_outdated(entry[-1])]
        heapq.heapify(self._heap)


def _priority(job: Job) -> Priority:
    """A snapshot that a claimant waits for is urgent; a copy of a part of S0 is for when there is nothing else."""
    if isinstance(job, SnapshotJob) and job.part != "stage":
        return Priority.COPY
    return _PRIORITY[type(job)]
