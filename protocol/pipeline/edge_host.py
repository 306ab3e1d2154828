"""A host of S0: embedding, head, data and loss. Issues the microbatches of its share and brings each home.

What is lost on the way is issued again. Which microbatch is the next, and when the step is decided, is the
coordinator's to say (coordinator.py): one edge host has it beside it, today the only one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from understudy.protocol.actions import Discard, Run
from understudy.protocol.events import JobDone, SendFailed
from understudy.protocol.ids import Attempt, Microbatch
from understudy.protocol.jobs import ApplyJob, BackwardJob, ForwardJob, Job, LossJob, Payload
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.dropping import Drops, dropped
from understudy.protocol.pipeline.host import Host
from understudy.protocol.pipeline.ledger import EdgeLedger, EdgePhase
from understudy.protocol.pipeline.observer import StepObserver
from understudy.protocol.pipeline.paths import choose_path
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.pipeline.watchman import Watchman
from understudy.protocol.wire.messages import Backward, Dropped, Forward


class Coordinates(Protocol):
    """Whom an edge host tells what came home."""

    def came_home(self, index: int, loss: float) -> None:
        """Every stage computed both passes of the microbatch, and the loss is that of its last attempt."""

    def advance(self) -> None:
        """Something changed: issue what may be issued now."""


class EdgeHost(Host):
    """S0's arithmetic, and its account of the microbatches that it issued."""

    def __init__(self, state: NodeState, queue: WorkQueue, observers: Sequence[StepObserver] = ()) -> None:
        super().__init__(state, queue, observers)
        self.ledger = self._open_step(state.committed + 1)
        self.is_stranded = False
        """A stage was lost: nothing is issued until all are served, then all that is in flight is issued again."""
        self.coordinator: Coordinates | None = None
        self._drops = Drops()
        self.watchman = Watchman(state, self.io.route)

    def _open_step(self, step: int) -> EdgeLedger:
        return EdgeLedger(step, self._state.incarnation)

    @property
    def step(self) -> int:
        """The step whose microbatches are under way."""
        return self.ledger.step

    @property
    def can_close(self) -> bool:
        """Nobody but the coordinator decides the step; what is to be taken over it took over when it heard of it."""
        return False

    def close_step(self) -> None:
        """The step is decided: apply our own part, and open the next."""
        self.watchman.closed(self.ledger.step)
        self._close(ApplyJob(self.ledger.step, self.ledger.counted, self.ledger.head_counted))
        self.ledger = self._open_step(self.ledger.step + 1)
        self.io.forget_before(self.ledger.step)

    # --- issuing ---

    def issue(self, index: int, reason: str | None = None, *, is_late: bool = False) -> None:
        """Send a microbatch on its way, or, for this reason, once more."""
        microbatch = Microbatch(self.ledger.step, index)
        if reason is not None:
            self._state.act(Discard(microbatch, self.ledger.attempt_of(index)))
            self.io.forget_attempts(index)
        timeout_s = self._state.manifest.step.microbatch_timeout_s
        members, before = self._state.membership.serving_peers, self.ledger.path_of(index)
        path = choose_path(self._state.me, self.io.route(index), members, before)
        attempt = self.ledger.issue(index, self._state.now, timeout_s, is_late=is_late)
        self.ledger.set_path(index, path)
        self.watchman.issued(index)
        if reason is not None:
            self._state.emit(
                "microbatch.reissued",
                step=microbatch.step,
                index=index,
                attempt=[attempt.driver_incarnation, attempt.counter],
                reason=reason,
            )
        self.io.queue.push(ForwardJob(microbatch, attempt))
        self.pump()

    def resume(self) -> None:
        """Every stage is served again: what was in flight is issued again."""
        self.is_stranded = False
        for index in self.ledger.in_flight:
            self.issue(index, "a stage was lost")

    def on_tick(self) -> None:
        """Deadlines of microbatches, and those that were dropped."""
        if not self.is_stranded:
            for index in self.ledger.overdue(self._state.now):
                self.issue(index, "its deadline passed", is_late=True)
            self._reissue_dropped()
            vanished = self.watchman.look(self.ledger)
            if vanished is not None:
                self.issue(vanished, "nobody says that they have it")

    def on_dropped(self, message: Dropped) -> None:
        """A stage lost what it sent on: nobody needs to wait for the deadline."""
        if message.step == self.ledger.step and not self.is_stranded:
            if self.ledger.is_under_way(message.index, message.attempt, is_gradient=message.is_gradient):
                self._drops.note(message.step, message.index, message.attempt, self._state.now)
            self._reissue_dropped()

    def on_send_failed(self, event: SendFailed) -> None:
        """We ourselves lost it. If S1 or Sn has no owner, or another one, everything is issued again anyway."""
        self.on_dropped(dropped(event.message))

    def _reissue_dropped(self) -> None:
        for index, attempt in self._drops.take_due(self.ledger.step, self._state.now):
            if self.ledger.is_current(index, attempt) and index in self.ledger.in_flight:
                self.issue(index, "it was lost on the way")

    def owner_changed(self, stage: int) -> None:
        """The stage's new owner knows of nothing in flight: everything is issued again."""
        self.is_stranded = True
        self.watchman.owner_changed(stage)
        super().owner_changed(stage)
        if self.coordinator is not None:
            self.coordinator.advance()

    # --- messages ---

    def on_forward(self, message: Forward, payload: Payload) -> None:
        """The last stage's activation."""
        if message.step == self.ledger.step and self._move(message, EdgePhase.OUTBOUND):
            self.ledger.set_path(message.index, message.path)  # of those who have it, whoever was to have it
            origin = self.origin_of(message)
            self.io.queue.push(LossJob(message.microbatch, message.attempt, payload, is_counted=False, origin=origin))
            self.pump()

    def on_backward(self, message: Backward, payload: Payload) -> None:
        """The gradient came home to the embedding."""
        if message.step == self.ledger.step and self._move(message, EdgePhase.RETURNING):
            origin = self.origin_of(message)
            self.io.queue.push(
                BackwardJob(message.microbatch, message.attempt, payload, is_counted=False, origin=origin)
            )
            self.pump()

    def _move(self, message: Forward | Backward, before: EdgePhase) -> bool:
        is_news = self.ledger.move(message.index, message.attempt, before)
        if is_news:
            self.watchman.came(message.step, message.index)
        return is_news

    # --- work ---

    def pump(self) -> None:
        """Keep the compute thread busy."""
        while (job := self.io.queue.pop()) is not None:
            if isinstance(job, LossJob):
                job = replace(job, is_counted=self.ledger.count_head(job.microbatch.index))
            elif isinstance(job, BackwardJob):
                job = replace(job, is_counted=self.ledger.count_embedding(job.microbatch.index))
            self._state.act(Run(job))

    def on_job_done(self, done: JobDone) -> None:
        spoilt = self.finished(done)
        if spoilt is not None:
            self.watchman.note_own(spoilt)
        match done.job:
            case ForwardJob(microbatch, attempt):
                if self._is_due(done.job, attempt, EdgePhase.EMBED_DUE):
                    self._send_out(microbatch, attempt, done.result)
            case LossJob(microbatch, attempt):
                self.watchman.note_loss(microbatch, done.result[0], is_spoilt=spoilt is not None)
                if self._is_due(done.job, attempt, EdgePhase.LOSS_DUE):
                    self._send_back(microbatch, attempt, done.result)
            case BackwardJob(microbatch, attempt):
                if self._is_due(done.job, attempt, EdgePhase.BACKWARD_DUE) and self.coordinator is not None:
                    self.watchman.came_home(microbatch.index)
                    self.coordinator.came_home(microbatch.index, self.ledger.losses[microbatch.index])
            case ApplyJob(step=step):
                self._on_applied(step, done.result)
        self.pump()

    def _is_due(self, job: Job, attempt: Attempt, phase: EdgePhase) -> bool:
        assert isinstance(job, ForwardJob | LossJob | BackwardJob)
        return job.microbatch.step == self.ledger.step and self.ledger.move(job.microbatch.index, attempt, phase)

    def _send_out(self, microbatch: Microbatch, attempt: Attempt, activation: Payload) -> None:
        path = self.ledger.path_of(microbatch.index)
        message = Forward(microbatch.step, microbatch.index, attempt, self._state.stage, self._state.incarnation, path)
        self.io.deliver(self.io.route(microbatch.index)[0], message, activation)

    def _send_back(self, microbatch: Microbatch, attempt: Attempt, result: tuple[float, Payload]) -> None:
        self.ledger.losses[microbatch.index], gradient = result
        path = self.ledger.path_of(microbatch.index)
        message = Backward(microbatch.step, microbatch.index, attempt, self._state.stage, self._state.incarnation, path)
        self.io.deliver(self.io.route(microbatch.index)[-1], message, gradient)
