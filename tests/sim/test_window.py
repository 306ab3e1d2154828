"""How many microbatches S0 has in flight, in a whole swarm on links of some length."""

from __future__ import annotations

import pytest

from tests.sim.faults import Weather
from tests.sim.schedules import LIMIT_S
from tests.sim.simulation import Simulation, build, small_manifest
from understudy.protocol.pipeline.window import USUAL_PER_STAGE

STAGES, STEPS = 4, 36
NEAR_S, FAR_S = 0.001, 0.1
"""One way."""


def settled(delay_s: float) -> int:
    manifest = small_manifest(STAGES, STEPS, microbatches=48)
    weather = Weather(latency_s=(delay_s, delay_s))
    simulation = build(1, [], manifest=manifest, spares=0, weather=weather, kind=Simulation)
    simulation.run(LIMIT_S)
    return next(int(line.fields["size"]) for line in simulation.log if line.name == "window.settled")


@pytest.mark.parametrize(("delay_s", "is_large"), [(NEAR_S, False), (FAR_S, True)])
def test_only_long_links_get_more_than_twice_the_stages(delay_s: float, is_large: bool) -> None:
    assert (settled(delay_s) > USUAL_PER_STAGE * STAGES) is is_large
