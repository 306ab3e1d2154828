"""Heartbeats go on and nothing is computed: the stage goes to a spare, and nobody else's does."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.sim.faults import FOR_EVER_S, Fault, Kill, Stuck, Trigger, Weather
from tests.sim.node import Violation
from tests.sim.schedules import LIMIT_S, Schedule, harsh_schedule, hindered_schedule, schedule, seeds, stuck_schedule
from tests.sim.simulation import CALM, Simulation, build, small_manifest
from tests.sim.test_seeds import chunks, run_seed
from understudy.protocol.membership.sentencing import AMNESTY_S
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.standstill import Standstill
from understudy.protocol.recovery.spare import SparePolicy

SEEDS = {"checkfree": seeds(10_000, 10), "checkfree+": seeds(10_000, 10)}
STEPS = 10


@pytest.mark.parametrize(("method", "chunk"), chunks(SEEDS))
def test_no_thread_that_hangs_breaks_an_invariant(method: str, chunk: range) -> None:
    for seed in chunk:
        run_seed(seed, method, stuck_schedule)


def played(*faults: Fault, spares: int = 1, seed: int = 1, weather: Weather = CALM, steps: int = STEPS) -> Simulation:
    manifest = small_manifest(stages=5, steps=steps)
    simulation = build(seed, list(faults), manifest=manifest, spares=spares, weather=weather, kind=Simulation)
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    return simulation


def hangs(stage: int, seconds: float = FOR_EVER_S, step: int = 6, moment: str = "forward") -> Stuck:
    return Stuck(Trigger(stage, step, moment), seconds, stage)  # type: ignore[arg-type]


def standstill_s(simulation: Simulation) -> float:
    times = [line.time for line in simulation.named("step.committed")]
    return max(after - before for before, after in pairwise(times))


@pytest.mark.parametrize("moment", ["forward", "backward"])
@pytest.mark.parametrize("stage", [1, 2, 4])
def test_whoever_hangs_for_ever_is_replaced_within_seconds(stage: int, moment: str) -> None:
    simulation = played(hangs(stage, moment=moment))
    assert [line.fields["stage"] for line in simulation.named("peer.sentenced")] == [stage]
    assert [line.observer for line in simulation.recoveries()] == ["spare-0"]
    assert [line.observer for line in simulation.named("peer.accused")] == [f"peer-{stage}"]
    assert standstill_s(simulation) < 12.0


@pytest.mark.parametrize("seed", range(3))
def test_whoever_hangs_for_a_moment_keeps_its_stage(seed: int) -> None:
    simulation = played(hangs(2, 6.0), seed=seed)
    assert not simulation.named("peer.sentenced")
    assert not simulation.recoveries()


def test_whoever_hung_is_a_spare_once_its_thread_goes_on() -> None:
    """And not before: it takes the next stage that is lost, though all other spares are gone."""
    simulation = played(hangs(2, 12.0), hangs(3, FOR_EVER_S, step=30), steps=40)
    assert [line.observer for line in simulation.recoveries()] == ["spare-0", "peer-2"]
    back = next(line for line in simulation.named("peer.spare") if line.observer == "peer-2")
    stuck = simulation.named("(stuck)")[0]
    assert back.time >= stuck.time + 12.0


def test_without_a_spare_it_keeps_its_stage_and_goes_on_when_it_can() -> None:
    simulation = played(hangs(2, 60.0), spares=0)
    assert not simulation.named("peer.sentenced")
    assert [line.fields["stage"] for line in simulation.named("peer.suspected") if "reason" in line.fields] == [2]


def test_a_stage_that_the_only_spare_does_not_take_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that it waits, and never claims. The owner works again, and is told so when the time is over."""
    monkeypatch.setattr(SparePolicy, "choose", lambda policy: None if policy._wanted_stage is None else CHOOSE(policy))
    simulation = played(hangs(2, 12.0))
    assert len(simulation.named("peer.sentenced")) == 1
    assert not simulation.recoveries()
    assert any(line.fields["stage"] == 2 for line in simulation.named("peer.revived"))
    assert standstill_s(simulation) < 12.0 + AMNESTY_S


CHOOSE = SparePolicy.choose


def test_two_who_hang_one_after_the_other() -> None:
    simulation = played(hangs(1), hangs(3), spares=2)
    assert sorted(line.fields["stage"] for line in simulation.recoveries()) == [1, 3]


def test_whoever_hangs_while_another_dies() -> None:
    simulation = played(hangs(2), Kill(Trigger(2, 6, "forward", 2.0), 4), spares=2)
    assert sorted(line.fields["stage"] for line in simulation.recoveries()) == [2, 4]


def test_a_new_s0_finds_it_as_well() -> None:
    simulation = played(hangs(2), Kill(Trigger(2, 6, "forward", 2.0), 0), spares=2)
    assert sorted(line.fields["stage"] for line in simulation.recoveries()) == [0, 2]


# --- nobody else ---


@pytest.mark.parametrize("slow", [1, 3])
def test_a_stage_thirty_times_slower_than_all_others_is_left_alone(slow: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Simulation._start_job

    def start_slowly(simulation: Simulation, node, job) -> None:  # type: ignore[no-untyped-def]
        start(simulation, node, job)
        if node.peer == f"peer-{slow}":
            node.busy_until += 0.012 * 30

    monkeypatch.setattr(Simulation, "_start_job", start_slowly)
    simulation = played()
    assert not simulation.named("peer.sentenced")


@pytest.mark.parametrize("generator", [schedule, harsh_schedule, hindered_schedule])
def test_nobody_is_replaced_for_what_the_network_does(generator) -> None:  # type: ignore[no-untyped-def]
    for seed in range(10_000, 10_004):
        for method in SEEDS:
            found: Schedule = generator(seed, method)
            simulation = found.run()
            assert not simulation.named("peer.sentenced"), (seed, method)


def test_messages_that_get_lost_are_no_proof() -> None:
    """One in twenty: some get a question and another try, as nobody says that they have it."""
    for seed in range(4):
        simulation = played(seed=seed, weather=Weather(loss=0.05))
        assert not simulation.named("peer.sentenced"), seed


# --- the guards ---


def test_without_the_watch_it_stands_still_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of the table: no commit for as long as watched, while a spare waits unused."""
    monkeypatch.setattr(Standstill, "look", lambda standstill, asked, now: None)
    with pytest.raises(Violation, match="not done"):
        played(hangs(2))


def test_without_three_attempts_what_is_lost_costs_an_honest_owner_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.protocol.pipeline.standstill.DISPUTED_ATTEMPTS_MIN", 1)
    monkeypatch.setattr(Standstill, "is_worth_another_try", lambda standstill, finding, attempt: False)
    found = [played(seed=seed, weather=Weather(loss=0.05)) for seed in range(4)]
    assert any(simulation.named("peer.sentenced") for simulation in found)


def test_without_orphans_a_node_that_hangs_claims_the_next_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """And builds nothing: the stage has an owner that recovers for ever."""
    monkeypatch.setattr(NodeState, "orphans", property(lambda state: 0, lambda state, value: None), raising=False)
    with pytest.raises(Violation, match="not done"):
        played(hangs(2), Kill(Trigger(3, 9, "forward"), 3), spares=1)
