"""How fast an owner does the work of its stage, by what its compute thread was busy with. For people."""

from __future__ import annotations

from understudy.protocol.events import JobDone
from understudy.protocol.ids import Tenure
from understudy.protocol.jobs import BackwardJob, ForwardJob, LossJob

WEIGHT = 1 / 16
"""Of the latest job of a kind in the mean of all before."""


class Pace:
    """Seconds that the compute thread takes for a microbatch, as means of its jobs of each kind."""

    def __init__(self) -> None:
        self._tenure: Tenure | None = None
        self._seconds: dict[type, float] = {}

    def note(self, tenure: Tenure | None, done: JobDone) -> None:
        """A job of this tenure is done. Another stage is another work."""
        if tenure != self._tenure:
            self._tenure, self._seconds = tenure, {}
        kind = type(done.job)
        if isinstance(done.job, ForwardJob | LossJob | BackwardJob) and done.seconds > 0:
            mean = self._seconds.get(kind, done.seconds)
            self._seconds[kind] = mean + WEIGHT * (done.seconds - mean)

    @property
    def microbatches_per_second(self) -> float:
        """Forward, back and what is between, if nothing is waited for; 0 before the first came all the way."""
        return round(1 / sum(self._seconds.values()), 3) if BackwardJob in self._seconds else 0.0
