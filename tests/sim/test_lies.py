"""What one member that lies can do to a swarm: a peer that holds no stage, or one owner gone bad.

Each of these ended a run once, or left it standing for good.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.sim.faults import Fault, Kill, Trigger
from tests.sim.liars import LIAR, LyingSimulation, Tales
from tests.sim.node import Violation
from tests.sim.schedules import LIMIT_S
from tests.sim.simulation import build, small_manifest
from understudy.protocol.ids import INCARNATION_MAX, Attempt, PeerId
from understudy.protocol.membership.credit import Credit
from understudy.protocol.membership.ending import Ending
from understudy.protocol.membership.groups import Groups
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.wire.messages import (
    Alive,
    Announce,
    Claim,
    Commit,
    CommitAck,
    Fenced,
    Forward,
    Heartbeat,
    Lost,
    Withdraw,
)
from understudy.protocol.wire.records import OfferRecord, ProgressRecord, StageRecord

STAGES, STEPS = 5, 20
ATTACK_AT_S = 2.6
"""A few steps are committed then; a step takes 0.4 s."""

Attack = Callable[[LyingSimulation], None]


def swarm(faults: list[Fault] | None = None, seed: int = 1, spares: int = 2) -> LyingSimulation:
    manifest = small_manifest(stages=STAGES, steps=STEPS, microbatches=2)
    return build(seed, faults or [], manifest=manifest, spares=spares, kind=LyingSimulation)


def attacked(attack: Attack, faults: list[Fault] | None = None, seed: int = 1) -> LyingSimulation:
    """A run to its end, with an attack in its first steps."""
    simulation = swarm(faults, seed)
    simulation.at(ATTACK_AT_S, lambda: attack(simulation))
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    return simulation


# --- a peer that holds nothing ---


def heartbeats(swarm: LyingSimulation) -> None:
    for stage in range(STAGES):
        swarm.lie(LIAR, Heartbeat(stage, INCARNATION_MAX, "serving", swarm.last_step))


def records(swarm: LyingSimulation) -> None:
    """All that the liar may store: one record under each key."""
    for stage in range(STAGES):
        swarm.publish(StageRecord(LIAR, stage, INCARNATION_MAX, "serving", swarm.last_step))


def withdrawals(swarm: LyingSimulation) -> None:
    for stage in range(STAGES):
        swarm.lie(LIAR, Withdraw(stage, INCARNATION_MAX), Announce(stage, INCARNATION_MAX, "withdrawn", 0))


def claims(swarm: LyingSimulation) -> None:
    for stage in range(STAGES):
        swarm.lie(LIAR, Claim(stage, INCARNATION_MAX, tuple(range(4))))


def offers(swarm: LyingSimulation) -> None:
    for stage in range(STAGES):
        swarm.publish(OfferRecord(LIAR, stage, INCARNATION_MAX, (stage + 1) % STAGES, swarm.last_step, 1.0, 8, "lie"))


def ties(swarm: LyingSimulation) -> None:
    """The liar's PeerID comes before all others."""
    for stage in range(STAGES):
        swarm.lie(LIAR, Heartbeat(stage, 1, "serving", swarm.last_step))
        swarm.publish(StageRecord(LIAR, stage, 1, "serving", swarm.last_step))


def goodbyes(swarm: LyingSimulation) -> None:
    """The run is over, says somebody."""
    swarm.lie(LIAR, Announce(0, 99, "left", STEPS), Announce(0, 1, "left", STEPS), Announce(0, 2, "left", STEPS))


def progress(swarm: LyingSimulation) -> None:
    swarm.publish(ProgressRecord(LIAR, 99, STEPS, None, 0, 0.0))


def fences(swarm: LyingSimulation) -> None:
    """One heartbeat for a place among the owners, at a stage whose number nobody believes, then the fences."""
    for stage in range(STAGES):
        swarm.lie(LIAR, Heartbeat(stage, INCARNATION_MAX, "serving", swarm.last_step))
        swarm.lie(LIAR, Heartbeat(stage, 1, "serving", swarm.last_step))
    for stage in range(STAGES):
        for incarnation in (1, 2, INCARNATION_MAX):
            swarm.lie(LIAR, Fenced(stage, incarnation, "nobody", STEPS))


def commits(swarm: LyingSimulation) -> None:
    for step in range(swarm.last_step, swarm.last_step + 7):
        swarm.lie(LIAR, Commit(1, step), Commit(INCARNATION_MAX, step))


