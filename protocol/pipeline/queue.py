"""The queue in front of the compute thread.

The thread works on one job at a time and is given a second one ahead, so that it never waits for the
event loop. Order: what frees memory or unblocks others first (`Priority`), then the older microbatch.
"""

from __future__ import annotations

import heapq
from itertools import count

from understudy.protocol.ids import Microbatch
from understudy.protocol.jobs import (
    ApplyJob,
    BackwardJob,
    DigestJob,
    ForwardJob,
    ImageJob,
    Job,
    LeaseJob,
    LossJob,
    MicrobatchJob,
    Priority,
    SnapshotJob,
)

JOBS_AHEAD = 2
"""Jobs at the compute thread at once: one running, one waiting."""

_PRIORITY: dict[type, Priority] = {
    ApplyJob: Priority.APPLY,
    LeaseJob: Priority.APPLY,  # between two updates, in the order that they were pushed
    SnapshotJob: Priority.SNAPSHOT,
    BackwardJob: Priority.BACKWARD,
    LossJob: Priority.LOSS,
    ForwardJob: Priority.FORWARD,
    DigestJob: Priority.COPY,
    ImageJob: Priority.COPY,
}


class WorkQueue:
    """Pending jobs of a stage, and how many the compute thread has."""

    def __init__(self) -> None:
        self._heap: list[tuple[Priority, Microbatch, int, Job]] = []
        self._of_index: dict[int, set[int]] = {}
        """Serials of the pending jobs of each microbatch."""
        self._forgotten: set[int] = set()
        """Serials in the heap that are skipped: taking one out of its middle would cost a look at all."""
        self._serial = count()
        self._running = 0

    def push(self, job: Job) -> None:
        microbatch, serial = Microbatch(0, 0), next(self._serial)
        if isinstance(job, MicrobatchJob):
            microbatch = job.microbatch
            self._of_index.setdefault(microbatch.index, set()).add(serial)
        heapq.heappush(self._heap, (_PRIORITY[type(job)], microbatch, serial, job))

    def pop(self) -> Job | None:
        """The next job for the thread, or None if it has enough or there is none."""
        while self._heap and self._heap[0][2] in self._forgotten:
            self._forgotten.discard(heapq.heappop(self._heap)[2])
        if self._running >= JOBS_AHEAD or not self._heap:
            return None
        self._running += 1
        _, _, serial, job = heapq.heappop(self._heap)
        if isinstance(job, MicrobatchJob):
            self._of_index[job.microbatch.index].discard(serial)
        return job

    @property
    def running(self) -> int:
        """Jobs that the thread has and has not finished."""
        return self._running

    def finished(self) -> None:
        """The thread finished a job."""
        self._running -= 1

    def forget(self, index: int) -> None:
        """Drop the pending jobs of a microbatch: a newer attempt of it begins."""
        self._forgotten |= self._of_index.pop(index, set())

    def forget_before(self, step: int) -> None:
        """Drop the pending jobs of the microbatches of earlier steps."""
        waiting = [entry for entry in self._heap if entry[2] not in self._forgotten]
        self._heap, self._of_index, self._forgotten = [], {}, set()
        for entry in waiting:
            job = entry[-1]
            if not isinstance(job, MicrobatchJob):
                self._heap.append(entry)
            elif job.microbatch.step >= step:
                self._heap.append(entry)
                self._of_index.setdefault(job.microbatch.index, set()).add(entry[2])
        heapq.heapify(self._heap)
