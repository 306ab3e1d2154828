"""What became of our own updates: the step we stand at, our norm, and updates that are skipped.

A gradient that is not finite updates nothing (node/compute/optimizer.py). That is said every time, and it is not
endured for ever: a stage whose numbers are broken spoils every other stage's gradients.
"""

from __future__ import annotations

from understudy.protocol.jobs import Applied
from understudy.protocol.node_state import NodeState

OWN_SKIPS_MAX = 5
"""Updates skipped in a row by which a stage that spoils the numbers itself ends: another peer may do better."""
SKIPS_MAX = 50
"""And one that only gets them from others: they had their time to be replaced."""


class Updates:
    """The account of a tenure's updates."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._in_a_row = self._own_in_a_row = 0

    def applied(self, step: int, result: Applied) -> None:
        """The compute thread is done with the update of a step."""
        state = self._state
        state.committed = step
        if not result.is_skipped:
            self._in_a_row = self._own_in_a_row = 0
            if result.squared_gradient_norm is not None:
                state.squared_gradient_norm = result.squared_gradient_norm
            return
        state.squared_gradient_norm = None
        self._in_a_row += 1
        self._own_in_a_row = self._own_in_a_row + 1 if result.is_own else 0
        state.emit("update.skipped", step=step, in_a_row=self._in_a_row, is_own=result.is_own)
        if self._own_in_a_row >= OWN_SKIPS_MAX:
            state.failure = self._reason(self._own_in_a_row, "by this node's own doing: check its hardware, and")
        elif self._in_a_row >= SKIPS_MAX:
            state.failure = self._reason(self._in_a_row, "the run has diverged:")

    def _reason(self, count: int, why: str) -> str:
        return (
            f"{count} updates of S{self._state.stage} in a row were not finite, {why} "
            "if it happens again found the run anew from an export, with a lower optimizer.learning_rate"
        )
