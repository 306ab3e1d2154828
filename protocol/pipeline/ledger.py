"""The accounts of one optimizer step: what was counted, which attempt is current.

One ledger for a block stage, one for an edge host, and the coordinator's of the whole step. They decide and
remember; they neither send nor compute. The rule that they keep: **the gradient of (step, index) is counted at most
once, whatever the attempt**, and nothing of an older attempt changes anything.
A little above 300 lines, because the two keep one rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto

from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.ids import Attempt
from understudy.protocol.pipeline.paths import Path


class Phase(Enum):
    """Where a microbatch's current attempt stands on a block stage."""

    FORWARD_DUE = auto()
    FORWARDED = auto()
    BACKWARD_DUE = auto()
    FINISHED = auto()


@dataclass(slots=True)
class StageEntry:
    attempt: Attempt
    phase: Phase
    path: Path = ()


class StageLedger:
    """A block stage's account of the step that it accumulates."""

    def __init__(self, step: int, microbatches: int) -> None:
        self.step = step
        self.counted: set[int] = set()
        """Invariant: an index enters at most once per step, when its backward work is started."""
        self._microbatches = microbatches
        self._driver_incarnation = 0
        """Invariant: every entry is of this driver. A new driver's attempts outdate all of its predecessor's."""
        self._entries: dict[int, StageEntry] = {}

    def is_outdated(self, driver_incarnation: int) -> bool:
        """A driver after this one works on our step: what this one decided or issued is over."""
        return driver_incarnation < self._driver_incarnation

    def recognise_driver(self, incarnation: int) -> None:
        """This is the run's driver: attempts in the name of a later one were of nobody."""
        if self._driver_incarnation > incarnation:
            self._driver_incarnation, self._entries = incarnation, {}

    @property
    def is_full(self) -> bool:
        """Every microbatch of the step is counted here."""
        return len(self.counted) == self._microbatches

    def attempt_of(self, index: int) -> Attempt | None:
        return entry.attempt if (entry := self._entries.get(index)) else None

    def path_of(self, index: int) -> Path:
        return self._entries[index].path

    def is_current(self, index: int, attempt: Attempt) -> bool:
        return self.attempt_of(index) == attempt

    def phase_of(self, index: int, attempt: Attempt) -> Phase | None:
        """Where the attempt stands; None if it is not the current one."""
        entry = self._entries.get(index)
        return entry.phase if entry is not None and entry.attempt == attempt else None

    def outdated_by(self, index: int, attempt: Attempt) -> list[tuple[int, Attempt]]:
        """The current attempts that end when this one is accepted: (index, attempt).

        Of the same driver its own only, so that a step costs no more per microbatch when it has many.
        """
        if attempt.driver_incarnation > self._driver_incarnation:
            return [(other, entry.attempt) for other, entry in self._entries.items()]
        current = self.attempt_of(index)
        return [] if current is None else [(index, current)]

    def accept_forward(self, index: int, attempt: Attempt, path: Path = ()) -> bool:
        """Whether an activation is of a newer attempt than all before; if so it is the current one."""
        current = self.attempt_of(index)
        if attempt.driver_incarnation < self._driver_incarnation or (current is not None and attempt <= current):
            return False
        if attempt.driver_incarnation > self._driver_incarnation:
            self._driver_incarnation = attempt.driver_incarnation
            self._entries = {}
        self._entries[index] = StageEntry(attempt, Phase.FORWARD_DUE, path)
        return True

    def finish_forward(self, index: int, attempt: Attempt) -> bool:
        """The forward work is done. False: the result is outdated, nobody waits for it."""
        return self._move(index, attempt, Phase.FORWARD_DUE, Phase.FORWARDED)

    def accept_backward(self, index: int, attempt: Attempt) -> bool:
        """Whether a gradient belongs to the current attempt and was not there before."""
        return self._move(index, attempt, Phase.FORWARDED, Phase.BACKWARD_DUE)

    def count(self, index: int) -> bool:
        """Called when backward work is started: True if its gradient is to enter the stage's sum."""
        is_new = index not in self.counted
        self.counted.add(index)
        return is_new

    def has_sent(self, index: int, attempt: Attempt, *, is_gradient: bool) -> bool:
        """Whether the activation or gradient of the current attempt is the last that happened to it here."""
        entry = self._entries.get(index)
        last = Phase.FINISHED if is_gradient else Phase.FORWARDED
        return entry is not None and entry.attempt == attempt and entry.phase is last

    def finish_backward(self, index: int, attempt: Attempt) -> bool:
        """The backward work is done. False: the result is outdated."""
        return self._move(index, attempt, Phase.BACKWARD_DUE, Phase.FINISHED)

    def advance(self) -> int:
        """Close the step and open the next. Returns how many microbatches were counted."""
        counted = len(self.counted)
        self.step += 1
        self.counted = set()
        self._entries = {}
        return counted

    def _move(self, index: int, attempt: Attempt, before: Phase, after: Phase) -> bool:
        entry = self._entries.get(index)
        if entry is None or entry.attempt != attempt or entry.phase is not before:
            return False
        entry.phase = after
        return True


DOUBLINGS_MAX = 6
"""A microbatch is given at most 64 times its first time, or one bad hour would cost days."""


class EdgePhase(Enum):
    """Where a microbatch's current attempt stands on S0."""

    EMBED_DUE = auto()
    OUTBOUND = auto()
    LOSS_DUE = auto()
    RETURNING = auto()
    BACKWARD_DUE = auto()
    DONE = auto()


