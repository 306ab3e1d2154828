"""Is the run over? It is what its owners have committed, not what one of them says.

The last step is decided by one driver, which tells the others and leaves; each of them leaves word of it (`progress`
records, and its own step). One such word may be a lie, or of a driver that was cut off; of two the same step is known.
"""

from __future__ import annotations

from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.node_state import NodeState

WORDS_NEEDED = 2
"""From as many owners. Of two stages one is left to say it, as it is if nobody else is there any more."""


class Ending:
    """What owners say of the run's last step, to one node."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._witnesses: set[PeerId] = set()
        """Owners, of now or before, who left word that the last step is committed."""

    def note(self, peer: PeerId) -> None:
        """It says that the last step is committed. Whoever is alone asks nobody whose word it was."""
        if self._state.membership.titles.is_owners(peer) or not self._company():
            self._witnesses.add(peer)

    @property
    def is_credible(self) -> bool:
        """Whether enough of them say so; the step before ours is one that we know ourselves."""
        state = self._state
        total = state.manifest.step.total_steps
        if state.tenure is not None and state.committed >= total - 1:
            return True
        seats = state.membership.seats()
        known = self._witnesses | {seat.peer for seat in seats if seat.step >= total}
        return len(known - {state.me}) >= (WORDS_NEEDED if self._company() - {DRIVER_STAGE} else 1)

    def _company(self) -> set[int]:
        """The stages of others who are there."""
        state = self._state
        own = {state.stage} if state.tenure is not None else set()
        return set(filter(state.membership.is_present, range(state.manifest.stage_count))) - own
