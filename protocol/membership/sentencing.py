"""An owner that lives and does not do its work: S0 says that it is dead, for as long as that helps.

All who would hear it and revive it are told again with every heartbeat (`Lost`), so that the recovery of a dead owner's
stage follows, with its witnesses and their grants. It is over when another serves the stage, when S0 is proved wrong
(`Sentence.is_over`), or after a while in which nobody claimed the stage: a sick owner may be better than none.
"""

from __future__ import annotations

from understudy.protocol.membership.failure_detector import FailureDetector
from understudy.protocol.membership.gossip import MembershipGossip
from understudy.protocol.membership.seats import Seat
from understudy.protocol.node_state import NodeState, Sentence
from understudy.protocol.wire.messages import Lost

AMNESTY_S = 30.0
"""A stage that nobody claimed for so long goes back to its owner."""


class Sentencing:
    """Carries out what S0 decided about owners (protocol/pipeline/watchman.py)."""

    def __init__(self, state: NodeState, detector: FailureDetector, gossip: MembershipGossip) -> None:
        self._state, self._detector, self._gossip = state, detector, gossip
        self._said_at = float("-inf")

    def on_tick(self) -> None:
        """Begin, go on or end."""
        if not self._state.sentences:
            return
        is_due = self._state.now - self._said_at >= self._state.manifest.timing.heartbeat_s
        self._said_at = self._state.now if is_due else self._said_at
        for stage, sentence in list(self._state.sentences.items()):
            seat = self._state.membership.tenure_or_displaced(stage, sentence.incarnation)
            if seat is None or self._state.tenure is None:
                del self._state.sentences[stage]
            elif self._is_over(stage, sentence):
                del self._state.sentences[stage]
                self._gossip.acquit(seat)
            else:
                self._uphold(seat, is_due=is_due)

    def _is_over(self, stage: int, sentence: Sentence) -> bool:
        is_claimed = self._state.membership.groups[stage].is_claim
        return sentence.is_over or (not is_claimed and self._state.now - sentence.since > AMNESTY_S)

    def _uphold(self, seat: Seat, *, is_due: bool) -> None:
        state = self._state
        if state.membership.suspect_by(seat.stage, seat.incarnation, state.me, state.now) is not None:
            self._gossip.declare_dead(seat)
        if is_due:
            self._detector.tell(Lost(seat.stage, seat.incarnation, seat.peer))
            state.send(seat.peer, Lost(seat.stage, seat.incarnation, seat.peer))
