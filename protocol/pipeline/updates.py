"""What became of our own updates: the step we stand at, our norm, and updates that are skipped.

What came in and is not finite is left out of the sum, and a gradient that is not finite all the same updates nothing
(node/compute). Both are said every time, and they are not endured for ever: a stage whose numbers are broken spoils
every other stage's gradients.
"""

from __future__ import annotations

from understudy.protocol.jobs import Applied
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.numbers import Spoilt

OWN_SKIPS_MAX = 5
"""Updates skipped in a row by which a stage that spoils the numbers itself ends: another peer may do better."""
SKIPS_MAX = 50
"""And one that only gets them from others: they had their time to be replaced."""


class Updates:
    """The account of a tenure's updates."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._in_a_row = self._own_in_a_row = 0

    def applied(self, step: int, result: Applied, first: Spoilt | None = None) -> None:
        """The compute thread is done with the update of a step; ``first``: what came in for it and was not finite."""
        state = self._state
        state.committed = step
        self._own_in_a_row = self._own_in_a_row + 1 if result.is_own else 0
        if result.left_out or result.is_skipped:
            self._report(step, result, first)
        else:
            self._in_a_row = 0
        if not result.is_skipped:
            if result.squared_gradient_norm is not None:
                state.squared_gradient_norm = result.squared_gradient_norm
        else:
            state.squared_gradient_norm = None
        if self._own_in_a_row >= OWN_SKIPS_MAX:
            state.failure = self._reason(self._own_in_a_row, "by this node's own doing: check its hardware, and")
        elif self._in_a_row >= SKIPS_MAX:
            state.failure = self._reason(self._in_a_row, "the run has diverged:")

    def _report(self, step: int, result: Applied, first: Spoilt | None) -> None:
        """``sender`` sent the first tensor that was not finite; None if there was none, or its tenure is over."""
        sender, stage = (first.sender.peer, first.sender.stage) if first and first.sender else (None, None)
        is_own, left_out = result.is_own, result.left_out
        if not result.is_skipped:
            self._in_a_row = 0
            self._state.emit(
                "update.reduced", step=step, is_own=is_own, left_out=left_out, sender=sender, sender_stage=stage
            )
            return
        self._in_a_row += 1
        self._state.emit(
            "update.skipped",
            step=step,
            in_a_row=self._in_a_row,
            is_own=is_own,
            left_out=left_out,
            sender=sender,
            sender_stage=stage,
        )

    def _reason(self, count: int, why: str) -> str:
        return (
            f"{count} updates of S{self._state.stage} in a row were not finite, {why} "
            "if it happens again found the run anew from an export, with a lower optimizer.learning_rate"
        )
