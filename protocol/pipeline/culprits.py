"""Who spoils the numbers? S0's account of a step, from what all stages say came to them.

Every stage that gets NaN passes NaN on, so many will say that they got it. The first of them on the microbatch's way
says it of whom nobody says it: the one before it made the NaN, or it lies about that one. Which of the two is replaced,
if it goes on, is a matter for disputes.py; a stage in the middle can blame nobody but the two beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.pipeline.paths import Members
from understudy.protocol.routing import Route, following, preceding

SPOILT_STEPS_MAX = 3
"""Steps in a row that one peer spoils until it is to be replaced. One may be bad text."""


@dataclass(frozen=True, slots=True)
class Blame:
    """Who sent the first tensor of a microbatch that is not finite, and who says so."""

    accused: PeerId
    accused_stage: int
    accuser: PeerId
    accuser_stage: int


def hop_number(route: Route, receiver: int, *, is_gradient: bool) -> int:
    """Which of its hops brings a microbatch to ``receiver``: 0 leads to the route's first stage, the last one home.

    Raises ValueError if the stage is not on the route.
    """
    if not is_gradient:
        return len(route) if receiver == DRIVER_STAGE else route.index(receiver)
    return 2 * len(route) + 1 if receiver == DRIVER_STAGE else 2 * len(route) - route.index(receiver)


class Culprits:
    """What was said of the step that is open and of the one before: a word may come after the commit."""

    def __init__(self, me: PeerId, members: Members) -> None:
        self._me, self._members = me, members
        self._first: dict[tuple[int, int], tuple[int, Blame | None]] = {}
        """By (step, index): the earliest hop so far, and who is to blame for it; None: we ourselves."""
        self._in_a_row: dict[PeerId, int] = {}

    def note(self, step: int, index: int, route: Route, receiver: int, *, is_gradient: bool) -> None:
        """The owner of ``receiver`` says that what came to it was not finite."""
        origin = (following if is_gradient else preceding)(route, receiver)
        accused, accuser = (self._peer(stage) for stage in (origin, receiver))
        number = hop_number(route, receiver, is_gradient=is_gradient)
        known = self._first.get((step, index))
        if accused is not None and accuser is not None and (known is None or number < known[0]):
            self._first[step, index] = (number, Blame(accused, origin, accuser, receiver))

    def note_own(self, step: int, index: int, route: Route) -> None:
        """Our own loss was not finite, though what came to it was: all that is said of the way back is our doing."""
        known = self._first.get((step, index))
        if known is None or known[0] > len(route):
            self._first[step, index] = (len(route), None)

    def _peer(self, stage: int) -> PeerId | None:
        return self._me if stage == DRIVER_STAGE else next(iter(self._members(stage)), None)

    def first_of(self, step: int) -> Blame | None:
        """Who is to blame in a step, for the earliest of its microbatches."""
        indexes = sorted(index for of, index in self._first if of == step)
        return self._first[step, indexes[0]][1] if indexes else None

    def close(self, step: int) -> list[Blame]:
        """Nobody will say more of the step. Those who have spoilt `SPOILT_STEPS_MAX` in a row by now."""
        blamed = {blame.accused: blame for (of, _), (_, blame) in self._first.items() if of == step and blame}
        self._first = {key: first for key, first in self._first.items() if key[0] > step}
        self._in_a_row = {peer: self._in_a_row.get(peer, 0) + 1 for peer in blamed}
        return [blame for peer, blame in blamed.items() if self._in_a_row[peer] >= SPOILT_STEPS_MAX]


def why_no_loss(first: Blame | None) -> str:
    """Why S0's loss of a step is not finite, for people; ``first``: who is to blame for the earliest microbatch."""
    if first is None:
        return "S0 made of finite numbers a loss that is not"
    return f"what S{first.accused_stage} (..{first.accused[-8:]}) sent to S{first.accuser_stage} was not finite"
