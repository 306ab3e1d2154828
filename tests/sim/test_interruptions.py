"""Owners that are interrupted for about the dead timeout, start again under their identity, or live in two worlds."""

from __future__ import annotations

import pytest

from tests.sim.faults import Kill, Restart, Trigger
from tests.sim.node import Violation
from tests.sim.schedules import (
    LIMIT_S,
    brief_schedule,
    hindered_schedule,
    restart_schedule,
    seeds,
    split_schedule,
)
from tests.sim.simulation import Simulation, build, small_manifest
from tests.sim.test_seeds import Mutant, run_seed
from understudy.protocol.events import RecordsRead
from understudy.protocol.membership.groups import Group
from understudy.protocol.membership.seats import Observation, Seat
from understudy.protocol.membership.view import Membership
from understudy.protocol.wire.records import StageRecord, stage_key

GENERATORS = {"brief": brief_schedule, "restart": restart_schedule, "split": split_schedule}
SEEDS = {"brief": seeds(50_000, 12), "restart": seeds(50_000, 24), "split": seeds(50_000, 6)}


@pytest.mark.parametrize("method", ["checkfree", "checkfree+"])
@pytest.mark.parametrize("kind", GENERATORS)
def test_no_interruption_breaks_an_invariant(kind: str, method: str) -> None:
    for seed in SEEDS[kind]:
        run_seed(seed, method, GENERATORS[kind])


KEPT = [
    ("split", "checkfree+", 100_013, "S0 of one side and stages of the other that were one step ahead stood still"),
    ("split", "checkfree+", 100_018, "two stages of either side, one step apart, stood still"),
    ("split", "checkfree+", 100_052, "S0 alone was ahead, and no stage could follow it"),
    ("split", "checkfree+", 100_161, "a living stage closed a step that was decided without it"),
    ("split", "checkfree+", 100_194, "a stage closed two steps in a row with half of their microbatches"),
    ("hindered", "checkfree+", 100_064, "a stage that joined in the run's last step left without its update"),
    ("hindered", "checkfree", 30_704, "a stage that was rebuilt within the last step left without its update"),
    ("hindered", "checkfree", 30_103, "a split during the last step left one half without an end"),
    ("hindered", "checkfree", 10_106, "weights of a step whose update was skipped were judged to be of another step"),
    ("brief", "checkfree+", 5_000_284, "S0 was cut off, and vouched alone for a claim on a stage that lived"),
    ("restart", "checkfree+", 5_000_008, "six losses of one microbatch in a row, each waited for twice as long"),
    (
        "split",
        "checkfree",
        5_000_111,
        "an old record took a newer one's place, and spares saw a claim that never ended",
    ),
]


@pytest.mark.parametrize(("kind", "method", "seed", "why"), KEPT)
def test_what_failed_once_does_not_fail_again(kind: str, method: str, seed: int, why: str) -> None:
    run_seed(seed, method, {**GENERATORS, "hindered": hindered_schedule}[kind])


# --- a process that starts again ---


@pytest.mark.parametrize("method", ["checkfree", "checkfree+"])
@pytest.mark.parametrize("spares", [0, 1])
@pytest.mark.parametrize("after_s", [0.0, 3.0, 8.0, 25.0])
@pytest.mark.parametrize("stage", range(5))
def test_a_restarted_owner_never_begins_a_trained_stage_anew(
    stage: int, after_s: float, spares: int, method: str
) -> None:
    """A supervisor starts it again under the same identity: five of five came back with fresh weights, in silence."""
    restart = Restart(Trigger(0, 10, "committed"), after_s, stage)
    simulation = build(
        7,
        [restart],
        manifest=small_manifest(stages=5, steps=30, microbatches=2, method=method),
        spares=spares,
        kind=Simulation,
    )
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    (recovered,) = [line for line in simulation.recoveries() if line.fields["stage"] == stage]
    assert recovered.fields["incarnation"] == 2
    assert recovered.fields["method"] != "seed"
    assert recovered.fields["step"] >= 9
    if not spares:
        assert recovered.observer == f"peer-{stage}"


