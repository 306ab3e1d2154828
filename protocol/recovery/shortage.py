"""How many owners must recognise a claim, where most of them are there and where they are not."""

from __future__ import annotations

from collections.abc import Callable

from understudy.protocol.node_state import NodeState
from understudy.protocol.recovery.quorum import majority_of, too_few


class Shortage:
    """Keeps count of the stages for which there is no majority of owners, and for how long."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self.unanswered: set[int] = set()
        """Stages for which a majority seemed to be there, and did not answer."""
        self._since: dict[int, float] = {}
        """Since when there is no majority for a stage."""

    def forget(self, is_present: Callable[[int], bool]) -> None:
        """Those that somebody holds."""
        self.unanswered = {stage for stage in self.unanswered if not is_present(stage)}
        self._since = {stage: since for stage, since in self._since.items() if not is_present(stage)}

    def needed(self, stage: int, there: int) -> int:
        """Owners who must recognise us: a majority of all stages, unless none could be had for as long as the run says.

        One that is there and does not answer is none either.
        """
        majority = majority_of(self._state.manifest.stage_count)
        if there >= majority and stage not in self.unanswered:
            self._since.pop(stage, None)
            return majority
        since = self._since.setdefault(stage, self._state.now)
        without_s = self._state.manifest.recovery.without_majority_after_s
        return 1 if without_s and self._state.now - since >= without_s else majority

    def said(self, there: int) -> str:
        """Why we claim nothing, with so many owners there."""
        manifest = self._state.manifest
        few = too_few(there, manifest.stage_count, manifest.recovery.without_majority_after_s)
        return few if there else "no living peer could vouch for a recovery"
