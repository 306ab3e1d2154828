"""A peer that was cut off alone takes everybody else for dead, and says so when it is back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sim.node import SimNode
from tests.sim.schedules import harsh_schedule
from tests.sim.simulation import Simulation
from understudy.protocol.events import MessageReceived
from understudy.protocol.wire.messages import Grant

BACK_S = 8.7
"""When the owner of S4 is back, and a little more."""


class WithoutGrantsOfS5(Simulation):
    """The claim on S4 is still open when its owner comes back, because one witness's grant gets lost."""

    def _send(self, source: SimNode, target: SimNode | None, event: MessageReceived) -> None:
        is_lost = isinstance(event.message, Grant) and source.peer == "peer-5" and self.now < BACK_S
        if not is_lost:
            super()._send(source, target, event)


@pytest.mark.parametrize("seed", [8, 40, 47, 52])
def test_what_it_says_of_others_costs_nobody_a_stage(seed: int) -> None:
    """Two spares were recognised under one incarnation: one by the true witnesses, one by those who believed it."""
    simulation = replace(harsh_schedule(10_019, "checkfree+"), seed=seed).staged(WithoutGrantsOfS5)
    simulation.advance(20.0)
    claimed, *_ = simulation.named("stage.claimed")
    assert (claimed.fields["stage"], claimed.fields["witnesses"]) == (4, [2, 3, 5])
