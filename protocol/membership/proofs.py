"""Judging the votes that a tenure shows: is its stage its own, though we were not asked ourselves?

An honest owner votes for a claim only if the owner before is lost, and a claimant serves only with the votes of a
majority (recovery/quorum.py). So two votes of owners that we know are more than any one peer can make up, whatever it
calls itself. Where we have known no owner for longer than a record lives, those whom we knew may all be gone, and votes
of others count, too: else who slept through many recoveries would cling to what was.
"""

from __future__ import annotations

from understudy.protocol.ids import Tenure
from understudy.protocol.node_state import NodeState
from understudy.protocol.wire.votes import Vote

VOTES_NEEDED = 2
"""More than one peer has. Of two stages there is but one that can vote."""


class Proofs:
    """What one node makes of the votes that it is shown."""

    def __init__(self, state: NodeState) -> None:
        self._state = state

    def weigh(self, tenure: Tenure, proof: tuple[Vote, ...]) -> None:
        """Remember the tenure as proven, if these votes are enough for that. They are looked at if there is need."""
        if proof and not self._state.is_entitled(tenure) and self._is_enough(tenure, proof):
            self._state.membership.titles.note_proven(tenure)

    def _is_enough(self, tenure: Tenure, proof: tuple[Vote, ...]) -> bool:
        state, titles = self._state, self._state.membership.titles
        vacant_s = state.membership.vacant_s(tenure.stage, state.now)
        is_long_vacant = vacant_s > state.manifest.timing.record_lifetime_s
        without_s = state.manifest.recovery.without_majority_after_s
        is_minority_enough = 0 < without_s <= vacant_s
        is_one_enough = is_minority_enough or not titles.is_trained(tenure.stage)
        needed = 1 if is_one_enough else min(VOTES_NEEDED, state.manifest.stage_count - 1)
        counting = [vote for vote in proof if is_long_vacant or titles.has_served(vote.tenure)]
        valid = {vote.stage: vote.voter for vote in counting if self._is_valid(tenure, vote)}
        return len(set(valid.values())) >= needed

    def _is_valid(self, claim: Tenure, vote: Vote) -> bool:
        is_anothers = vote.stage != claim.stage and vote.voter != claim.peer
        return is_anothers and self._state.is_vote_for(claim, vote)