EDGE_ORDER = dict(zip(list(EdgePhase), list(EdgePhase)[1:], strict=False))


@dataclass(slots=True)
class EdgeEntry:
    attempt: Attempt
    phase: EdgePhase
    deadline: float
    times_late: int
    path: Path = ()


class EdgeLedger:
    """An edge host's account of the microbatches of a step that it issued: which attempt is where.

    S0 has two sums, the head's (counted with the loss) and the embedding's (counted when the
    gradient has come home); each counts a microbatch once.
    """

    def __init__(self, step: int, incarnation: int) -> None:
        self.step = step
        self.incarnation = incarnation
        self.losses: dict[int, float] = {}
        """Of each microbatch's last attempt that came so far."""
        self.has_reissued = False
        self._entries: dict[int, EdgeEntry] = {}
        self._in_flight: dict[int, None] = {}
        """Invariant: the indexes whose entry is not done, in the order of their first issue."""
        self._head_counted: set[int] = set()
        self._embedding_counted: set[int] = set()

    @property
    def in_flight(self) -> list[int]:
        return list(self._in_flight)

    def attempt_of(self, index: int) -> Attempt:
        return self._entries[index].attempt

    def phase_of(self, index: int) -> EdgePhase:
        return self._entries[index].phase

    def path_of(self, index: int) -> Path:
        """The peers that its current attempt visits, or the last one did; empty before the first."""
        entry = self._entries.get(index)
        return entry.path if entry is not None else ()

    def set_path(self, index: int, path: Path) -> None:
        """Where the current attempt is sent, or has been."""
        self._entries[index].path = path

    def is_current(self, index: int, attempt: Attempt) -> bool:
        entry = self._entries.get(index)
        return entry is not None and entry.attempt == attempt

    def is_under_way(self, index: int, attempt: Attempt, *, is_gradient: bool) -> bool:
        """Whether the current attempt is among the stages, on the way that was named."""
        entry = self._entries.get(index)
        phase = EdgePhase.RETURNING if is_gradient else EdgePhase.OUTBOUND
        return entry is not None and entry.attempt == attempt and entry.phase is phase

    def issue(self, index: int, now: float, timeout_s: float, *, is_late: bool = False) -> Attempt:
        """Start the next attempt of a microbatch.

        The time allowed doubles with every second one that was late: what was lost looks like what is slow, until it
        is tried again with the same time.
        """
        previous = self._entries.get(index)
        if previous is not None and previous.phase is EdgePhase.DONE:
            raise LocalProtocolError(f"microbatch {index} of step {self.step} is done: there is nothing to re-issue")
        self.has_reissued |= previous is not None
        attempt = Attempt(self.incarnation, previous.attempt.counter + 1 if previous else 0)
        times_late = (previous.times_late if previous else 0) + is_late
        deadline = now + timeout_s * 2 ** min((times_late + 1) // 2, DOUBLINGS_MAX)
        self._entries[index] = EdgeEntry(attempt, EdgePhase.EMBED_DUE, deadline, times_late)
        self._in_flight[index] = None
        return attempt

    def overdue(self, now: float) -> list[int]:
        """Microbatches in flight whose deadline has passed."""
        return [index for index in self._in_flight if self._entries[index].deadline <= now]

    def move(self, index: int, attempt: Attempt, before: EdgePhase) -> bool:
        """Move the current attempt on from a phase. False: it is outdated, repeated or unknown."""
        entry = self._entries.get(index)
        if entry is None or entry.attempt != attempt or entry.phase is not before:
            return False
        entry.phase = EDGE_ORDER[before]
        if entry.phase is EdgePhase.DONE:
            del self._in_flight[index]
        return True

    def count_head(self, index: int) -> bool:
        """True if this microbatch's head gradient is to enter the sum."""
        is_new = index not in self._head_counted
        self._head_counted.add(index)
        return is_new

    def count_embedding(self, index: int) -> bool:
        """True if this microbatch's embedding gradient is to enter the sum."""
        is_new = index not in self._embedding_counted
        self._embedding_counted.add(index)
        return is_new

    @property
    def counted(self) -> int:
        """Microbatches in the embedding's sum."""
        return len(self._embedding_counted)

    @property
    def head_counted(self) -> int:
        """Microbatches in the head's sum: as many, unless the step is closed before all came home."""
        return len(self._head_counted)


class StepLedger:
    """The coordinator's account of a step: what was given out, and what came home with which loss."""

    def __init__(self, step: int, microbatches: int) -> None:
        self.step = step
        self._microbatches = microbatches
        self._given_out = 0
        self._losses: dict[int, float] = {}
        """Of the microbatches that came home."""

    @property
    def in_flight_count(self) -> int:
        return self._given_out - len(self._losses)

    def give_out(self) -> int | None:
        """The next microbatch, which is in flight from now on; None: all were given out."""
        if self._given_out == self._microbatches:
            return None
        self._given_out += 1
        return self._given_out - 1

    def came_home(self, index: int, loss: float) -> None:
        self._losses[index] = loss

    @property
    def is_complete(self) -> bool:
        """Every microbatch of the step has come home."""
        return len(self._losses) == self._microbatches

    @property
    def mean_loss(self) -> float | None:
        """Over all microbatches; None if the loss of one is not finite."""
        return None if self.not_finite else math.fsum(self._losses.values()) / len(self._losses)

    @property
    def not_finite(self) -> list[int]:
        """The microbatches whose loss is not finite."""
        return [index for index, loss in self._losses.items() if not math.isfinite(loss)]
