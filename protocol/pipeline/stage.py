"""A block stage, one of S1..Sn: jobs to the compute thread, results to the next stage of a microbatch's route.

protocol/pipeline/edge_host.py is the other kind, S0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from understudy.protocol.actions import Discard, Run
from understudy.protocol.events import JobDone, SendFailed
from understudy.protocol.ids import DRIVER_STAGE, Attempt, Microbatch, PeerId
from understudy.protocol.jobs import ApplyJob, BackwardJob, ForwardJob, Job, Payload
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.dropping import dropped
from understudy.protocol.pipeline.host import Host
from understudy.protocol.pipeline.ledger import Phase, StageLedger
from understudy.protocol.pipeline.numbers import Spoilt
from understudy.protocol.pipeline.observer import StepObserver
from understudy.protocol.pipeline.paths import joined
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.routing import following, preceding
from understudy.protocol.wire.messages import Backward, Commit, CommitAck, Forward
from understudy.protocol.wire.watching import Here, NotFinite, Place, Where

PLACES: dict[Phase, Place] = {
    Phase.FORWARD_DUE: "forward due",
    Phase.FORWARDED: "forwarded",
    Phase.BACKWARD_DUE: "backward due",
    Phase.FINISHED: "finished",
}
"""What S0 is told of an attempt, if it asks."""


class BlockStage(Host):
    """The host of one of S1..Sn: receives activations and gradients, computes, passes on, commits."""

    def __init__(self, state: NodeState, queue: WorkQueue, observers: Sequence[StepObserver] = ()) -> None:
        super().__init__(state, queue, observers)
        self._ledger = StageLedger(state.committed + 1, state.manifest.step.microbatches)
        self._first_step = self._ledger.step
        self._early: dict[int, tuple[Forward, Payload]] = {}
        """By index, activations of the next step that came before the driver said that ours is decided."""

    @property
    def has_counted_all(self) -> bool:
        return self._ledger.is_full

    @property
    def step(self) -> int:
        """The step being accumulated; all before are committed, their update queued or applied."""
        return self._ledger.step

    @property
    def can_close(self) -> bool:
        """The step may be decided as far as we know: every microbatch passed us, or some did before our time.

        If not, whoever says that it is decided speaks of a step that others made without us, after a split.
        """
        return self._ledger.is_full or self._ledger.step == self._first_step

    def owner_changed(self, stage: int) -> None:
        super().owner_changed(stage)
        self._recognise_driver()

    def owner_revived(self, stage: int) -> None:
        super().owner_revived(stage)
        self._recognise_driver()

    def _recognise_driver(self) -> None:
        """While there was none, attempts in the name of any could come."""
        driver = self._state.membership.groups.get(DRIVER_STAGE)
        if driver is not None and driver.is_serving:
            self._ledger.recognise_driver(driver.incarnation)

    # --- messages ---

    def on_forward(self, message: Forward, payload: Payload) -> None:
        if self._ledger.is_outdated(message.attempt.driver_incarnation) or not self._is_of_driver(message.attempt):
            return
        if self._is_early(message):
            self._keep_early(message, payload)
            return
        self._reach(message.step)
        if message.step == self._state.committed:
            self._tell_driver()
        outdated = self._ledger.outdated_by(message.index, message.attempt)
        path = joined(message.path, self.io.route(message.index), self._state.stage, self._state.me)
        if message.step != self._ledger.step or not self._ledger.accept_forward(message.index, message.attempt, path):
            return
        for index, attempt in outdated:
            self.io.forget_attempts(index)
            self._state.act(Discard(Microbatch(message.step, index), attempt))
        self.io.queue.push(ForwardJob(message.microbatch, message.attempt, payload, self.origin_of(message)))
        self.pump()

    def _is_of_driver(self, attempt: Attempt) -> bool:
        """Whether the driver that we know could have issued it. While none is there, its successor may be at work."""
        driver = self._state.membership.groups.get(DRIVER_STAGE)
        return driver is None or not driver.is_serving or attempt.driver_incarnation <= driver.incarnation

    def _is_early(self, message: Forward) -> bool:
        """It is of the next step, and not from the driver, whose commit it overtook: it waits here for that.

        That ours is decided we take from the driver alone, as long as there is one.
        """
        is_next = message.step == self._ledger.step + 1 and message.stage != DRIVER_STAGE
        return is_next and self._state.membership.is_serving(DRIVER_STAGE)

    def _keep_early(self, message: Forward, payload: Payload) -> None:
        """Of each microbatch the newest attempt, and no more microbatches than S0 has in flight at a time."""
        known = self._early.get(message.index)
        has_room = known is not None or len(self._early) < self._state.manifest.window
        if has_room and (known is None or known[0].attempt < message.attempt):
            self._early[message.index] = (message, payload)

    def _take_early(self) -> None:
        early, self._early = self._early, {}
        for message, payload in early.values():
            self.on_forward(message, payload)

    def on_backward(self, message: Backward, payload: Payload) -> None:
        if message.step != self._ledger.step or not self._ledger.accept_backward(message.index, message.attempt):
            return
        origin = self.origin_of(message)
        self.io.queue.push(BackwardJob(message.microbatch, message.attempt, payload, is_counted=False, origin=origin))
        self.pump()

    def on_send_failed(self, event: SendFailed) -> None:
        """What we passed on was lost. If it matters still, another owner gets it, or S0 issues the microbatch again.

        A new owner has no use for a gradient: it did not see the activation, and S0 issues everything again anyway.
        """
        lost, is_gradient = event.message, isinstance(event.message, Backward)
        if lost.step != self._ledger.step or not self._ledger.has_sent(
            lost.index, lost.attempt, is_gradient=is_gradient
        ):
            return
        towards = preceding if is_gradient else following
        stage = towards(self.io.route(lost.index), self._state.stage)
        owner = self._state.membership.serving_peer(stage)
        if owner == event.peer:
            self._state.send_to_stage(DRIVER_STAGE, dropped(lost))
        elif owner is None or not is_gradient:
            self.io.deliver(stage, lost, event.payload)

    def on_commit(self, peer: PeerId, message: Commit) -> None:
        """The driver's word. It is acknowledged once applied, and again if the driver asks again.

        If a later driver does our step again, the word of the one before is over, although it was true: who
        followed it alone would leave the step that all others are at.
        """
        if self._ledger.is_outdated(message.incarnation):
            return
        self._reach(message.step + 1)
        if message.step <= self._state.committed:
            self._acknowledge(peer)

    def on_neighbour_step(self, step: int) -> None:
        """A neighbour committed ``step``: if all our microbatches are counted, the commit reached us late."""
        if step == self._ledger.step and self._ledger.is_full:
            self._reach(step + 1)

    def on_end(self, last_step: int) -> None:
        """The driver left with the last step decided: no commit comes any more, and what we counted of it is all."""
        if last_step == self._ledger.step:
            self._reach(last_step + 1)

    def _reach(self, step: int) -> None:
        """A message of step s + 1 implies that s is committed. No stage can be two steps behind."""
        if step != self._ledger.step + 1 or not self.can_close:
            return
        closing = self._ledger.step
        counted = self._ledger.advance()
        self.io.forget_before(self._ledger.step)
        self._close(ApplyJob(closing, counted))
        self._take_early()
        self.pump()

    def _tell_driver(self) -> None:
        """The step is applied here. A new driver may not know that its predecessor decided it, and do it again."""
        driver = self._state.membership.serving_peer(DRIVER_STAGE)
        if driver is not None:
            self._acknowledge(driver)

    def _acknowledge(self, driver: PeerId) -> None:
        self._state.send(driver, CommitAck(self._state.stage, self._state.incarnation, self._state.committed))

    # --- work ---

    def pump(self) -> None:
        """Keep the compute thread busy."""
        while (job := self.io.queue.pop()) is not None:
            if isinstance(job, BackwardJob):
                job = replace(job, is_counted=self._ledger.count(job.microbatch.index))
            self._state.act(Run(job))

    def on_job_done(self, done: JobDone) -> None:
        spoilt = self.finished(done)
        if spoilt is not None:
            self._say_not_finite(spoilt)
        match done.job:
            case ForwardJob() | BackwardJob():
                self._pass_on(done.job, done.result)
            case ApplyJob(step=step):
                self._on_applied(step, done.result)
                self._tell_driver()
        self.pump()

    def _say_not_finite(self, spoilt: Spoilt) -> None:
        """S0 finds out from all such words who was the first to send it."""
        microbatch, tenure = spoilt.microbatch, (self._state.stage, self._state.incarnation)
        word = NotFinite(*tenure, microbatch.step, microbatch.index, spoilt.is_gradient)
        self._state.send_to_stage(DRIVER_STAGE, word)

    def on_where(self, peer: PeerId, message: Where) -> None:
        """S0 waits, and asks where a microbatch is."""
        if peer == self._state.membership.serving_peer(DRIVER_STAGE):
            is_open = message.step == self._ledger.step
            phase = self._ledger.phase_of(message.index, message.attempt) if is_open else None
            place = PLACES[phase] if phase is not None else "unknown"
            tenure = (self._state.stage, self._state.incarnation)
            self._state.send(peer, Here(*tenure, message.step, message.index, message.attempt, place))

    def _pass_on(self, job: Job, result: Payload) -> None:
        assert isinstance(job, ForwardJob | BackwardJob)
        microbatch, attempt = job.microbatch, job.attempt
        is_forward = isinstance(job, ForwardJob)
        finish = self._ledger.finish_forward if is_forward else self._ledger.finish_backward
        if microbatch.step != self._ledger.step or not finish(microbatch.index, attempt):
            return
        kind, towards = (Forward, following) if is_forward else (Backward, preceding)
        path = self._ledger.path_of(microbatch.index)
        message = kind(microbatch.step, microbatch.index, attempt, self._state.stage, self._state.incarnation, path)
        stage = towards(self.io.route(microbatch.index), self._state.stage)
        self.io.deliver(stage, message, result)
