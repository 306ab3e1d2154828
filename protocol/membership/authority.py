"""Whose words count: how far a number may rise by a word, and who must say that a tenure is over.

Until grants are signed nobody can prove a tenure. So a word is worth what its speaker stands for: an owner speaks of
its own tenure; what concerns another's takes two owners, as one may be wrong; numbers that fence others rise slowly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sized

from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import TimingSettings
from understudy.protocol.membership.seats import Seat

RISE_MAX = 16
"""Incarnations by which one word lets what we know of a stage rise at any time: claims that came to nothing."""
LEAP_MAX = 2**32
"""By so many once in `record_lifetime_s`: who comes late or was cut off missed the numbers between. No word brings a
stage near the last number that there is: that would take 2^21 leaps, a year."""
VOUCHERS_MIN = 2
"""One owner may be wrong, or lie: of so many others' words, or of all if there are fewer, what is nobody's own."""
OWNERS_REMEMBERED = 8
"""Former tenures of a stage: more than a split makes."""

APART_S = 60.0
"""So long after an owner came back there may be two sides that do not yet know of each other."""


class Incarnations:
    """The highest incarnation of each stage that we know of, and how far a word may raise it."""

    def __init__(self, timing: TimingSettings) -> None:
        self._lifetime_s = timing.record_lifetime_s
        self._floor: dict[int, int] = {}
        self._leapt_at: dict[int, float] = {}

    def known(self, stage: int) -> int:
        """0 if it was never owned."""
        return self._floor.get(stage, 0)

    def may_rise(self, stage: int, incarnation: int, now: float) -> bool:
        """Whether this incarnation can be: an honest one is never far beyond what all know for long."""
        rise = incarnation - self.known(stage)
        if rise <= RISE_MAX:
            return True
        return rise <= LEAP_MAX and now - self._leapt_at.get(stage, float("-inf")) > self._lifetime_s

    def rise(self, stage: int, incarnation: int, now: float) -> bool:
        """Somebody who may say so knows of this incarnation. False: it cannot be, and nothing is remembered of it."""
        if not self.may_rise(stage, incarnation, now):
            return False
        if incarnation - self.known(stage) > RISE_MAX:
            self._leapt_at[stage] = now
        self._floor[stage] = max(incarnation, self.known(stage))
        return True


class FormerOwners:
    """The last tenures of each stage that we knew to serve, and which of them came back after we took them for gone.

    Who was cut off, and who was not, both see owners come back. It takes one to believe that there are two sides, each
    with owners of its own that the other never heard of; else whoever wants an owner's place has to wait for its end.
    """

    def __init__(self, timing: TimingSettings) -> None:
        self._lifetime_s = timing.record_lifetime_s
        self._served: dict[int, dict[tuple[PeerId, int], float]] = {}
        """By stage: (peer, incarnation), and when it was replaced; infinity while it was not."""
        self._returned: dict[PeerId, float] = {}

    def note(self, seat: Seat) -> None:
        """The tenure serves."""
        if seat.state == "serving" and not self.has_served(seat):
            served = self._served.setdefault(seat.stage, {})
            served[seat.peer, seat.incarnation] = float("inf")
            for oldest in list(served)[:-OWNERS_REMEMBERED]:
                del served[oldest]

    def note_replaced(self, seats: Iterable[Seat], now: float) -> None:
        """Others hold their place from now on."""
        for seat in seats:
            if self.has_served(seat):
                self._served[seat.stage][seat.peer, seat.incarnation] = now

    def has_served(self, seat: Seat) -> bool:
        """This very tenure."""
        return self.served_under(seat.stage, seat.peer, seat.incarnation)

    def served_under(self, stage: int, peer: PeerId, incarnation: int) -> bool:
        return (peer, incarnation) in self._served.get(stage, {})

    def is_owner(self, peer: PeerId) -> bool:
        """The peer serves a stage, or did when we last knew."""
        return any(peer == owner for served in self._served.values() for owner, _ in served)

    def note_return(self, peer: PeerId, now: float) -> None:
        """An owner that we took for dead is there."""
        recent = {other: at for other, at in self._returned.items() if now - at <= APART_S}
        self._returned = {**recent, peer: now}

    def note_outdated(self, seat: Seat, *, is_direct: bool) -> None:
        """A tenure that was replaced is heard of. A record of it may be old, unless it is older than any can be."""
        replaced_at = self._served.get(seat.stage, {}).get((seat.peer, seat.incarnation), float("inf"))
        if replaced_at < seat.heard and (is_direct or seat.heard - replaced_at > self._lifetime_s):
            self.note_return(seat.peer, seat.heard)

    def were_apart(self, now: float, besides: Collection[PeerId]) -> bool:
        """Others than these came back lately."""
        return any(now - at <= APART_S for peer, at in self._returned.items() if peer not in besides)


def is_vouched(vouchers: Sized, others: int) -> bool:
    """Whether enough of the other owners say what none of them could say alone."""
    return len(vouchers) >= max(1, min(VOUCHERS_MIN, others))
