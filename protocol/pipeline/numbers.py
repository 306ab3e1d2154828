"""What came in, as numbers: was it finite, and about as large as ever? The account of one tenure, of its own findings.

The compute thread says of every tensor that comes how large it is (node/compute/magnitude.py). What is not finite is
noted with its sender, the first of each step for the events. A sender may only have passed on what it got itself:
who spoilt the numbers is for S0 to find out, from what all stages say (culprits.py).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

from understudy.protocol.events import JobDone
from understudy.protocol.ids import Microbatch, Tenure
from understudy.protocol.jobs import BackwardJob, ForwardJob, LossJob
from understudy.protocol.node_state import NodeState

SAMPLES = 32
"""Of one hop: their median is what is usual there. Half as many make a judgement."""
RATIO_MAX = 1000.0
"""Off by more than this, up or down, is worth a word. It may be honest (a recovery, a bad batch), so it is no more."""
STEPS_KEPT = 2
"""A microbatch's job may end after the step was closed; older findings are of no use."""

Hop = tuple[int, bool]
"""The stage that sends, and whether it sends gradients."""


@dataclass(frozen=True, slots=True)
class Spoilt:
    """A tensor came that is not finite."""

    microbatch: Microbatch
    is_gradient: bool
    sender: Tenure | None
    """None: its tenure was over when it came."""


class Numbers:
    """What a stage got from the stages beside it."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._usual: dict[Hop, deque[float]] = {}
        """Invariant: only finite magnitudes, the last `SAMPLES` of each hop."""
        self._told: dict[Hop, int] = {}
        """The step in which a hop's magnitude was last said to be strange."""
        self._spoilt: dict[int, Spoilt] = {}
        """The first of each step."""

    def note(self, done: JobDone) -> Spoilt | None:
        """A job is done. What came with it, if that is not finite."""
        job = done.job
        if done.came is None or not isinstance(job, ForwardJob | LossJob | BackwardJob):
            return None
        is_gradient = isinstance(job, BackwardJob)
        if not math.isfinite(done.came):
            return self._note_spoilt(Spoilt(job.microbatch, is_gradient, job.origin))
        if job.origin is not None:
            self._compare((job.origin.stage, is_gradient), done.came, job.microbatch.step, job.origin)
        return None

    def first_of(self, step: int) -> Spoilt | None:
        """What came first of the step and was not finite; older steps are forgotten."""
        self._spoilt = {known: spoilt for known, spoilt in self._spoilt.items() if known > step - STEPS_KEPT}
        return self._spoilt.get(step)

    def _note_spoilt(self, spoilt: Spoilt) -> Spoilt:
        self._spoilt.setdefault(spoilt.microbatch.step, spoilt)
        return spoilt

    def _compare(self, hop: Hop, came: float, step: int, origin: Tenure) -> None:
        """Strange magnitudes enter the median, too: what stays strange is usual after a while."""
        usual = self._usual.setdefault(hop, deque(maxlen=SAMPLES))
        median = statistics.median(usual) if len(usual) >= SAMPLES // 2 else 0.0
        usual.append(came)
        is_usual = median == 0.0 or median / RATIO_MAX <= came <= median * RATIO_MAX
        if is_usual or self._told.get(hop) == step:
            return
        self._told[hop] = step
        self._state.emit(
            "numbers.strange",
            step=step,
            sender=origin.peer,
            sender_stage=origin.stage,
            is_gradient=hop[1],
            magnitude=came,
            usual=median,
        )
