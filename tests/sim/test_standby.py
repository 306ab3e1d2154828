"""Stages that are lost come back from standby copies; and what becomes of copies that are late, lost or too old."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.sim.faults import Fault, Hinder, Kill, Restart, Trigger
from tests.sim.node import Violation
from tests.sim.simulation import Simulation, build, small_manifest
from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.ids import PeerId
from understudy.protocol.recovery import ladder
from understudy.protocol.recovery.case import Plan, RecoveryCase
from understudy.protocol.standby.shelf import Shelf
from understudy.protocol.wire.messages import CopyOffer

LIMIT_S = 600.0
LATE_S = 12.0
"""After the first fault, and the deaths that it caused."""
SEEDS = range(3)


def story(
    seed: int,
    faults: Sequence[Fault],
    *,
    spares: int = 0,
    late_spares: int = 0,
    steps: int = 40,
    stages: int = 6,
    **settings: Any,
) -> Simulation:
    """A swarm with a copy after every second step; ``late_spares`` come once the faults are over."""
    manifest = small_manifest(stages=stages, steps=steps, microbatches=2, **({"standby_every": 2} | settings))
    simulation = build(seed, list(faults), manifest=manifest, spares=spares, kind=Simulation)
    for number in range(late_spares):
        simulation.add_node(f"late-{number}", at=LATE_S)
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    return simulation


def lost(*stages: int, step: int = 30) -> list[Fault]:
    return [Kill(Trigger(0, step, "committed"), stage) for stage in stages]


def methods(simulation: Simulation) -> dict[int, str]:
    return {line.fields["stage"]: line.fields["method"] for line in simulation.recoveries()}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stages", [(3,), (2, 3), (4, 5)], ids=str)
def test_who_holds_the_copy_takes_the_stage(stages: tuple[int, ...], seed: int) -> None:
    """Each of five spares follows one stage. Nothing is fetched."""
    simulation = story(seed, lost(*stages), spares=5)
    assert methods(simulation) == dict.fromkeys(stages, "standby")
    for line in simulation.recoveries():
        assert line.fields["donors"] == []
        assert 0 <= line.fields["step"] - int(line.fields["reason"].split()[6].rstrip(",")) <= 3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stages", [(3,), (2, 3), (4, 5)], ids=str)
def test_without_spares_the_next_but_one_holds_the_copy(stages: tuple[int, ...], seed: int) -> None:
    simulation = story(seed, lost(*stages), late_spares=3)
    assert methods(simulation) == dict.fromkeys(stages, "standby")


@pytest.mark.parametrize("seed", SEEDS)
def test_s0_and_both_its_neighbours_come_back_together(seed: int) -> None:
    """Everybody who keeps a part of S0 is lost with it; the first spare has both."""
    simulation = story(seed, lost(0, 1, 6), stages=7, spares=6)
    assert methods(simulation) == dict.fromkeys((0, 1, 6), "standby")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stage_that_is_lost_again_comes_back_from_the_copy_of_its_second_owner(seed: int) -> None:
    simulation = story(seed, [*lost(3, step=30), *lost(3, step=60)], spares=5, steps=70)
    assert [line.fields["method"] for line in simulation.recoveries()] == ["standby", "standby"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("hindrance", "method"),
    [
        (Hinder(Trigger(0, 2, "committed"), 60.0, ("CopyOffer",), loss=1.0), "checkfree"),
        (Hinder(Trigger(0, 2, "committed"), 60.0, ("CopyKept",), loss=1.0), "checkfree"),
        (Hinder(Trigger(0, 1, "forward"), 60.0, ("CopyOffer",), delay_s=30.0), "checkfree"),
    ],
    ids=["never offered", "never confirmed", "late"],
)
def test_copies_that_do_not_come_leave_it_to_the_neighbours(hindrance: Hinder, method: str, seed: int) -> None:
    simulation = story(seed, [hindrance, *lost(3)], spares=5, standby_age_max=6, method="checkfree")
    assert methods(simulation) == {3: method}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_holder_is_lost_together_with_the_stage(seed: int) -> None:
    """S3 and S5 hold each other's copies."""
    simulation = story(seed, lost(3, 5), late_spares=3, method="checkfree")
    assert methods(simulation) == {3: "checkfree", 5: "copy"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_holder_that_started_again_has_nothing(seed: int) -> None:
    story(seed, [Restart(Trigger(0, 29, "committed"), 0.3, 5), *lost(3)], spares=2, method="checkfree")


# --- guards ---


def use_old_copies(case: RecoveryCase) -> Plan | None:
    copies = case.sources("stage")
    return Plan("standby", "whatever", case.step, tuple(copies[-1:])) if copies and case.stage else None


def send_another_stage(shelf: Shelf, stage: int) -> tuple[Any, ...]:
    return tuple(copy for key in sorted(shelf._copies) if key[0] for copy in shelf._copies[key])


def stale(seed: int) -> Simulation:
    hindrance = Hinder(Trigger(0, 3, "committed"), 60.0, ("CopyOffer",), loss=1.0)
    return story(seed, [hindrance, *lost(3)], spares=5, standby_age_max=4)


def plain(seed: int) -> Simulation:
    return story(seed, lost(2, 3), spares=5)


MUTANTS: dict[str, tuple[Callable[[int], Simulation], Any, str, Any]] = {
    "an old copy is as good as any": (stale, ladder, "LADDER", (ladder.LADDER[0], use_old_copies, *ladder.LADDER[2:])),
    "a holder takes one stage for another": (plain, Shelf, "copies", send_another_stage),
}


@pytest.mark.parametrize("guard", MUTANTS)
def test_the_simulator_sees_a_broken_guard(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tale, where, name, broken = MUTANTS[guard]
    monkeypatch.setattr(where, name, broken)
    with pytest.raises((Violation, LocalProtocolError)):
        for_all(tale)


@pytest.mark.parametrize("tale", [stale, plain])
def test_the_stories_of_the_mutants_break_no_rule(tale: Callable[[int], Simulation]) -> None:
    for_all(tale)


def for_all(tale: Callable[[int], Simulation]) -> None:
    for seed in SEEDS:
        tale(seed)


def owners_alone(shelf: Shelf, peer: PeerId, offer: CopyOffer) -> None:
    if shelf._state.tenure is not None:
        FETCH(shelf, peer, offer)


FETCH = Shelf._fetch


def test_a_spare_that_never_fetches_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes what it is offered for noise; S0's keepers have new copies all the same, and so has a later holder."""
    monkeypatch.setattr(Shelf, "_fetch", owners_alone)
    simulation = story(1, [], spares=1, steps=240)
    copied = [line.fields for line in simulation.named("standby.copied")]
    for stage in range(6):
        assert max(fields["copied_step"] for fields in copied if fields["stage"] == stage) > 235
