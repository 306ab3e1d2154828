"""How much a peer may say: a budget that fills with time. Time is an argument, in seconds of whatever clock."""

from __future__ import annotations

from collections.abc import Hashable


class TokenBucket:
    """Lets ``rate_per_s`` through for ever, and ``burst`` at once after a rest."""

    __slots__ = ("_burst_s", "_full_at", "_token_s")

    def __init__(self, rate_per_s: float, burst: float) -> None:
        self._token_s = 1.0 / rate_per_s
        self._burst_s = burst * self._token_s
        self._full_at = float("-inf")
        """When the bucket will be full again: all of its state."""

    def take(self, now: float) -> float:
        """Take one; how many seconds to wait before it may be used, 0 if none. Who waits has taken it."""
        full_at = max(self._full_at, now) + self._token_s
        self._full_at = full_at
        return max(0.0, full_at - now - self._burst_s)

    def may_take(self, now: float) -> bool:
        """Take one if it is there now."""
        full_at = max(self._full_at, now) + self._token_s
        if full_at - now > self._burst_s + self._token_s / 2:  # half a token: sums of floats are not exact
            return False
        self._full_at = full_at
        return True

    def is_full(self, now: float) -> bool:
        """It says nothing any more of who took from it."""
        return self._full_at <= now


NAMES_MAX = 1024
"""Budgets that are kept apart; what comes beyond it shares one."""


class Budgets:
    """One bucket for each name, as long as it is not full again. Names beyond `NAMES_MAX` share one."""

    def __init__(self, rate_per_s: float, burst: float) -> None:
        self._size = (rate_per_s, burst)
        self._buckets: dict[Hashable, TokenBucket] = {}
        self._shared = TokenBucket(rate_per_s, burst)

    def of(self, name: Hashable, now: float) -> TokenBucket:
        """The name's bucket, also for later."""
        bucket = self._buckets.get(name)
        if bucket is None and len(self._buckets) >= NAMES_MAX:
            self._buckets = {other: found for other, found in self._buckets.items() if not found.is_full(now)}
        if bucket is None and len(self._buckets) >= NAMES_MAX:
            return self._shared
        if bucket is None:
            bucket = self._buckets[name] = TokenBucket(*self._size)
        return bucket


LINES_BURST, LINES_PER_S = 5, 0.1
"""Lines of one kind about one peer: so many at once, then one every ten seconds."""
LINES_IN_ALL_BURST, LINES_IN_ALL_PER_S = 50, 1.0
"""Lines that peers can provoke, of all kinds about all peers."""


class Quiet:
    """Which of the lines that peers can provoke are written, and how many were not."""

    def __init__(self) -> None:
        self._budgets = Budgets(LINES_PER_S, LINES_BURST)
        self._all = TokenBucket(LINES_IN_ALL_PER_S, LINES_IN_ALL_BURST)
        self._suppressed = 0

    def admit(self, peer: str, kind: str, now: float) -> int | None:
        """How many lines were left out since the last that was written; None: leave this one out as well."""
        if not (self._budgets.of((peer, kind), now).may_take(now) and self._all.may_take(now)):
            self._suppressed += 1
            return None
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed
