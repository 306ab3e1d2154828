"""What an owner says of its own speed."""

from __future__ import annotations

import pytest

from tests.unit.protocol.test_core import owner, votes
from understudy.protocol.actions import Store
from understudy.protocol.events import JobDone
from understudy.protocol.ids import Attempt, Microbatch, PeerId, Tenure
from understudy.protocol.jobs import ApplyJob, BackwardJob, ForwardJob, Job, LossJob
from understudy.protocol.pace import Pace
from understudy.protocol.wire.records import StageRecord

ME = PeerId("me")
MINE = Tenure(2, 1, ME)
FORWARD = ForwardJob(Microbatch(1, 0), Attempt(1, 0))
LOSS = LossJob(Microbatch(1, 0), Attempt(1, 0), None, is_counted=True)
BACKWARD = BackwardJob(Microbatch(1, 0), Attempt(1, 0), None, is_counted=True)


def done(pace: Pace, job: Job, seconds: float, tenure: Tenure = MINE) -> None:
    pace.note(tenure, JobDone(job, None, seconds))


def test_a_microbatch_takes_what_all_its_jobs_take() -> None:
    pace = Pace()
    done(pace, FORWARD, 0.1)
    assert pace.microbatches_per_second == 0.0  # none has come all the way
    done(pace, BACKWARD, 0.3)
    assert pace.microbatches_per_second == 2.5
    done(pace, LOSS, 0.1)
    done(pace, ApplyJob(1, 1), 100.0)  # once a step, however many microbatches that has
    assert pace.microbatches_per_second == 2.0


def test_one_that_was_disturbed_changes_little_and_a_change_that_stays_is_seen() -> None:
    pace = Pace()
    for seconds in [0.1] * 50 + [0.3]:
        done(pace, BACKWARD, seconds)
    assert pace.microbatches_per_second == pytest.approx(10.0, rel=0.2)
    for _ in range(100):
        done(pace, BACKWARD, 0.2)
    assert pace.microbatches_per_second == pytest.approx(5.0, rel=0.02)


def test_another_stage_is_another_work() -> None:
    pace = Pace()
    done(pace, BACKWARD, 0.1)
    done(pace, BACKWARD, 0.5, Tenure(3, 1, ME))
    assert pace.microbatches_per_second == 2.0


def test_an_owner_publishes_it_with_its_tenure() -> None:
    node = owner()
    node.core._lifecycle.host.io.queue.push(BACKWARD)  # type: ignore[union-attr]
    node.core._lifecycle.host.pump()  # type: ignore[union-attr]
    node.do(JobDone(BACKWARD, None, 0.25))
    node.core._detector.store_tenure()
    store = node.core.state.actions[-1]
    assert isinstance(store, Store)
    assert store.record == StageRecord(ME, 2, 2, "serving", 5, 4.0, proof=votes())
