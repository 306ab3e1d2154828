"""How much the word of an accuser is worth to somebody who hears the accused.

An owner that one neighbour cannot reach is of no use to the run, so one accuser is enough to have it replaced. But one
who accuses others too, or its successor, tells more of itself than of them: it is cut off, or it lies. What such a one
says is not believed by those who hear the accused; S0 finds out who of the two keeps the work (pipeline/watchman.py).
Who accuses more owners than may be lost with a majority left is believed by nobody: so many lost are not recovered.
"""

from __future__ import annotations

from understudy.protocol.ids import PeerId, Tenure

BELIEVED_S = 10.0
"""So long one accusation counts: by then a spare has taken the stage, or there is none."""
CREDIT_S = 600.0
"""Between two accusations of owners that we hear ourselves, by one peer."""


class Credit:
    """Whom each accuser brought down last, of those that we hear ourselves, and whom it accuses now."""

    def __init__(self, stage_count: int) -> None:
        self._lost_max = max(1, (stage_count - 1) // 2)
        self._accused: dict[PeerId, dict[int, tuple[int, float]]] = {}
        """By accuser and stage: the incarnation, and until when that counts."""
        self._last: dict[PeerId, tuple[Tenure, float]] = {}

    def overreach(self, accuser: PeerId, accused: tuple[int, int], now: float, until: float) -> list[tuple[int, int]]:
        """Take note of an accusation of (stage, incarnation). All that it accuses, if that is too much."""
        stage, incarnation = accused
        known = self._accused.setdefault(accuser, {})
        known[stage] = (incarnation, until)
        self._accused[accuser] = known = {other: word for other, word in known.items() if word[1] > now}
        said = [(other, said_incarnation) for other, (said_incarnation, _) in known.items()]
        return said if len(said) > self._lost_max else []

    def is_good(self, accuser: PeerId, accused: Tenure, now: float) -> bool:
        """Whether to believe it. Takes note of it."""
        known, since = self._last.get(accuser, (accused, now))
        if now - since > CREDIT_S:
            known, since = accused, now
        self._last[accuser] = known, since
        return known == accused and now - since <= BELIEVED_S
