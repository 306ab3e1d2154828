"""A text that cannot be read costs the run its driver at most, and nobody else a place."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from tests.sim.faults import CALM, Fault, Kill, Trigger, Weather
from tests.sim.schedules import LIMIT_S, WEATHERS, schedule
from tests.sim.simulation import Simulation, build, small_manifest
from understudy.protocol.membership.placement import CLAIM_PATIENCE_S
from understudy.protocol.node_state import NodeState
from understudy.protocol.text_check import TEXT_RETRY_S

STAGES, SPARES, STEPS = 5, 3, 12
BAD_STEP = 6
EVERYBODY = tuple([f"peer-{stage}" for stage in range(STAGES)] + [f"spare-{number}" for number in range(SPARES)])
LONG_S = 4 * TEXT_RETRY_S


def swarm(
    blind: tuple[str, ...],
    seed: int = 1,
    spares: int = SPARES,
    faults: Sequence[Fault] = (),
    weather: Weather = CALM,
) -> Simulation:
    """Step `BAD_STEP`'s text cannot be read on the machines of the blind."""
    manifest = small_manifest(stages=STAGES, steps=STEPS, edge_copy_every=1)
    made = build(seed, list(faults), manifest=manifest, spares=spares, weather=weather, kind=Simulation)
    for node in made.nodes.values():
        node.unreadable = frozenset({BAD_STEP} if node.peer in blind else ())
    return made


def drivers(simulation: Simulation) -> list[str]:
    return [line.observer for line in simulation.named("peer.serving") if line.fields["stage"] == 0]


def who_failed(simulation: Simulation) -> Counter[str]:
    return Counter(line.observer for line in simulation.named("text.failed"))


def assert_bad_row_eats_nobody(simulation: Simulation) -> None:
    simulation.advance(LONG_S)
    assert all(node.is_alive and not node.is_stopped for node in simulation.nodes.values())
    assert drivers(simulation) == ["peer-0"], "somebody took S0 without the text of the step that is due"
    served = [node.core.state.stage for node in simulation.nodes.values() if node.core.state.is_serving]
    assert sorted(served) == list(range(1, STAGES))
    assert simulation.judge.last_committed == BAD_STEP - 1


@pytest.mark.parametrize("seed", range(8))
def test_one_bad_row_does_not_eat_every_volunteer(seed: int) -> None:
    simulation = swarm(EVERYBODY, seed)
    assert_bad_row_eats_nobody(simulation)
    failed = who_failed(simulation)
    assert set(failed) == {"peer-0", *(f"spare-{number}" for number in range(SPARES))}
    assert max(failed.values()) <= 2 + LONG_S / TEXT_RETRY_S, "it is tried again and again"
    # When the text is there again, so is the run.
    for node in simulation.nodes.values():
        node.unreadable = frozenset()
    simulation.run(LONG_S + TEXT_RETRY_S + 20.0)
    simulation.check_outcome()
    assert simulation.judge.last_committed == STEPS


@pytest.mark.parametrize("seed", [8, 11, 14, 51, 56])
def test_a_view_that_is_a_commit_old_is_good_enough(seed: int) -> None:
    """What a spare had read of the stages was two commits old: the witnesses told it which step is due."""
    assert_bad_row_eats_nobody(swarm(EVERYBODY, seed, weather=WEATHERS[-1]))


def test_the_scenario_finds_a_claim_without_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodeState, "is_text_ready", lambda state, committed=None: True)
    with pytest.raises(AssertionError, match="without the text"):
        assert_bad_row_eats_nobody(swarm(EVERYBODY))


@pytest.mark.parametrize("blind", [("peer-0",), ("peer-0", "spare-0"), ("peer-0", "spare-0", "spare-1")])
def test_whoever_can_read_the_text_takes_s0(blind: tuple[str, ...]) -> None:
    simulation = swarm(blind)
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    first, second = drivers(simulation)
    assert first == "peer-0"
    assert second not in blind
    (failed, *_), serving = simulation.named("text.failed"), simulation.named("peer.serving")[-1]
    assert serving.time - failed.time < 2.0 + CLAIM_PATIENCE_S * (len(blind) - 1)


def test_who_gave_s0_up_is_a_spare_for_all_other_stages() -> None:
    simulation = swarm(("peer-0",), spares=1, faults=[Kill(Trigger(2, BAD_STEP + 2))])
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    assert drivers(simulation) == ["peer-0", "spare-0"]
    assert [line.observer for line in simulation.named("stage.recovered") if line.fields["stage"] == 2] == ["peer-0"]


@pytest.mark.parametrize("seed", range(20_000, 20_060))
def test_texts_that_fail_here_and_there_break_no_invariant(seed: int) -> None:
    plan = schedule(seed, "checkfree+" if seed % 2 else "checkfree")
    simulation = plan.staged(Simulation)
    rng = random.Random(seed)
    steps = range(1, plan.manifest.step.total_steps + 1)
    for node in simulation.nodes.values():
        if node.peer != "spare-0":
            node.unreadable = frozenset(step for step in steps if rng.random() < 0.1)
    simulation.add_node("late", at=5.0)
    simulation.run(LIMIT_S)
    simulation.check_outcome()
