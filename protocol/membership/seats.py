"""A seat: what one node knows of a peer's tenure of a stage, and how an observation of it is called."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.membership.placement import Standing
from understudy.protocol.wire.fields import StageState


class Status(Enum):
    """What we believe of the owner of a stage."""

    ALIVE = auto()
    SUSPECT = auto()
    DEAD = auto()
    LEFT = auto()


class Observation(Enum):
    """What an observed tenure meant for the view."""

    KNOWN = auto()
    NEW_OWNER = auto()
    REVIVED = auto()
    SERVING = auto()
    """The known owner has finished recovering."""
    LEFT = auto()
    OVER = auto()
    """The known tenure is void: its owner gave the stage up, or started again and remembers nothing."""
    WITHDRAWN = auto()
    """The known claim is void: whoever held the stage before it is as it was."""
    PREMATURE = auto()
    """A claim on a stage whose owner lives, as far as we know: it counts for us once it serves."""
    UNPROVEN = auto()
    """It says that it has a stage that another trained, and shows no votes for it: we know nothing more than before."""
    OUTDATED = auto()
    """A better tenure of this stage is known: the speaker must be fenced."""


@dataclass(slots=True)
class Seat:
    """One member's tenure of a stage, as well as we know it."""

    stage: int
    peer: PeerId
    incarnation: int
    state: StageState
    step: int
    status: Status
    heard: float
    """When the owner last spoke to us, or when we began to listen."""
    spoke_at: float = float("-inf")
    """When the owner itself last said something to us; a record is no word."""
    died_at: float = float("-inf")
    """When it was last declared dead."""
    accused_until: dict[PeerId, float] = field(default_factory=dict)
    """Other owners say that it is dead; until then its own words do not revive it."""

    @property
    def is_present(self) -> bool:
        """Somebody is there, serving or recovering."""
        return self.status in (Status.ALIVE, Status.SUSPECT)

    @property
    def is_serving(self) -> bool:
        return self.is_present and self.state == "serving"

    @property
    def standing(self) -> Standing:
        """What decides between this tenure and another of the stage."""
        return Standing(self.incarnation, self.state, self.peer, self.step)

    @property
    def tenure(self) -> Tenure:
        return Tenure(self.stage, self.incarnation, self.peer)

    def is_tenure(self, peer: PeerId, incarnation: int) -> bool:
        return (self.peer, self.incarnation) == (peer, incarnation)

    def accusers(self, now: float) -> set[PeerId]:
        """Who says now that it is dead."""
        return {peer for peer, until in self.accused_until.items() if now < until}
