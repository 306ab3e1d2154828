"""What the two kinds of stage have in common: `BlockStage` (stage.py) and `EdgeHost` (edge_host.py)."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.protocol.events import JobDone
from understudy.protocol.ids import Tenure
from understudy.protocol.jobs import Applied, ApplyJob
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.numbers import Numbers, Spoilt
from understudy.protocol.pipeline.observer import StepObserver
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.pipeline.stage_io import StageIO
from understudy.protocol.pipeline.updates import Updates
from understudy.protocol.wire.messages import DataMessage


class Host:
    """A stage that this node trains, and those who observe its steps."""

    def __init__(self, state: NodeState, queue: WorkQueue, observers: Sequence[StepObserver] = ()) -> None:
        """``queue``: of the stage; its observers push their jobs into it, too. They are told in their order."""
        self._state = state
        self._observers = tuple(observers)
        self._updates = Updates(state)
        self.numbers = Numbers(state)
        self.io = StageIO(state, queue)

    def is_on_route(self, message: DataMessage) -> bool:
        """Whether the message comes from where its route says (`StageIO.is_on_route`)."""
        return self.io.is_on_route(message)

    def owner_changed(self, stage: int) -> None:
        """Another stage has a new owner, who knows of nothing that is under way."""
        self.io.owner_changed(stage)
        for observer in self._observers:
            observer.owner_changed(stage)

    def owner_revived(self, stage: int) -> None:
        """The owner of another stage was taken for dead, and speaks again."""
        self.io.owner_revived(stage)

    def origin_of(self, message: DataMessage) -> Tenure | None:
        """Whose tenure the message came from."""
        seat = self._state.membership.tenure_or_displaced(message.stage, message.incarnation)
        return None if seat is None else Tenure(seat.stage, seat.incarnation, seat.peer)

    def finished(self, done: JobDone) -> Spoilt | None:
        """The compute thread has one job less, and what came with it is known. Returns it if it is not finite."""
        self.io.queue.finished()
        return self.numbers.note(done)

    def _close(self, job: ApplyJob) -> None:
        """A step is decided: queue its update."""
        self.io.queue.push(job)
        for observer in self._observers:
            observer.closed(job.step)

    def _on_applied(self, step: int, result: Applied) -> None:
        """The compute thread is done with the update of a step."""
        self._updates.applied(step, result, self.numbers.first_of(step))
        for observer in self._observers:
            observer.applied(step)
