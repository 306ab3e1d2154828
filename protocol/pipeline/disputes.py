"""Of two owners who contradict each other: which is to be replaced?

S0 cannot see between two peers: one says that it sent a tensor, or that what it was sent is not finite, and the other's
deeds say otherwise. One of them is replaced, and both are remembered. Who contradicts another peer after that is
replaced itself. So a liar costs an honest neighbour its stage at most once, and can never reach further than that.
"""

from __future__ import annotations

from understudy.protocol.ids import PeerId

PEERS_REMEMBERED = 256
"""With whom they were in contradiction; the oldest are forgotten."""


class Disputes:
    """Who was in contradiction with whom. Of one tenure of S0."""

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._opponents: dict[PeerId, set[PeerId]] = {}

    def loser(self, accused: PeerId, accuser: PeerId) -> PeerId:
        """Who of the two is to be replaced: the accused, unless its accuser was in contradiction with others before.

        We ourselves are never a party: we know what we sent and what came.
        """
        if self._me in (accused, accuser):
            return accuser if accused == self._me else accused
        is_known = bool(self._opponents.get(accuser, set()) - {accused})
        is_accused_known = bool(self._opponents.get(accused, set()) - {accuser})
        for one, other in ((accused, accuser), (accuser, accused)):
            self._opponents.setdefault(one, set()).add(other)
        while len(self._opponents) > PEERS_REMEMBERED:
            del self._opponents[next(iter(self._opponents))]
        return accuser if is_known and not is_accused_known else accused
