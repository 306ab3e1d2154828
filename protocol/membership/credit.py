"""How much the word of an accuser is worth to somebody who hears the accused.

An owner that one neighbour cannot reach is of no use to the run, so one accuser is enough to have it replaced. But one
who accuses others too, or its successor, tells more of itself than of them: it is cut off, or it lies. What such a one
says is not believed by those who hear the accused; S0 finds out who of the two keeps the work (pipeline/watchman.py).
"""

from __future__ import annotations

from understudy.protocol.ids import PeerId, Tenure

BELIEVED_S = 30.0
"""So long one accusation counts: by then a spare has taken the stage, or there is none."""
CREDIT_S = 600.0
"""Between two accusations of owners that we hear ourselves, by one peer."""


class Credit:
    """Whom each accuser brought down last, of those that we hear ourselves."""

    def __init__(self) -> None:
        self._last: dict[PeerId, tuple[Tenure, float]] = {}

    def is_good(self, accuser: PeerId, accused: Tenure, now: float) -> bool:
        """Whether to believe it. Takes note of it."""
        known, since = self._last.get(accuser, (accused, now))
        if now - since > CREDIT_S:
            known, since = accused, now
        self._last[accuser] = known, since
        return known == accused and now - since <= BELIEVED_S