def attempts(swarm: LyingSimulation) -> None:
    attempt = Attempt(INCARNATION_MAX, 0)
    for stage in range(1, STAGES):
        swarm.lie(LIAR, Forward(swarm.last_step + 1, 0, attempt, stage - 1, 1), to=stage)


BY_NOBODY: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        heartbeats,
        records,
        withdrawals,
        claims,
        offers,
        ties,
        goodbyes,
        progress,
        fences,
        commits,
        attempts,
    )
}


@pytest.mark.parametrize("attack", BY_NOBODY)
def test_who_holds_nothing_takes_nothing(attack: str) -> None:
    simulation = attacked(BY_NOBODY[attack])
    assert simulation.named("peer.retired") == []
    assert simulation.recoveries() == []
    steps = [line.fields["step"] for line in simulation.named("step.committed")]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize("attack", BY_NOBODY)
def test_a_stage_that_is_lost_afterwards_is_taken_in_seconds(attack: str) -> None:
    simulation = attacked(BY_NOBODY[attack], [Kill(Trigger(2, 8, "forward"), 2)])
    (killed,) = simulation.named("(killed)")
    (line,) = simulation.recoveries()
    assert line.fields["stage"] == 2
    assert line.time - killed.time < 10.0


# --- an owner gone bad ---


def lying_gradient(swarm: LyingSimulation) -> None:
    """Forward of a step that S0 did not begin: it implies a commit that was none."""
    liar = swarm.peer_of(1)
    attempt = Attempt(1, 0)

    def once_more() -> None:
        step = swarm.last_step + 2
        swarm.lie(liar, Forward(step, 0, attempt, 1, 1), Heartbeat(1, 1, "serving", step - 1), to=2)

    swarm.again(0.01, swarm.now + 2.0, once_more)


def attempts_of_nobody(swarm: LyingSimulation) -> None:
    liar = swarm.peer_of(1)
    swarm.lie(liar, Forward(swarm.last_step + 1, 0, Attempt(INCARNATION_MAX, 0), 1, 1), to=2)


def false_steps(swarm: LyingSimulation) -> None:
    liar = swarm.peer_of(2)

    def once_more() -> None:
        for step in (swarm.last_step + 1, swarm.last_step + 2, STEPS):
            swarm.lie(liar, Heartbeat(2, 1, "serving", step), CommitAck(2, 1, step))

    swarm.again(0.1, swarm.now + 2.0, once_more)


def false_fences(swarm: LyingSimulation) -> None:
    liar = swarm.peer_of(2)

    def once_more() -> None:
        for stage in (0, 1, 3, 4):
            for owner in (LIAR, PeerId("nobody"), liar):
                swarm.lie(liar, Fenced(stage, 2, owner, STEPS), to=stage)

    swarm.again(0.5, swarm.now + 5.0, once_more)


def false_end(swarm: LyingSimulation) -> None:
    """A block stage says that the run is over."""
    liar = swarm.peer_of(3)
    swarm.publish(ProgressRecord(liar, 1, STEPS, None, 0, 0.0))
    swarm.lie(liar, Announce(0, 1, "left", STEPS), Announce(0, 2, "left", STEPS))


def false_deaths(swarm: LyingSimulation) -> None:
    """Lost, of every other owner, again and again."""
    liar = swarm.peer_of(2)

    def once_more() -> None:
        for stage in (0, 1, 3, 4):
            swarm.lie(liar, Lost(stage, 1, swarm.holders()[stage]))

    swarm.again(0.5, swarm.now + 30.0, once_more)


BY_AN_OWNER: dict[str, Attack] = {
    attack.__name__: attack for attack in (lying_gradient, attempts_of_nobody, false_steps, false_fences, false_end)
}


@pytest.mark.parametrize("attack", BY_AN_OWNER)
def test_one_owner_gone_bad_costs_no_other_its_stage(attack: str) -> None:
    simulation = attacked(BY_AN_OWNER[attack])
    assert simulation.named("peer.retired") == []
    steps = [line.fields["step"] for line in simulation.named("step.committed")]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    assert simulation.log[-1].time < 60.0


def death_of_s0(swarm: LyingSimulation, *others: int) -> None:
    """S0 is lost, says an owner for half a minute, and whoever takes it is."""
    liar = swarm.peer_of(2)

    def once_more() -> None:
        for stage in (0, *others):
            owner = swarm.owner(stage)
            if owner is not None:
                swarm.lie(liar, Lost(stage, owner.core.state.incarnation, owner.peer))

    swarm.again(0.5, swarm.now + 30.0, once_more)


