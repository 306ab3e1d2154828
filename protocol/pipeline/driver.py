"""S0: drives the pipeline.

Issues microbatches within a bounded window, closes the loop (loss, gradient back), re-issues what was
lost, and commits the step when every microbatch has come home. A death costs the microbatches in
flight, not the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from understudy.protocol.actions import Discard, Run
from understudy.protocol.events import JobDone, SendFailed
from understudy.protocol.ids import DRIVER_STAGE, Attempt, Microbatch
from understudy.protocol.jobs import ApplyJob, BackwardJob, ForwardJob, Job, LossJob, Payload
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.dropping import Drops, dropped
from understudy.protocol.pipeline.host import Host
from understudy.protocol.pipeline.ledger import DriverLedger, DriverPhase
from understudy.protocol.pipeline.observer import StepObserver
from understudy.protocol.pipeline.progress import ProgressReport
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.pipeline.window import Window
from understudy.protocol.wire.messages import Backward, Commit, Dropped, Forward


class Driver(Host):
    """The host of S0."""

    def __init__(self, state: NodeState, queue: WorkQueue, observers: Sequence[StepObserver] = ()) -> None:
        super().__init__(state, queue, observers)
        self._ledger = self._open_step(state.committed + 1)
        self._first_step = state.committed + 1
        self._unacknowledged: set[int] = set()
        self._waiting_for: list[int] | None = None
        self._is_stranded = False
        self._window = Window(state.manifest)
        self._drops = Drops()
        self._is_disturbed = True
        """Something is in this step's duration that the next one's lacks; a driver's first step has all beginnings."""
        self._step_began = self._commit_sent = state.now
        self._progress = ProgressReport(state)

    def _open_step(self, step: int) -> DriverLedger:
        return DriverLedger(step, self._state.manifest.step.microbatches, self._state.incarnation)

    @property
    def _block_stages(self) -> range:
        return range(1, self._state.manifest.stage_count)

    @property
    def step(self) -> int:
        return self._ledger.step

    @property
    def can_close(self) -> bool:
        """Nobody but us decides our step; what is to be taken over was taken over when it was heard of."""
        return False

    @property
    def is_done(self) -> bool:
        """The last step is decided, and every living stage has acknowledged it."""
        total = self._state.manifest.step.total_steps
        if not total or self._ledger.step <= total or not self._state.is_run_done:
            return False
        return not any(self._state.membership.is_present(stage) for stage in self._unacknowledged)

    @property
    def _is_last_step_decided(self) -> bool:
        total = self._state.manifest.step.total_steps
        return total > 0 and self._ledger.step > total

    # --- issuing ---

    def advance(self) -> None:
        """Issue what the window allows, if somebody serves every stage."""
        self._take_over_what_is_known()
        if self._is_last_step_decided:
            return
        missing = self._state.membership.missing(self._block_stages)
        self._say_what_is_missing(missing)
        if missing:
            self._is_stranded = self._is_disturbed = True
            return
        if self._is_stranded:
            self._is_stranded = False
            for index in self._ledger.in_flight:
                self._issue(index, "a stage was lost")
        while self._ledger.in_flight_count < self._window.size:
            upcoming = self._ledger.next_index
            if upcoming is None:
                break
            self._issue(upcoming)

    def _say_what_is_missing(self, missing: list[int]) -> None:
        if missing == self._waiting_for:
            return
        if missing:
            self._state.emit("swarm.waiting", stages=missing)
        else:
            self._state.emit("swarm.complete")
        self._waiting_for = missing

    def _issue(self, index: int, reason: str | None = None, *, is_late: bool = False) -> None:
        microbatch = Microbatch(self._ledger.step, index)
        if reason is not None:
            self._is_disturbed = True
            self._state.act(Discard(microbatch, self._ledger.attempt_of(index)))
            self.io.forget_attempts(index)
        timeout_s = self._state.manifest.step.microbatch_timeout_s
        attempt = self._ledger.issue(index, self._state.now, timeout_s, is_late=is_late)
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

    def on_tick(self) -> None:
        """Deadlines, commits that nobody acknowledged, stages that came or went."""
        if not self._is_stranded:
            for index in self._ledger.overdue(self._state.now):
                self._issue(index, "its deadline passed", is_late=True)
            self._reissue_dropped()
        if self._state.now - self._commit_sent >= self._state.manifest.timing.heartbeat_s:
            self.resend_commits()
        for observer in self._observers:
            observer.on_tick()
        self.advance()
        self.pump()

    def on_dropped(self, message: Dropped) -> None:
        """A stage lost what it sent on: nobody needs to wait for the deadline."""
        if message.step == self._ledger.step and not self._is_stranded:
            if self._ledger.is_under_way(message.index, message.attempt, is_gradient=message.is_gradient):
                self._drops.note(message.step, message.index, message.attempt, self._state.now)
            self._reissue_dropped()

    def on_send_failed(self, event: SendFailed) -> None:
        """We ourselves lost it. If S1 or Sn has no owner, or another one, everything is issued again anyway."""
        self.on_dropped(dropped(event.message))

    def _reissue_dropped(self) -> None:
        for index, attempt in self._drops.take_due(self._ledger.step, self._state.now):
            if self._ledger.is_current(index, attempt) and index in self._ledger.in_flight:
                self._issue(index, "it was lost on the way")

    def resend_commits(self) -> None:
        """Say the last commit to all who have not acknowledged it."""
        self._commit_sent = self._state.now
        for stage in sorted(self._unacknowledged):
            self._send_commit(stage)

    def owner_changed(self, stage: int) -> None:
        """The stage's new owner knows of nothing in flight: everything is issued again."""
        self._is_stranded = True
        super().owner_changed(stage)
        self.advance()

    # --- messages ---

    def on_forward(self, message: Forward, payload: Payload) -> None:
        """The last stage's activation."""
        if message.step == self._ledger.step and self._move(message, DriverPhase.OUTBOUND):
            self.io.queue.push(LossJob(message.microbatch, message.attempt, payload, is_counted=False))
            self.pump()

    def on_backward(self, message: Backward, payload: Payload) -> None:
        """The gradient came home to the embedding."""
        if message.step == self._ledger.step and self._move(message, DriverPhase.RETURNING):
            self.io.queue.push(BackwardJob(message.microbatch, message.attempt, payload, is_counted=False))
            self.pump()

    def on_stage_step(self, stage: int, step: int) -> None:
        """A stage says which step it committed last."""
        if step >= self._ledger.step - 1:
            self._unacknowledged.discard(stage)
        self.take_over(step)

    def _take_over_what_is_known(self) -> None:
        """A stage that committed our first step may have left since, or died: its record still says so."""
        if self._ledger.step == self._first_step:
            for seat in list(self._state.membership.seats.values()):
                if seat.stage != DRIVER_STAGE:
                    self.take_over(seat.step)

    def take_over(self, step: int) -> None:
        """Our predecessor decided our first step, and a stage knows of it: take it over, however far we are with it.

        What we counted of it is applied, the head's sum and the embedding's each for what it is. The stage
        that knows works on no microbatch of this step any more, so doing it again would never end. The run's
        first S0 has no predecessor: what is ahead of it belongs to a rival, after a split.
        """
        if self._state.incarnation > 1 and step == self._ledger.step == self._first_step:
            self._close_step()
            self.advance()

    def _move(self, message: Forward | Backward, before: DriverPhase) -> bool:
        return self._ledger.move(message.index, message.attempt, before)

    # --- work ---

    def pump(self) -> None:
        """Keep the compute thread busy."""
        while (job := self.io.queue.pop()) is not None:
            if isinstance(job, LossJob):
                job = replace(job, is_counted=self._ledger.count_head(job.microbatch.index))
            elif isinstance(job, BackwardJob):
                job = replace(job, is_counted=self._ledger.count_embedding(job.microbatch.index))
            self._state.act(Run(job))

    def on_job_done(self, done: JobDone) -> None:
        self.io.queue.finished()
        match done.job:
            case ForwardJob(microbatch, attempt):
                if self._is_due(done.job, attempt, DriverPhase.EMBED_DUE):
                    self._send_out(microbatch, attempt, done.result)
            case LossJob(microbatch, attempt):
                if self._is_due(done.job, attempt, DriverPhase.LOSS_DUE):
                    self._send_back(microbatch, attempt, done.result)
            case BackwardJob(_, attempt):
                if self._is_due(done.job, attempt, DriverPhase.BACKWARD_DUE):
                    self._came_home()
            case ApplyJob(step=step):
                self._on_applied(step, done.result)
        self.pump()

    def _is_due(self, job: Job, attempt: Attempt, phase: DriverPhase) -> bool:
        assert isinstance(job, ForwardJob | LossJob | BackwardJob)
        return job.microbatch.step == self._ledger.step and self._ledger.move(job.microbatch.index, attempt, phase)

    def _send_out(self, microbatch: Microbatch, attempt: Attempt, activation: Payload) -> None:
        message = Forward(microbatch.step, microbatch.index, attempt, self._state.stage, self._state.incarnation)
        self.io.deliver(self.io.route(microbatch.index)[0], message, activation)

    def _send_back(self, microbatch: Microbatch, attempt: Attempt, result: tuple[float, Payload]) -> None:
        loss, gradient = result
        self._ledger.losses[microbatch.index] = loss
        message = Backward(microbatch.step, microbatch.index, attempt, self._state.stage, self._state.incarnation)
        self.io.deliver(self.io.route(microbatch.index)[-1], message, gradient)

    def _came_home(self) -> None:
        if self._ledger.is_complete:
            self._commit()
        self.advance()

    # --- committing ---

    def _commit(self) -> None:
        manifest = self._state.manifest
        step, loss, not_finite = self._ledger.step, self._ledger.mean_loss, self._ledger.not_finite
        seconds = self._state.now - self._step_began
        tokens = manifest.tokens_per_step
        self._state.emit("step.committed", step=step, loss=loss, tokens=tokens, seconds=seconds)
        if not_finite:
            self._state.emit("loss.not_finite", step=step, microbatches=len(not_finite))
        if not self._is_disturbed and self._window.note(seconds):
            self._state.emit("window.settled", size=self._window.size)
        self._is_disturbed = False
        self._close_step()
        self._progress.committed(step, loss, tokens / seconds if seconds > 0 else 0.0)

    def _close_step(self) -> None:
        """Apply our own part, tell the stages, open the next step."""
        self._close(ApplyJob(self._ledger.step, self._ledger.counted, self._ledger.head_counted))
        self._ledger = self._open_step(self._ledger.step + 1)
        self.io.forget_before(self._ledger.step)
        self._step_began = self._state.now
        self._unacknowledged = set(self._block_stages)
        self.resend_commits()
        self.pump()

    def _send_commit(self, stage: int) -> None:
        self._state.send_to_stage(stage, Commit(self._state.incarnation, self._ledger.step - 1))
