"""How many owners a claim needs, and what people are told where there are not enough.

A claim needs the word of a majority of all stages, the lost one included. Two majorities have an owner in common, and
an owner recognises one peer for each (stage, incarnation), for good: so no two peers serve one stage under one
incarnation, and of two sides of a split one at most goes on. Of two stages one is lost and one is left: there is
nothing to count, and the other owner's word is enough.
"""

from __future__ import annotations

TWO_STAGES = 2


def majority_of(stage_count: int) -> int:
    """Owners who must recognise a claim: more than half of all stages; of two stages, one."""
    return 1 if stage_count == TWO_STAGES else stage_count // 2 + 1


def too_few(there: int, stage_count: int, without_s: float) -> str:
    """Why a recovery does not begin, and what would help. ``without_s``: setting ``without_majority_after_s``."""
    later = f"; if it stays so, a recovery begins after {without_s:g} s all the same" if without_s else ""
    return (
        f"{there} of {stage_count} owners are there, and a recovery needs {majority_of(stage_count)}: "
        f"the others may be training on the far side of a split. Start them again, or see to their network{later}"
    )
