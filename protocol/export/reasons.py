"""Why an export ends without its weights, and what to do: for the person who asked for it."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.protocol.ids import PeerId

NOBODY_SERVES = (
    "nobody serves any stage of this run: it is over, or its swarm is gone, and its weights with it; "
    "an export has to begin while the run goes on"
)


def nobody_recovers(stages: Sequence[int]) -> str:
    lost = ", ".join(f"S{stage}" for stage in stages)
    return f"the run is over and nobody recovers {lost} any more: its last weights are not to be had whole"


def wrong_size(stage: int, owner: str, payload_bytes: int, expected_bytes: int) -> str:
    return (
        f"the owner of S{stage}, {owner}, offers {payload_bytes} bytes where the stage "
        f"has {expected_bytes}: it is broken or hostile; try again once another peer holds the stage"
    )


def not_delivered(stage: int, donor: PeerId, reason: str) -> str:
    return f"S{stage} cannot be fetched from {donor}: {reason}; run the same command again to go on"


def passed(stage: int, step: int) -> str:
    """Not an end: the export aims at a later step."""
    return f"S{stage} is beyond step {step} already"
