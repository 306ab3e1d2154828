"""The coordinator: opens and closes the steps of the run.

It gives out microbatches within a bounded window, decides a step when every one of them has come home, and tells
the stages. A death costs the microbatches in flight, not the step. Its edge host (edge_host.py) computes.
"""

from __future__ import annotations

from understudy.protocol.ids import DRIVER_STAGE
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.culprits import why_no_loss
from understudy.protocol.pipeline.edge_host import EdgeHost
from understudy.protocol.pipeline.ledger import StepLedger
from understudy.protocol.pipeline.progress import ProgressReport
from understudy.protocol.pipeline.window import Window
from understudy.protocol.wire.messages import Commit


class Coordinator:
    """Which microbatch is next, which step is decided, and who has heard of it."""

    def __init__(self, state: NodeState, edge: EdgeHost) -> None:
        self._state, self._edge = state, edge
        edge.coordinator = self
        self._ledger = self._open_step()
        self._first_step = edge.step
        self._unacknowledged: set[int] = set(self._block_stages) if edge.step > 1 else set()
        """Who has not said that it closed the last step. Our predecessor may have died before it told everybody."""
        self._waiting_for: list[int] | None = None
        self._window = Window(state.manifest)
        self._is_disturbed = True
        """Something is in this step's duration that the next one's lacks; the first step has all beginnings."""
        self._step_began, self._commit_sent = state.now, float("-inf")
        self._progress = ProgressReport(state)

    def _open_step(self) -> StepLedger:
        return StepLedger(self._edge.step, self._state.manifest.step.microbatches)

    @property
    def _block_stages(self) -> range:
        return range(1, self._state.manifest.stage_count)

    @property
    def is_done(self) -> bool:
        """The last step is decided, and every living stage has acknowledged it."""
        if not self._is_last_step_decided or not self._state.is_run_done:
            return False
        return not any(self._state.membership.is_present(stage) for stage in self._unacknowledged)

    @property
    def _is_last_step_decided(self) -> bool:
        total = self._state.manifest.step.total_steps
        return total > 0 and self._ledger.step > total

    # --- giving out ---

    def advance(self) -> None:
        """Have issued what the window allows, if somebody serves every stage."""
        self._take_over_what_is_known()
        if self._is_last_step_decided:
            return
        missing = self._state.membership.missing(self._block_stages)
        self._say_what_is_missing(missing)
        if missing:
            self._edge.is_stranded = self._is_disturbed = True
            return
        if self._edge.is_stranded:
            self._edge.resume()
        while self._ledger.in_flight_count < self._window.size:
            upcoming = self._ledger.give_out()
            if upcoming is None:
                break
            self._edge.issue(upcoming)

    def _say_what_is_missing(self, missing: list[int]) -> None:
        if missing == self._waiting_for:
            return
        if missing:
            self._state.emit("swarm.waiting", stages=missing)
        else:
            self._state.emit("swarm.complete")
        self._waiting_for = missing

    def on_tick(self) -> None:
        """Deadlines, commits that nobody acknowledged, stages that came or went."""
        self._edge.on_tick()
        if self._state.now - self._commit_sent >= self._state.manifest.timing.heartbeat_s:
            self.resend_commits()
        self.advance()
        self._edge.pump()

    # --- deciding ---

    def came_home(self, index: int, loss: float) -> None:
        """A microbatch is done; with the last one the step is decided."""
        self._ledger.came_home(index, loss)
        if self._ledger.is_complete:
            self._commit()
        self.advance()

    def _commit(self) -> None:
        step, loss = self._ledger.step, self._ledger.mean_loss
        seconds = self._state.now - self._step_began
        tokens = self._state.manifest.tokens_per_step
        why = why_no_loss(self._edge.watchman.culprits.first_of(step)) if self._ledger.not_finite else ""
        if not why:
            self._state.emit("step.committed", step=step, loss=loss, tokens=tokens, seconds=seconds)
        else:
            self._state.emit("step.committed", step=step, loss=loss, tokens=tokens, seconds=seconds, why_no_loss=why)
            self._state.emit("loss.not_finite", step=step, microbatches=len(self._ledger.not_finite), reason=why)
        is_disturbed = self._is_disturbed or self._edge.ledger.has_reissued
        if not is_disturbed and self._window.note(seconds):
            self._state.emit("window.settled", size=self._window.size)
        self._is_disturbed = False
        self._close_step()
        self._progress.committed(step, loss, tokens / seconds if seconds > 0 else 0.0, why)

    def _close_step(self) -> None:
        """Have our own part applied, tell the stages, open the next step."""
        self._edge.close_step()
        self._ledger = self._open_step()
        self._step_began = self._state.now
        self._unacknowledged = set(self._block_stages)
        self.resend_commits()
        self._edge.pump()

    def resend_commits(self) -> None:
        """Say the last commit to all who have not acknowledged it."""
        self._commit_sent = self._state.now
        for stage in sorted(self._unacknowledged):
            self._state.send_to_stage(stage, Commit(self._state.incarnation, self._ledger.step - 1))

    def on_stage_step(self, stage: int, step: int) -> None:
        """A stage says which step it committed last."""
        if step >= self._ledger.step - 1:
            self._unacknowledged.discard(stage)
        self.take_over(step)

    def _take_over_what_is_known(self) -> None:
        """A stage that committed our first step may have left since, or died: its record still says so."""
        if self._ledger.step == self._first_step:
            for seat in self._state.membership.seats():
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
