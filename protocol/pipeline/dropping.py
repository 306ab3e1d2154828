"""Microbatches that a stage lost on the way, and knows it: S0 need not wait for their deadline.

The first time a microbatch is issued again at once. If it is lost again the line is likely to blame, and to compute
the same without a pause would help nobody: then it waits 1 s, 2 s, 4 s, and 8 s from then on.
"""

from __future__ import annotations

from dataclasses import dataclass

from understudy.protocol.ids import Attempt
from understudy.protocol.wire.messages import Backward, DataMessage, Dropped

PAUSE_S = 1.0
"""From the second loss of a microbatch until it is issued again; doubles with each of the next three."""
DOUBLINGS_MAX = 3


@dataclass(slots=True)
class Loss:
    """What is known of one microbatch of the step."""

    attempt: Attempt
    """The last that was lost."""
    times: int
    due: float | None
    """When it is to be issued again; None: it was."""


def dropped(lost: DataMessage) -> Dropped:
    """What its sender tells S0 of a message that was lost."""
    is_gradient = isinstance(lost, Backward)
    return Dropped(lost.stage, lost.incarnation, lost.step, lost.index, lost.attempt, is_gradient)


class Drops:
    """S0's account of the losses of one step."""

    def __init__(self) -> None:
        self._step = 0
        self._losses: dict[int, Loss] = {}

    def note(self, step: int, index: int, attempt: Attempt, now: float) -> None:
        """A stage lost this attempt. To be told twice of one attempt is no news."""
        if step != self._step:
            self._step, self._losses = step, {}
        known = self._losses.get(index)
        if known is not None and attempt <= known.attempt:
            return
        times = known.times + 1 if known is not None else 0
        pause_s = PAUSE_S * 2 ** min(times - 1, DOUBLINGS_MAX) if times else 0.0
        self._losses[index] = Loss(attempt, times, now + pause_s)

    def take_due(self, step: int, now: float) -> list[tuple[int, Attempt]]:
        """The lost attempts of the step that are to be issued again now, each once."""
        if step != self._step:
            return []
        due = [(index, loss) for index, loss in self._losses.items() if loss.due is not None and loss.due <= now]
        for _, loss in due:
            loss.due = None
        return [(index, loss.attempt) for index, loss in due]
