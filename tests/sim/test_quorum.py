"""A claim needs a majority of all stages: sides of a split, owners that do not answer, and what waits for whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.sim.faults import Fault, Hinder, Kill, Trigger
from tests.sim.node import Violation
from tests.sim.schedules import seeds
from tests.sim.sides import run_sides
from tests.sim.simulation import WITHOUT_MAJORITY_S, LogLine, Simulation, build, small_manifest
from understudy.protocol.ids import INCARNATION_LEAP_MAX, PeerId
from understudy.protocol.recovery.asking import Asking
from understudy.protocol.recovery.witness import Witness
from understudy.protocol.wire.fields import RefusalReason
from understudy.protocol.wire.messages import Claim, Refusal

SEEDS = {"checkfree": seeds(60_000, 6), "checkfree+": seeds(62_000, 6)}
PASSED_OVER_S = 8.0
"""Within this time a claim does without an owner that does not vote: it waits `dead_after_s`, 4 s, for it."""


@pytest.mark.parametrize("method", SEEDS)
def test_of_two_sides_one_at_most_goes_on(method: str) -> None:
    went_on = [bool(run_sides(seed, method).split_commits) for seed in SEEDS[method]]
    assert any(went_on)


def lose(stages: int, *lost: int, faults: tuple[Fault, ...] = (), spares: int = 3, **settings: Any) -> Simulation:
    """The owners of some stages die in step 3; the swarm some ten seconds later."""
    kills = [Kill(Trigger(0, 3, "forward"), stage) for stage in lost]
    manifest = small_manifest(stages=stages, steps=400, microbatches=1, **settings)
    simulation = build(1, [*faults, *kills], manifest=manifest, spares=spares, kind=Simulation)
    simulation.advance(12.0)
    return simulation


def seconds_until_back(simulation: Simulation) -> float:
    killed = simulation.named("(killed)")[0].time
    return simulation.recoveries()[-1].time - killed


def mute(stage: int) -> Hinder:
    """Its owner answers no claim."""
    return Hinder(Trigger(0, 2, "forward"), 1e6, ("Grant", "Refusal"), loss=1.0, victim=stage)


# --- who does not vote ---


@pytest.mark.parametrize("witness", range(5))
def test_an_owner_that_never_answers_costs_seconds(witness: int) -> None:
    if witness == 2:
        witness = 4
    simulation = lose(5, 2, faults=(mute(witness),))
    (claimed,) = claims_of(simulation, 2)
    assert seconds_until_back(simulation) < PASSED_OVER_S
    assert claimed.fields["passed_over"] == ([witness] if witness in (1, 3) else [])


@pytest.mark.parametrize("reason", ["owner alive", "superseded", "not serving", "asks too few", "run is done"])
@pytest.mark.parametrize("refusing", [1, 4])
def test_an_owner_that_always_refuses_costs_seconds(
    refusing: int, reason: RefusalReason, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_always(monkeypatch, refusing, reason)
    simulation = lose(5, 2)
    assert seconds_until_back(simulation) < PASSED_OVER_S


def refuse_always(patch: pytest.MonkeyPatch, stage: int, reason: RefusalReason) -> None:
    on_claim = Witness.on_claim

    def refuse(witness: Witness, peer: PeerId, claim: Claim) -> None:
        if witness._state.me == f"peer-{stage}":
            refusal = Refusal(claim.stage, claim.incarnation, claim.incarnation, reason)
            witness._state.send(peer, refusal)
        else:
            on_claim(witness, peer, claim)

    patch.setattr(Witness, "on_claim", refuse)


def test_the_next_nearest_gives_its_weights_for_who_is_passed_over() -> None:
    """Neither neighbour of S3 answers; S1 and S5 are no neighbours in their own view, and are named."""
    simulation = lose(7, 3, faults=(mute(2), mute(4)))
    (claimed,) = claims_of(simulation, 3)
    (recovered,) = simulation.recoveries()
    assert (claimed.fields["witnesses"], claimed.fields["passed_over"]) == ([1, 5], [2, 4])
    assert recovered.fields["donors"] == [1, 5]


def claims_of(simulation: Simulation, stage: int) -> list[LogLine]:
    lines = simulation.named("stage.claimed")
    return [line for line in lines if line.fields["stage"] == stage and line.fields["incarnation"] > 1]


def test_a_claim_far_ahead_is_recognised_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = lose(5, 2, spares=0)
    claim = Claim(2, 2 + INCARNATION_LEAP_MAX, (1, 3))
    for stage in (0, 1, 3, 4):
        owner = simulation.owner(stage)
        assert owner is not None
        state = owner.core.state
        state.actions = []
        owner.core._lifecycle.on_claim(PeerId("stranger"), claim)
        assert [action.message for action in state.actions] == [  # type: ignore[union-attr]
            Refusal(2, claim.incarnation, 1, "superseded")
        ]


# --- too few ---


def test_several_neighbours_are_recovered_at_once_while_a_majority_lives() -> None:
    simulation = lose(7, 2, 3, 4)
    assert sorted(line.fields["stage"] for line in simulation.recoveries()) == [2, 3, 4]
    assert seconds_until_back(simulation) < PASSED_OVER_S


def test_a_minority_waits_says_so_and_goes_on_in_the_end() -> None:
    simulation = lose(5, 1, 2, 3)
    assert simulation.recoveries() == []
    reasons = {line.fields["reason"] for line in simulation.named("swarm.waiting") if "reason" in line.fields}
    assert any(reason.startswith("2 of 5 owners are there, and a recovery needs 3") for reason in reasons)
    simulation.advance(20.0 + WITHOUT_MAJORITY_S)
    assert {line.fields["stage"] for line in simulation.recoveries()} == {1, 2, 3}


def test_a_run_may_say_that_a_minority_never_goes_on() -> None:
    simulation = lose(5, 1, 2, 3, without_majority_after_s=0.0)
    simulation.advance(90.0)
    assert simulation.recoveries() == []


def test_of_three_one_that_does_not_vote_is_the_last_that_may_be_missing() -> None:
    simulation = lose(3, 1, faults=(mute(2),), spares=1)
    assert simulation.recoveries() == []
    simulation.advance(30.0 + WITHOUT_MAJORITY_S)
    assert len(simulation.recoveries()) == 1


def test_of_two_the_other_is_enough() -> None:
    assert seconds_until_back(lose(2, 1, method="checkfree")) < 2.0


@pytest.mark.parametrize("seed", range(6))
def test_claimants_who_share_the_votes_between_them_come_to_an_end(seed: int) -> None:
    manifest = small_manifest(stages=7, steps=400, microbatches=1)
    kill: list[Fault] = [Kill(Trigger(2, 2, "forward"))]
    simulation = build(seed, kill, manifest=manifest, spares=0, kind=Simulation)
    for number in range(4):
        simulation.add_node(f"comer-{number}", at=6.0)
    simulation.advance(14.0)
    (recovered,) = simulation.recoveries()
    assert recovered.time < 12.0


# --- the simulator can see ---


def wait_for_everybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Asking, "_pass_over", lambda asking, claim: None)


def count_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("understudy.protocol.recovery.shortage.majority_of", lambda stage_count: 1)


def heed_no_refusal(patch: pytest.MonkeyPatch) -> None:
    count_nothing(patch)
    patch.setattr(Asking, "_is_by_majority", lambda asking, claim: True)


def go_by_two_sides() -> None:
    for seed in range(60_000, 60_040):
        run_sides(seed, "checkfree")


def wait_for_the_mute() -> None:
    if not lose(5, 2, faults=(mute(1),)).recoveries():
        raise Violation("no recovery")


MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], None]]] = {
    "a minority goes on": (count_nothing, go_by_two_sides),
    "one vote outweighs a refusal": (heed_no_refusal, go_by_two_sides),
    "a silent witness is waited for": (wait_for_everybody, wait_for_the_mute),
}


@pytest.mark.parametrize("guard", MUTANTS)
def test_the_simulator_sees_a_broken_guard(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_guard, story = MUTANTS[guard]
    break_guard(monkeypatch)
    with pytest.raises(Violation):
        story()
