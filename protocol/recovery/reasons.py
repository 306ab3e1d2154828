"""Why a node takes a stage or gives it up, for people. Why a stage is rebuilt from what, the ladder says itself."""

from __future__ import annotations

ASKED_FOR = "asked for"
DRIVER_NEEDED = "S0 is needed most: nothing moves without the driver"
TEXT_UNREADABLE = "the text cannot be read"


def lost(stage: int) -> str:
    return f"S{stage} was lost"


def never_owned(stage: int) -> str:
    return f"S{stage} was never owned"


def left_behind(stage: int, step: int) -> str:
    return f"the others are beyond step {step}, where S{stage} was left behind"


def alone_ahead(stage: int, step: int) -> str:
    return f"S{stage} alone is at step {step}, where nobody follows"
