"""One stage of an export on its way: whose it is, what its owner answered, what is here."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.protocol.ids import PeerId
from understudy.protocol.wire.messages import LeaseStatus
from understudy.protocol.wire.records import StageRecord


@dataclass(slots=True)
class StagePart:
    """One stage of the export on its way."""

    owner: StageRecord | None = None
    asked_at: float = float("-inf")
    answer: LeaseStatus | None = None
    """That the owner holds it."""
    is_fetching: bool = False
    digest: str = ""
    """Of what is there; empty: not yet."""
    failures: int = 0
    """Of the fetches from this owner."""
    silent_since: float = float("inf")
    """The owner was asked for this step then and has said nothing yet."""

    def is_owned_by(self, peer: PeerId, incarnation: int) -> bool:
        return self.owner is not None and (self.owner.peer, self.owner.incarnation) == (peer, incarnation)

    def has_owner(self, owner: StageRecord | None) -> bool:
        """Whether it is still this tenure, or still none."""
        if owner is None:
            return self.owner is None
        return self.is_owned_by(PeerId(owner.peer), owner.incarnation)

    def is_awaited(self, peer: PeerId, incarnation: int, digest: str) -> bool:
        """Whether these weights of this tenure are being fetched."""
        is_current = self.is_fetching and self.is_owned_by(peer, incarnation)
        return is_current and self.answer is not None and self.answer.digest == digest

    def ask_anew(self) -> None:
        """What the owner said counts no more: it is asked at once."""
        self.answer, self.is_fetching, self.asked_at = None, False, float("-inf")
