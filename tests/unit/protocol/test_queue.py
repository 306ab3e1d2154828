"""The queue in front of the compute thread."""

from __future__ import annotations

from understudy.protocol.ids import Attempt, Microbatch
from understudy.protocol.jobs import ApplyJob, BackwardJob, DigestJob, ForwardJob, Job, LeaseJob, LossJob, SnapshotJob
from understudy.protocol.pipeline.queue import JOBS_AHEAD, WorkQueue

ATTEMPT = Attempt(1, 0)


def forward(index: int, step: int = 1) -> ForwardJob:
    return ForwardJob(Microbatch(step, index), ATTEMPT)


def backward(index: int, step: int = 1) -> BackwardJob:
    return BackwardJob(Microbatch(step, index), ATTEMPT, None, is_counted=False)


def loss(index: int) -> LossJob:
    return LossJob(Microbatch(1, index), ATTEMPT, None, is_counted=False)


def drain(queue: WorkQueue) -> list[Job]:
    """Run everything, one job at a time."""
    jobs: list[Job] = []
    while (job := queue.pop()) is not None:
        jobs.append(job)
        queue.finished()
    return jobs


def queue_of(*jobs: Job) -> WorkQueue:
    queue = WorkQueue()
    for job in jobs:
        queue.push(job)
    return queue


def test_what_frees_goes_before_what_fills() -> None:
    jobs: list[Job] = [forward(0), loss(0), backward(0), SnapshotJob(1), ApplyJob(1, 4)]
    assert drain(queue_of(*jobs)) == jobs[::-1]


def test_the_older_microbatch_goes_first() -> None:
    queue = queue_of(forward(1, step=2), forward(3), forward(0))
    assert drain(queue) == [forward(0), forward(3), forward(1, step=2)]


def test_equal_jobs_keep_their_order() -> None:
    first, second = ApplyJob(1, 4), ApplyJob(2, 4)
    assert drain(queue_of(first, second)) == [first, second]


def test_the_thread_has_one_job_running_and_one_ahead() -> None:
    queue = queue_of(*map(forward, range(4)))
    assert [queue.pop() for _ in range(3)] == [forward(0), forward(1), None]
    queue.finished()
    assert [queue.pop() for _ in range(2)] == [forward(2), None]
    assert JOBS_AHEAD == 2


def test_an_empty_queue_gives_nothing() -> None:
    assert WorkQueue().pop() is None


def test_a_forgotten_microbatch_has_no_jobs_and_the_order_stays() -> None:
    queue = queue_of(forward(2), backward(1), forward(1), forward(0))
    queue.forget(1)
    queue.push(loss(1))
    assert drain(queue) == [loss(1), forward(0), forward(2)]
    queue.forget(0)
    assert queue.pop() is None


def test_jobs_of_earlier_steps_are_dropped_and_all_others_stay() -> None:
    update, copy = ApplyJob(3, 1), LeaseJob(3)
    queue = queue_of(forward(1, 4), backward(0, 3), forward(0, 4), forward(2, 3), update, copy)
    queue.forget(0)
    queue.forget_before(4)
    assert drain(queue) == [update, copy, forward(1, 4)]
    queue.push(forward(1, 4))
    queue.forget(1)
    assert queue.pop() is None


def test_a_copy_for_exporters_is_made_right_after_its_step() -> None:
    copy = LeaseJob(3)
    jobs = drain(queue_of(forward(0, 4), backward(0, 4), DigestJob(2), ApplyJob(3, 2), copy, ApplyJob(4, 2)))
    assert jobs[:3] == [ApplyJob(3, 2), copy, ApplyJob(4, 2)]
    assert jobs[-1] == DigestJob(2), "digests are for when there is nothing else to do"
