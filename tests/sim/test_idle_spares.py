"""Spares that stand in front and take nothing: an honest one behind them takes the lost stage all the same."""

from __future__ import annotations

import pytest

from tests.sim.faults import CALM
from tests.sim.simulation import Simulation, StoredRecord, build, replace_settings, small_manifest
from understudy.protocol.ids import PeerId
from understudy.protocol.wire.records import CAPACITY_MAX, SPARES_KEY, SpareRecord

SETTLED_S = 25.0
"""An honest spare behind sixteen others is in reserve by then."""
STANDSTILL_S_MAX = 15.0
"""What one bad peer may cost a swarm with a spare."""
AGAIN_S_MAX = 3.0
SOONER_S_MIN = 1.5
"""Who has let a hole pass is not waited for a second time; what is left is the reserve's next look, 3 to 5 s."""
FOR_EVER = 1e9


def swarm(idle: int, honest: int = 1, seed: int = 0, copies: tuple[int, ...] = ()) -> Simulation:
    """Five stages, honest spares that come one after the other, and idle ones with whatever capacity they say."""
    manifest = small_manifest()
    manifest = replace_settings(manifest, step=replace_settings(manifest.step, total_steps=0))
    made = build(seed, [], manifest=manifest, spares=0, weather=CALM, kind=Simulation)
    for number in range(honest):
        made.add_node(f"honest-{number:02}", at=2.0 + 0.1 * number)
    entries = made._dht.setdefault(SPARES_KEY, {})
    for number in range(idle):
        record = SpareRecord(f"idle-{number:02}", CAPACITY_MAX, copies=copies)
        entries[PeerId(record.peer)] = StoredRecord(record, FOR_EVER, 0.0)
    return made


def seconds_to_replace(simulation: Simulation, stage: int) -> float:
    owner, struck = simulation.owner(stage), simulation.now
    assert owner is not None
    simulation.kill(owner)
    simulation.advance(struck + 20.0)
    served = [line.time for line in simulation.named("peer.serving") if line.time > struck]
    assert served, "nobody took it"
    return served[0] - struck


def replaced_twice(simulation: Simulation) -> tuple[float, float]:
    """Seconds for the first loss and for the second; of the latter up to five may be the reserve's."""
    simulation.advance(SETTLED_S)
    return seconds_to_replace(simulation, 2), seconds_to_replace(simulation, 3)


@pytest.mark.parametrize("idle", [15, 40])
def test_spares_that_do_nothing_cost_seconds(idle: int) -> None:
    simulation = swarm(idle)
    simulation.advance(SETTLED_S)
    assert seconds_to_replace(simulation, 2) < STANDSTILL_S_MAX


def test_who_let_a_hole_pass_has_lost_its_rank() -> None:
    first, again = zip(*(replaced_twice(swarm(40, honest=2, seed=seed)) for seed in range(4)), strict=True)
    assert min(again) < min(first) - SOONER_S_MIN


def test_who_says_that_it_holds_copies_and_does_nothing_is_believed_once() -> None:
    """One spare behind an honest one, which says it has a copy of every stage."""
    boasting = [swarm(1, honest=3, seed=seed, copies=(0, 1, 2, 3)) for seed in range(3)]
    first, again = zip(*map(replaced_twice, boasting), strict=True)
    assert max(first) < STANDSTILL_S_MAX
    assert min(again) < min(first) - SOONER_S_MIN


def test_an_honest_spare_in_front_is_as_fast_as_ever() -> None:
    simulation = swarm(0, honest=3)
    simulation.advance(SETTLED_S)
    assert seconds_to_replace(simulation, 2) < AGAIN_S_MAX
