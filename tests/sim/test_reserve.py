"""More spares than are needed: most wait in reserve, cost next to nothing, and are there when they are wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.sim.faults import CALM
from tests.sim.node import SimNode
from tests.sim.schedules import Schedule, harsh_schedule, schedule, seeds
from tests.sim.simulation import LogLine, Simulation, build, replace_settings, small_manifest
from understudy.protocol.actions import Action, Read, Store
from understudy.protocol.membership.failure_detector import RESERVE_READ_MIN
from understudy.protocol.membership.placement import FRONT_MAX
from understudy.protocol.wire.records import SPARES_KEY, SpareRecord

SPARES = 60
SETTLED_S = 45.0
"""By then the records of those who are in reserve have expired."""
WINDOW_S = 20.0
LONG_S = 90.0
SEEDS = seeds(10_000, 8)


class CountingSimulation(Simulation):
    """Keeps what the nodes ask of the DHT."""

    asked: list[tuple[SimNode, Store | Read]]

    def _perform(self, node: SimNode, action: Action) -> None:
        if isinstance(action, Store | Read):
            self.asked.append((node, action))
        super()._perform(node, action)

    @property
    def published(self) -> set[str]:
        """The spares whose records can be read now."""
        entries = self._dht.get(SPARES_KEY, {}).values()
        return {found.record.peer for found in entries if found.expires > self.now and _is_waiting(found.record)}

    def waiting(self, *, is_in_reserve: bool) -> list[SimNode]:
        """The living spares in front or in reserve."""
        idle = [node for node in self.nodes.values() if node.is_alive and node.core.state.tenure is None]
        return [node for node in idle if node.core.state.is_in_reserve == is_in_reserve]

    def served_since(self, time: float) -> list[LogLine]:
        return [line for line in self.named("peer.serving") if line.time > time]


def _is_waiting(record: object) -> bool:
    return isinstance(record, SpareRecord) and record.state == "waiting"


def swarm(spares: int = SPARES, steps: int = 0) -> CountingSimulation:
    """Five stages, and spares that come one after the other."""
    manifest = small_manifest()
    manifest = replace_settings(manifest, step=replace_settings(manifest.step, total_steps=steps))
    made = build(0, [], manifest=manifest, spares=0, weather=CALM, kind=CountingSimulation)
    made.asked = []
    for number in range(spares):
        made.add_node(f"spare-{number:02}", at=2.0 + 0.1 * number)
    return made


def test_only_the_front_publishes_itself_and_looks_for_work_all_the_time() -> None:
    simulation = swarm()
    simulation.advance(SETTLED_S)
    assert len(simulation.waiting(is_in_reserve=False)) == FRONT_MAX
    assert simulation.published == {node.peer for node in simulation.waiting(is_in_reserve=False)}
    simulation.asked.clear()
    simulation.advance(SETTLED_S + WINDOW_S)
    keys = Counter[str]()
    for node, action in simulation.asked:
        if node.core.state.is_in_reserve:
            assert isinstance(action, Read)
            keys[node.peer] += len(action.keys)
    refresh_s = simulation.manifest.timing.record_refresh_s
    assert len(keys) == SPARES - FRONT_MAX
    keys_a_look = 2 + simulation.manifest.stage_count
    assert max(keys.values()) <= keys_a_look * (WINDOW_S / (RESERVE_READ_MIN * refresh_s) + 1)


@pytest.mark.parametrize("is_silent", [False, True])
def test_the_reserve_moves_up_when_the_whole_front_is_lost_with_a_stage(is_silent: bool) -> None:
    simulation = swarm()
    simulation.advance(SETTLED_S)
    front = simulation.waiting(is_in_reserve=False)
    owner = simulation.owner(2)
    assert owner is not None
    for victim in [*front, owner]:
        simulation.kill(victim, is_silent)
    simulation.advance(SETTLED_S + 45.0)
    assert [line.fields["stage"] for line in simulation.served_since(SETTLED_S)] == [2]
    assert len(simulation.waiting(is_in_reserve=False)) >= FRONT_MAX


def test_a_loss_is_made_good_by_the_front_as_fast_as_without_a_reserve() -> None:
    seconds = []
    for spares in (FRONT_MAX, SPARES):
        simulation = swarm(spares)
        simulation.advance(SETTLED_S)
        owner = simulation.owner(2)
        assert owner is not None
        simulation.kill(owner)
        simulation.advance(SETTLED_S + 10.0)
        (served,) = simulation.served_since(SETTLED_S)
        seconds.append(served.time - SETTLED_S)
    assert max(seconds) < 2.0


def test_whoever_can_drive_is_not_kept_in_reserve_by_those_who_cannot() -> None:
    simulation = swarm()
    for node in simulation.nodes.values():
        node.core.state.can_drive = not node.peer.startswith("spare") or node.peer == f"spare-{SPARES - 1}"
    simulation.advance(SETTLED_S)
    driver = simulation.owner(0)
    assert driver is not None
    simulation.kill(driver)
    simulation.advance(SETTLED_S + 5.0)
    assert [line.fields["peer"] for line in simulation.served_since(SETTLED_S)] == [f"spare-{SPARES - 1}"]


def test_the_reserve_learns_of_the_end() -> None:
    simulation = swarm(steps=250)
    simulation.advance(SETTLED_S)
    assert simulation.waiting(is_in_reserve=True)
    simulation.run(SETTLED_S + LONG_S)
    assert simulation.is_over
    simulation.check_outcome()


@pytest.mark.parametrize("generator", [schedule, harsh_schedule])
@pytest.mark.parametrize("method", ["checkfree", "checkfree+"])
def test_no_schedule_breaks_an_invariant_when_all_spares_but_one_are_in_reserve(
    generator: Callable[[int, str], Schedule], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("understudy.protocol.membership.placement.FRONT_MAX", 1)
    for seed in SEEDS:
        generator(seed, method).run()
