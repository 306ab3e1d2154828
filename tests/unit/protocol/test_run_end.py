"""Who was succeeded at the end of a run, and what follows: of two sides without a majority both may come there."""

from __future__ import annotations

from typing import cast

import pytest

from tests.seals import NamedSeal
from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.manifest import RunManifest, StepSettings
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.edge_host import EdgeHost
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.recovery.run_end import is_beaten_to
from understudy.protocol.wire.records import ProgressRecord

ME = PeerId("me")
RUN = RunManifest(name="end", step=StepSettings(total_steps=10))
END = ProgressRecord("other", 3, 10, 1.0, 1, 1.0)


def asked(kind: type[BlockStage | EdgeHost], stage: int, incarnation: int, step: int) -> bool:
    """Of an owner that works on ``step``, when another driver's last word is read."""
    state = NodeState(NamedSeal(ME), RUN, Membership(RUN.stage_count, RUN.timing))
    state.tenure = Tenure(stage, incarnation, ME)

    class Host(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            pass

        @property
        def step(self) -> int:
            return step

    return is_beaten_to(state, cast(BlockStage | EdgeHost, Host()), END)


@pytest.mark.parametrize(("step", "is_beaten"), [(9, True), (10, False), (11, False)])
def test_a_block_stage_with_steps_to_go_is_not_waited_for_any_more(step: int, is_beaten: bool) -> None:
    assert asked(BlockStage, 2, 1, step) is is_beaten


@pytest.mark.parametrize(("incarnation", "is_beaten"), [(2, True), (3, False), (4, False)])
def test_the_last_step_itself_is_lost_to_a_later_driver_alone(incarnation: int, is_beaten: bool) -> None:
    assert asked(EdgeHost, 0, incarnation, 10) is is_beaten
