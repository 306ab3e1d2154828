"""What S0 asks when nothing moves, and what stages say of numbers that are not finite (the others: messages.py)."""

from __future__ import annotations

from typing import Literal

import msgspec

from understudy.protocol.ids import Attempt
from understudy.protocol.wire.fields import Incarnation, Index, StageNumber, StepNumber

Place = Literal["unknown", "forward due", "forwarded", "backward due", "finished"]
"""Where an attempt of a microbatch stands on a stage; ``unknown``: it never came there, or belongs to a closed step."""


class Where(msgspec.Struct, frozen=True, array_like=True, tag="where"):
    """From the driver to the stages of a microbatch's route: nothing moves, where is this attempt?"""

    step: StepNumber
    index: Index
    attempt: Attempt


class Here(msgspec.Struct, frozen=True, array_like=True, tag="here"):
    """The answer of a stage, for itself alone."""

    stage: StageNumber
    incarnation: Incarnation
    step: StepNumber
    index: Index
    attempt: Attempt
    place: Place


class NotFinite(msgspec.Struct, frozen=True, array_like=True, tag="not_finite"):
    """From a stage to the driver: what came to it was not finite; ``is_gradient``: on the way back."""

    stage: StageNumber
    incarnation: Incarnation
    step: StepNumber
    index: Index
    is_gradient: bool


WatchMessage = Where | Here | NotFinite
