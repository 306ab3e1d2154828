"""Nothing moves: who of the stages keeps a microbatch? S0's account of what it waits for, and what the stages say.

A heartbeat proves that an event loop runs, not that anything is computed. When S0 has nothing to do but wait, and
nothing came for much longer than a microbatch ever took, it asks the stages on the route of the oldest one where it
is. That leads to one stage, or to two that contradict each other (`find_stuck`). A finding counts for as long as it
stays the same; what adds up to the limit is declared. How a lie is dealt with: disputes.py.

Limits are measured against the whole way of a microbatch, on which every stage had its share: a stage that is 30 times
slower than all others makes the way as long as itself. A new owner has not been on it yet, so it has more time.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from understudy.protocol.ids import DRIVER_STAGE, Attempt, Microbatch
from understudy.protocol.manifest import RunManifest
from understudy.protocol.routing import Route
from understudy.protocol.wire.tensors import TensorHeader
from understudy.protocol.wire.watching import Place

FACTOR = 8.0
"""Of the median way of a microbatch: so long nothing may move. Half of it passes before anybody is asked. The median,
as one owner that takes its time now and then must not stretch what it is judged by."""
NEWCOMER_FACTOR = 32.0
"""The same for an owner that no microbatch came home from yet: it may be so much slower than all others together."""
BEGINNING_FACTOR = 4.0
"""Of `microbatch_timeout_s`, while no microbatch came home at all: nothing is known but what the founder said."""
FLOOR_FACTOR = 2.0
"""Of `dead_after_s`: below it nobody is blamed, however fast the swarm is."""
WAYS_REMEMBERED = 64
DISPUTED_ATTEMPTS_MIN = 3
"""So many attempts must be lost between the same two stages before one of them is blamed: a message may be lost."""
SLOW_BYTES_PER_S = 64 * 1024
"""On a line as slow as this a tensor that was sent may still be on its way."""

_REACHED_FORWARD: frozenset[Place] = frozenset({"forward due", "forwarded", "backward due", "finished"})
_REACHED_BACKWARD: frozenset[Place] = frozenset({"backward due", "finished"})
_IN_WORK: frozenset[Place] = frozenset({"forward due", "backward due"})


@dataclass(frozen=True, slots=True)
class Finding:
    """Who seems to keep a microbatch. ``contradicts``: another stage says that it sent it on; None: nobody has to."""

    stage: int
    contradicts: int | None = None


def find_stuck(route: Route, places: Mapping[int, Place], *, is_gradient: bool) -> Finding:
    """Follow the microbatch from S0 along its route, or back, by what the stages say of themselves.

    That it came is believed of every stage that says so, as that makes it the next to be asked what became of it. One
    that says nothing at all does not contradict anybody.
    """
    stops = tuple(reversed(route)) if is_gradient else tuple(route)
    reached = _REACHED_BACKWARD if is_gradient else _REACHED_FORWARD
    last = max((number for number, stage in enumerate(stops) if places.get(stage) in reached), default=-1)
    holder = stops[last] if last >= 0 else DRIVER_STAGE
    if last >= 0 and places[holder] in _IN_WORK:
        return Finding(holder)
    if last == len(stops) - 1:
        return Finding(holder, DRIVER_STAGE)  # we know that it did not come
    following = stops[last + 1]
    return Finding(following, holder) if following in places else Finding(following)


@dataclass(frozen=True, slots=True)
class Asked:
    """The microbatch that S0 waits for: the oldest, while all that are in flight are with the stages."""

    microbatch: Microbatch
    attempt: Attempt
    route: Route
    is_gradient: bool


@dataclass(slots=True)
class Inquiry:
    """What was found out since something moved last."""

    began: float
    asked_at: float = float("-inf")
    places: dict[int, tuple[Attempt, Place, float]] = field(default_factory=dict)
    """By stage: of which attempt it spoke last, what it said, and when."""
    seconds: dict[Finding, float] = field(default_factory=dict)
    attempts: dict[Finding, set[Attempt]] = field(default_factory=dict)


class Standstill:
    """How long nothing moved, how long that may be, and who is to blame. Time and answers in, questions out."""

    def __init__(self, manifest: RunManifest, now: float) -> None:
        self._manifest = manifest
        step, model = manifest.step, manifest.model
        tensor = TensorHeader(manifest.wire.dtype, (step.microbatch_size, model.context_length, model.hidden_size))
        self._crawl_s = math.prod(tensor.shape[:-1]) * tensor.row_bytes / SLOW_BYTES_PER_S
        self._ways: deque[float] = deque(maxlen=WAYS_REMEMBERED)
        """Seconds that the last microbatches took, from S0 and back."""
        self._issued: dict[int, float] = {}
        self._newcomers: set[int] = set()
        self._since = self._looked_at = now
        self._inquiry: Inquiry | None = None

    # --- what happens ---

    def issued(self, index: int, now: float) -> None:
        self._issued[index] = now

    def moved(self, now: float) -> None:
        """Something came from a stage."""
        self._since, self._inquiry = now, None

    def came_home(self, index: int, route: Route, now: float) -> None:
        """Every stage of the route had its share."""
        self._ways.append(now - self._issued.pop(index, now))
        self._newcomers -= set(route)

    def owner_changed(self, stage: int, now: float) -> None:
        self._newcomers.add(stage)
        self.moved(now)

    def note_answer(self, stage: int, attempt: Attempt, place: Place, now: float) -> None:
        if self._inquiry is not None:
            self._inquiry.places[stage] = (attempt, place, now)

    # --- what follows ---

    def look(self, asked: Asked | None, now: float) -> Finding | None:
        """Time passes. The finding that holds now, if any; ``asked`` None: it is S0 itself that has to work."""
        passed_s, self._looked_at = now - self._looked_at, now
        if asked is None or passed_s > self._manifest.timing.heartbeat_s:
            self._since += passed_s  # our own time, or time in which we did not run
            return None
        if now - self._since < self._quiet_s():
            return None
        self._inquiry = self._inquiry or Inquiry(now)
        finding = self._find(self._inquiry, asked, now)
        if finding is not None:
            self._inquiry.seconds[finding] = self._inquiry.seconds.get(finding, 0.0) + passed_s
            self._inquiry.attempts.setdefault(finding, set()).add(asked.attempt)
        return finding

    def is_time_to_ask(self, now: float) -> bool:
        """The question is due, again."""
        inquiry = self._inquiry
        if inquiry is None or now - inquiry.asked_at < self._manifest.timing.heartbeat_s:
            return False
        inquiry.asked_at = now
        return True

    def is_worth_another_try(self, finding: Finding, attempt: Attempt) -> bool:
        """Two contradict each other: what was between them may be lost, so it is issued again. Each attempt gets its
        share of the time.
        """
        inquiry = self._inquiry
        if inquiry is None or finding.contradicts is None:
            return False
        share_s = self._wanted_s(finding) / DISPUTED_ATTEMPTS_MIN
        tried = inquiry.attempts.get(finding, set())
        return attempt in tried and inquiry.seconds[finding] >= share_s * len(tried)

    def is_proven(self, finding: Finding) -> bool:
        """It held for long enough."""
        inquiry = self._inquiry
        if inquiry is None or inquiry.seconds.get(finding, 0.0) < self._wanted_s(finding):
            return False
        return finding.contradicts is None or len(inquiry.attempts[finding]) >= DISPUTED_ATTEMPTS_MIN

    def is_likely(self, finding: Finding) -> bool:
        """It held for half as long."""
        return self._inquiry is not None and self._inquiry.seconds.get(finding, 0.0) >= self._wanted_s(finding) / 2

    @property
    def seconds(self) -> float:
        """For how long nothing moved."""
        return self._looked_at - self._since

    def _find(self, inquiry: Inquiry, asked: Asked, now: float) -> Finding | None:
        """None while the answers of this moment cannot be all there."""
        fresh_s = 2 * self._manifest.timing.heartbeat_s
        fresh = {stage: said for stage, said in inquiry.places.items() if now - said[2] <= fresh_s}
        if now - inquiry.began < fresh_s or any(attempt != asked.attempt for attempt, _, _ in fresh.values()):
            return None
        return find_stuck(
            asked.route, {stage: place for stage, (_, place, _) in fresh.items()}, is_gradient=asked.is_gradient
        )

    def _limit_s(self, factor: float) -> float:
        floor_s = FLOOR_FACTOR * self._manifest.timing.dead_after_s
        if not self._ways:
            return max(floor_s, BEGINNING_FACTOR * self._manifest.step.microbatch_timeout_s)
        return max(floor_s, factor * statistics.median(self._ways))

    def _quiet_s(self) -> float:
        return self._limit_s(FACTOR) / 2

    def _wanted_s(self, finding: Finding) -> float:
        """For how long a finding must hold."""
        is_new = bool({finding.stage, finding.contradicts} & self._newcomers)
        limit_s = self._limit_s(NEWCOMER_FACTOR if is_new else FACTOR)
        if finding.contradicts is not None:
            limit_s = max(limit_s, DISPUTED_ATTEMPTS_MIN * self._crawl_s)
        return limit_s - self._quiet_s() - 2 * self._manifest.timing.heartbeat_s
