"""Runs that begin with an export's weights, under faults: every stage begins with them, however long that takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sim.beginnings import BegunSimulation, begun
from tests.sim.faults import Kill, Trigger
from tests.sim.node import Violation
from tests.sim.schedules import LIMIT_S, schedule, seeds
from tests.sim.simulation import build, small_manifest

SEEDS = seeds(30_000, 10)
AWAY_S = 9.0
"""Longer than a claimant asks a donor that does not deliver."""


@pytest.mark.parametrize("method", ["checkfree", "checkfree+"])
def test_no_schedule_of_faults_breaks_an_invariant_of_a_run_with_initial_weights(method: str) -> None:
    for seed in SEEDS:
        found = schedule(seed, method)
        simulation = replace(found, manifest=begun(found.manifest)).staged(BegunSimulation)
        simulation.founder_leaves = (seed % 4) * 1.2 or float("inf")
        simulation.founder_returns = simulation.founder_leaves + AWAY_S
        try:
            simulation.run(LIMIT_S)
            simulation.check_outcome()
        except Violation as violation:
            raise Violation(f"seed {seed}, {method!r}: {violation}") from violation
        began = simulation.named("stage.initialised")
        assert {line.fields["method"] for line in began} <= {"initial"}


def test_every_stage_begins_with_the_weights_that_the_manifest_names() -> None:
    manifest = begun(small_manifest(stages=4, steps=3))
    simulation = build(1, [], manifest=manifest, spares=0, kind=BegunSimulation)
    simulation.run(LIMIT_S)
    began = simulation.named("stage.initialised")
    assert {(line.fields["stage"], line.fields["method"]) for line in began} == {(s, "initial") for s in range(4)}


def test_a_run_waits_for_a_founder_that_is_away() -> None:
    manifest = begun(small_manifest(stages=4, steps=3))
    simulation = build(1, [], manifest=manifest, spares=0, kind=BegunSimulation)
    simulation.founder_leaves, simulation.founder_returns = 0.0, 60.0
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    began = simulation.named("stage.initialised")
    assert {(line.fields["stage"], line.fields["method"]) for line in began} == {(s, "initial") for s in range(4)}
    assert any("waiting for the founder" in line.fields["reason"] for line in simulation.named("fetch.failed"))


def test_a_stage_lost_before_the_first_step_begins_with_them_again() -> None:
    manifest = begun(small_manifest(stages=4, steps=3))
    kill = Kill(Trigger(stage=2, step=1, moment="forward"))
    simulation = build(1, [kill], manifest=manifest, spares=1, kind=BegunSimulation)
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    assert [line.fields["method"] for line in simulation.recoveries()] == ["initial"]