def test_a_swarm_that_starts_again_before_its_first_step_begins_again() -> None:
    restarts = [Restart(Trigger(0, 1, "forward"), 0.1, stage) for stage in range(4)]
    simulation = build(7, list(restarts), manifest=small_manifest(stages=4, steps=3), spares=0, kind=Simulation)
    simulation.advance(60.0)
    simulation.check_outcome()


def test_an_old_record_of_ours_leaves_the_new_one_in_the_dht() -> None:
    """A read that took long brings the record of before the restart, when we serve the stage again."""
    manifest = small_manifest(stages=5, steps=200, microbatches=2)
    simulation = build(7, [], manifest=manifest, spares=0, kind=Simulation)
    while not any(line.fields["step"] == 20 for line in simulation.named("step.committed")):
        simulation.advance(simulation.now + 0.05)
    victim = simulation.owner(2)
    assert victim is not None
    peer = victim.peer
    simulation.kill(victim)
    simulation.at(simulation.now + 1.0, lambda: simulation.restart(victim))
    while (node := simulation.owner(2)) is None:
        simulation.advance(simulation.now + 0.1)
    simulation.advance(simulation.now + 1.0)
    assert simulation._dht[stage_key(2)][peer].record.state == "serving"
    simulation.feed(node, RecordsRead(stage_key(2), (StageRecord(peer, 2, 1, "serving", 20),)))
    simulation.advance(simulation.now + 0.5)
    assert simulation._dht[stage_key(2)][peer].record.state == "serving"


# --- one death after the other ---


@pytest.mark.parametrize("seed", [0, 3, 12, 23, 24])
def test_a_claim_that_comes_too_early_costs_a_second(seed: int) -> None:
    """Each stage dies twice, soon after its neighbour: spares know of new owners late, and ask the wrong witnesses.

    Their withdrawal reached witnesses that had refused, which then refused the next claim too: seconds for each death.
    An incarnation is spent only where somebody had recognised the claim. (Of the seeds 0 to 39 four take longer, where
    two claimants share the votes and the one with more of them waits `dead_after_s` for a neighbour of the stage.)
    """
    kills = [
        Kill(Trigger(stage, step, moment, 0.01))
        for place, stage in enumerate((1, 2, 3, 4, 0), start=1)
        for step, moment in ((4 * place - 2, "forward"), (4 * place, "backward"))
    ]
    manifest = small_manifest(stages=5, steps=22, microbatches=4, method="checkfree+", edge_copy_every=1)
    simulation = build(seed, list(kills), manifest=manifest, spares=len(kills), kind=Simulation)
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    recoveries = simulation.recoveries()
    assert sorted(line.fields["stage"] for line in recoveries) == [stage for stage in range(5) for _ in range(2)]
    assert sum(line.fields["incarnation"] for line in recoveries) <= 5 * (2 + 3) + 3
    killed = [line.time for line in simulation.named("(killed)")]
    assert max(back.time - lost for lost, back in zip(killed, recoveries, strict=True)) < 3.0


# --- the simulator can see ---


def let_a_claim_displace(view: Membership, group: Group | None, seat: Seat, *, is_direct: bool) -> Observation:
    if group is not None and seat.state == "recovering" and seat.incarnation > group.incarnation:
        view.groups[seat.stage] = Group([seat], group)
        return Observation.NEW_OWNER
    return OBSERVE_OTHER(view, group, seat, is_direct=is_direct)


OBSERVE_OTHER = Membership._observe_other


def run_briefly(tried: range) -> None:
    for seed in tried:
        run_seed(seed, "checkfree", brief_schedule)


def test_the_simulator_sees_a_claim_that_displaces_an_owner_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    Mutant(Membership, "_observe_other", let_a_claim_displace).apply(monkeypatch)
    with pytest.raises(Violation):
        run_briefly(range(250))