def deaths_of_two(swarm: LyingSimulation) -> None:
    """As many as may be lost with a majority left."""
    death_of_s0(swarm, 4)


ACCUSERS: dict[Attack, float] = {false_deaths: 2.0, death_of_s0: 2.0, deaths_of_two: 15.0}
"""How long nothing may move. Of two that it accuses one is believed by those who hear it, so a claim lacks votes."""


@pytest.mark.parametrize("attack", ACCUSERS)
def test_who_goes_on_accusing_is_believed_once(attack: Attack) -> None:
    """One stage changes hands at most, and the run goes on meanwhile."""
    simulation = attacked(attack)
    assert len(simulation.recoveries()) <= 1
    times = [line.time for line in simulation.named("step.committed")]
    assert max(after - before for before, after in pairwise(times)) < ACCUSERS[attack]


@pytest.mark.parametrize("liar", [1, 4])
def test_who_says_that_the_dead_live_holds_nothing_up(liar: int) -> None:
    """Be it next to the lost stage, or not."""

    def attack(swarm: LyingSimulation) -> None:
        peer = swarm.peer_of(liar)
        swarm.again(0.2, swarm.now + 30.0, lambda: swarm.lie(peer, Alive(2, 1)))

    simulation = attacked(attack, [Kill(Trigger(2, 8, "forward"), 2)])
    (killed,) = simulation.named("(killed)")
    (line,) = simulation.recoveries()
    assert line.time - killed.time < 10.0


# --- at random ---


def run_tales(seed: int) -> LyingSimulation:
    """Lies of all kinds of a peer that holds nothing, for four seconds; every second time a stage is lost meanwhile."""
    rng = random.Random(seed)
    faults: list[Fault] = [Kill(Trigger(2, 6, "forward"), 2)] if seed % 2 else []
    simulation = swarm(faults, seed)
    tales = Tales(rng, simulation, LIAR)

    def tell() -> None:
        simulation.lie(LIAR, tales.message(), to=rng.choice([None, *range(STAGES)]))
        if rng.random() < 0.2:
            simulation.publish(tales.record())

    simulation.at(ATTACK_AT_S, lambda: simulation.again(0.05, simulation.now + 4.0, tell))
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    return simulation


@pytest.mark.parametrize("seed", range(6))
def test_lies_at_random_of_who_holds_nothing_cost_nobody_a_stage(seed: int) -> None:
    simulation = run_tales(seed)
    assert simulation.named("peer.retired") == []
    assert len(simulation.recoveries()) == seed % 2


# --- the simulator can see ---


def believe_every_title(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Groups, "is_entitled", lambda groups, tenure, now, lifetime_s: True)


def believe_one_word_of_the_end(patch: pytest.MonkeyPatch) -> None:
    believe_every_title(patch)
    patch.setattr(Ending, "is_credible", property(lambda ending: True))


def believe_every_accuser(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Credit, "is_good", lambda credit, accuser, accused, now: True)


def believe_who_accuses_everybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Credit, "overreach", lambda credit, accuser, accused, now, until: [])


def close_for_a_neighbour(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BlockStage, "_is_early", lambda stage, message: False)


def follow_any_driver(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BlockStage, "_is_of_driver", lambda stage, attempt: True)


BROKEN: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Attack]] = {
    "who says that it serves is believed": (believe_every_title, ties),
    "one word ends the run": (believe_one_word_of_the_end, goodbyes),
    "every accuser is believed": (believe_every_accuser, death_of_s0),
    "who accuses everybody is believed": (believe_who_accuses_everybody, false_deaths),
    "a neighbour's activation closes a step": (close_for_a_neighbour, lying_gradient),
    "attempts of any driver count": (follow_any_driver, attempts_of_nobody),
}


def run_soon_over(attack: Attack) -> None:
    assert attacked(attack).log[-1].time < 20.0


@pytest.mark.parametrize("guard", BROKEN)
def test_the_simulator_sees_a_broken_guard(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_guard, attack = BROKEN[guard]
    break_guard(monkeypatch)
    story = test_who_goes_on_accusing_is_believed_once if attack in ACCUSERS else run_soon_over
    with pytest.raises((Violation, AssertionError)):
        story(attack)
