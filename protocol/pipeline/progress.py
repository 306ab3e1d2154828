"""The driver's news of the run, in the DHT: for spares, for people, and for whoever missed the end."""

from __future__ import annotations

from understudy.protocol.actions import Store
from understudy.protocol.node_state import NodeState
from understudy.protocol.wire.records import ProgressRecord

PROGRESS_PERIOD_S = 1.0
"""The progress record is stored at most this often."""
FINAL_PROGRESS_LIFETIME_S = 3600.0
"""The last progress record stays longer, for those who come back late: the run is done."""


class ProgressReport:
    """What the driver says of the steps that it commits."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._stored_at = -PROGRESS_PERIOD_S

    def committed(self, step: int, loss: float | None, tokens_per_second: float, why_no_loss: str = "") -> None:
        """``step`` is decided. Its loss is the mean over the microbatches; None if one is not finite, and why."""
        total = self._state.manifest.step.total_steps
        tokens = step * self._state.manifest.tokens_per_step
        speed = tokens_per_second
        record = ProgressRecord(self._state.me, self._state.incarnation, step, loss, tokens, speed, why_no_loss)
        self._state.progress = record
        if self._state.now - self._stored_at < PROGRESS_PERIOD_S and step != total:
            return
        self._stored_at = self._state.now
        lifetime_s = FINAL_PROGRESS_LIFETIME_S if step == total else self._state.manifest.timing.record_lifetime_s
        self._state.act(Store(record, lifetime_s))
