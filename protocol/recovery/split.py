"""After a split two swarms may train one run: who of them gives its stage up, to be rebuilt from the others."""

from __future__ import annotations

from understudy.protocol.ids import DRIVER_STAGE
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.edge_host import EdgeHost
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.recovery import reasons


class SplitJudge:
    """Whether the others live in another history than our stage. Of one tenure."""

    def __init__(self, state: NodeState, host: BlockStage | EdgeHost) -> None:
        self._state, self._host = state, host
        self._alone_ahead_since: float | None = None

    def reason_to_yield(self) -> str | None:
        """Why our stage is to be given up, if it is. To be asked again and again: it notes since when it is alone."""
        stage, step = self._state.stage, self._host.step
        if self._is_outpaced():
            return reasons.left_behind(stage, step)
        if self._has_been_alone_ahead():
            return reasons.alone_ahead(stage, step)
        return None

    def _is_outpaced(self) -> bool:
        """Two of the others, as one may be wrong, or all of them; a block stage at least, to be rebuilt from.

        Who is one step ahead of us heard of a commit that is on its way to us, unless that step could not be decided
        with us: it lacks what we did not count, or we are S0, did not decide it and could not take it over.
        """
        ahead, others = self._state.membership.beyond(self._state.stage, self._host.step + self._host.can_close)
        return any(stage != DRIVER_STAGE for stage in ahead) and len(ahead) >= min(2, others)

    def _has_been_alone_ahead(self) -> bool:
        """We closed a step that nobody else did, of all who are there, for as long as any record of before lives."""
        state = self._state
        ahead, others = state.membership.beyond(state.stage, state.committed)
        stages = state.manifest.stage_count - 1
        if ahead or others < (stages if isinstance(self._host, EdgeHost) else min(2, stages)):
            self._alone_ahead_since = None
            return False
        self._alone_ahead_since = self._alone_ahead_since or state.now
        return state.now - self._alone_ahead_since > state.manifest.timing.record_lifetime_s
