"""Exports from simulated swarms that lose peers: one step, or none; and training is as it is without them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.sim.exports import ExportSimulation
from tests.sim.faults import Kill, Trigger
from tests.sim.node import Violation
from tests.sim.schedules import LIMIT_S, schedule
from tests.sim.simulation import build, small_manifest
from understudy.protocol.export.actions import ExportWish
from understudy.protocol.export.exporter import Exporter
from understudy.protocol.export.lease import SnapshotLeases
from understudy.protocol.wire.messages import LeaseStatus

CHUNK = 20
SEEDS = range(20_000, 20_040)


def run_seed(seed: int, method: str) -> ExportSimulation:
    """A random schedule of faults, and two people who export meanwhile: what there is, and the last step."""
    simulation = schedule(seed, method).staged(ExportSimulation)
    rng = random.Random(seed)
    simulation.add_exporter("exporter-0", at=rng.uniform(0.0, 3.0))
    simulation.add_exporter("exporter-1", at=rng.uniform(0.0, 3.0), wish=ExportWish(is_last=True))
    try:
        simulation.run(LIMIT_S)
        simulation.check_outcome()
    except Violation as violation:
        raise Violation(f"run_seed({seed}, {method!r}): {violation}") from violation
    return simulation


@pytest.mark.parametrize("method", ["checkfree", "checkfree+"])
@pytest.mark.parametrize("first", SEEDS[::CHUNK])
def test_an_export_is_of_one_step_whatever_is_lost(first: int, method: str) -> None:
    """Most exports finish; the rest began when the swarm was gone, or lost an owner with the last step."""
    finished = 0
    for seed in range(first, first + CHUNK):
        for exporter in run_seed(seed, method).exporters.values():
            assert exporter.finished is not None or exporter.failed
            finished += exporter.finished is not None
    assert finished >= 2 * CHUNK * 0.75


def calm(**wish: Any) -> ExportSimulation:
    """Nobody is lost, and two people export."""
    manifest = small_manifest(stages=4, steps=8)
    simulation = build(1, [], manifest=manifest, spares=0, kind=ExportSimulation)
    simulation.add_exporter("exporter-0", at=1.5, wish=ExportWish(**wish))
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    return simulation


def test_nobody_leaves_before_the_last_weights_are_fetched() -> None:
    simulation = calm(is_last=True)
    (exporter,) = simulation.exporters.values()
    assert exporter.finished == 8
    gone_at = {line.time for line in simulation.named("peer.left") if line.fields.get("reason") == "done"}
    fetched_at = max(line.time for line in simulation.named("export.fetched"))
    assert fetched_at - 0.5 < min(gone_at)


def test_training_goes_on_while_an_export_is_under_way() -> None:
    simulation = calm()
    (exporter,) = simulation.exporters.values()
    assert exporter.finished is not None
    assert exporter.finished < 8
    assert all(not node.holds for node in simulation.nodes.values())


def test_an_interrupted_export_goes_on_with_its_step_while_it_is_held() -> None:
    manifest = small_manifest(stages=4, steps=60)
    simulation = build(1, [], manifest=manifest, spares=0, kind=ExportSimulation)
    first = simulation.add_exporter("exporter-0", at=1.5)
    simulation.run_until(lambda: len(first.parts) == 2)
    first.is_stopped = True
    (step,) = {copy.step for _, copy in first.parts.values()}
    there = {stage: f"digest of S{stage}" for stage in first.parts}
    aims = simulation.named("export.aimed")
    second = simulation.add_exporter("exporter-0", at=simulation.now + 5.0, wish=ExportWish(step=step, there=there))
    second.parts.update(first.parts)
    simulation.run(LIMIT_S)
    assert second.finished == step
    assert len(simulation.named("export.resumed")) == 1
    assert simulation.named("export.aimed") == aims


def test_an_interrupted_export_whose_step_is_gone_begins_anew_and_says_so() -> None:
    manifest = small_manifest(stages=4, steps=60)
    simulation = build(1, [], manifest=manifest, spares=0, kind=ExportSimulation)
    late = simulation.add_exporter("exporter-0", at=4.0, wish=ExportWish(step=2, there={0: "digest of S0"}))
    simulation.run(LIMIT_S)
    assert late.finished is not None
    assert late.finished > 2
    assert "beyond step 2" in simulation.named("export.aimed")[0].fields["reason"]


def test_a_run_without_owners_is_told_from_one_that_waits() -> None:
    manifest = small_manifest(stages=4, steps=3)
    simulation = build(1, [], manifest=manifest, spares=0, kind=ExportSimulation)
    late = simulation.add_exporter("exporter-0", at=20.0)
    simulation.run(LIMIT_S)
    assert late.finished is None
    assert "nobody serves any stage" in late.failed


def test_an_owner_lost_at_the_end_is_not_waited_for() -> None:
    """S2 dies as the last step is decided: nobody will take it, and those who hold theirs must not wait for ever."""
    manifest = small_manifest(stages=4, steps=6)
    kill = Kill(Trigger(stage=0, step=6, moment="committed"), victim=2)
    simulation = build(1, [kill], manifest=manifest, spares=1, kind=ExportSimulation)
    exporter = simulation.add_exporter("exporter-0", at=1.5, wish=ExportWish(is_last=True))
    simulation.run(LIMIT_S)
    assert exporter.finished is None
    assert "nobody recovers S2" in exporter.failed


# --- the guards ---


def take_any_step(exporter: Exporter, peer: str, answer: LeaseStatus) -> None:
    """An owner that is beyond the step is asked for the next one; the others give what they hold already."""
    part = exporter._parts[answer.stage]
    if answer.status == "passed":
        exporter._step = answer.committed + 1
        part.asked_at = float("-inf")
    elif answer.status == "held":
        part.answer = answer


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "an export takes the steps that it gets": (Exporter, "_on_lease_status", take_any_step),
    "an owner leaves with what is wanted": (SnapshotLeases, "is_wanted", property(lambda leases: False)),
}


@pytest.mark.parametrize("guard", MUTANTS)
def test_a_broken_guard_is_seen(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, broken = MUTANTS[guard]
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(AssertionError):
        export_again_and_again()


def export_again_and_again() -> None:
    test_nobody_leaves_before_the_last_weights_are_fetched()
    for seed in SEEDS:
        run_seed(seed, "checkfree")
