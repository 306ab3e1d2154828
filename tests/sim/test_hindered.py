"""Messages lost and late by their kind, readers of old records, updates that overflow: nothing of it breaks a rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sim.faults import Kill, Overflow, Trigger
from tests.sim.node import Violation
from tests.sim.schedules import hindered_schedule
from tests.sim.simulation import Simulation, build, replace_settings, small_manifest
from tests.sim.test_seeds import chunks, run_seed
from tests.sim.transcripts import LIMIT_S, read
from understudy.protocol.driving import Driver
from understudy.protocol.edge_copies import PARTS, EdgeCopier, EdgeKeeper
from understudy.protocol.events import Applied, SnapshotJob
from understudy.protocol.messages import FetchRequest
from understudy.protocol.pipeline import BlockStage
from understudy.protocol.steps import StageLedger
from understudy.protocol.updates import OWN_SKIPS_MAX, Updates

SEEDS = {"checkfree": range(10_000, 10_050), "checkfree+": range(10_000, 10_050)}


@pytest.mark.parametrize(("method", "seeds"), chunks(SEEDS))
def test_no_hindrance_breaks_an_invariant(method: str, seeds: range) -> None:
    for seed in seeds:
        run_seed(seed, method, hindered_schedule)


REGRESSION_SEEDS: list[tuple[str, int, str]] = [
    ("checkfree", 10_064, "an old driver's last Commit closed the step of one stage alone"),
]


@pytest.mark.parametrize(("method", "seed", "why"), REGRESSION_SEEDS)
def test_what_failed_once_when_hindered_does_not_fail_again(method: str, seed: int, why: str) -> None:
    run_seed(seed, method, hindered_schedule)


# --- an old driver's last word ---

LAST_WORD = Path(__file__).parents[1] / "scenarios" / "late_last_word.txt"
TAKE_OVER = Driver._take_over


def played() -> list[tuple[str, int]]:
    """Who committed what in the story of the late last word."""
    simulation = read(LAST_WORD).staged()
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    return [(line.observer, line.fields["step"]) for line in simulation.named("step.committed")]


def believe_every_driver(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StageLedger, "is_outdated", lambda ledger, incarnation: False)


def take_over_only_untouched(driver: Driver, step: int) -> None:
    if not driver._ledger.losses:
        TAKE_OVER(driver, step)


def test_an_old_drivers_last_word_closes_nothing_that_is_done_again() -> None:
    assert ("spare-0", 3) in played()


def test_without_that_guard_the_new_driver_catches_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of its losses are in then: what head and embedding counted differs, and each is divided by its own."""
    believe_every_driver(monkeypatch)
    assert played()[3:] == [("spare-0", 4), ("spare-0", 5)]


def test_without_both_the_run_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    believe_every_driver(monkeypatch)
    monkeypatch.setattr(Driver, "_take_over", take_over_only_untouched)
    with pytest.raises(Violation, match="not done"):
        played()


def old_word(patch: pytest.MonkeyPatch) -> None:
    believe_every_driver(patch)
    patch.setattr(Driver, "_take_over", take_over_only_untouched)


# --- guards that the schedules must miss ---


def forget_the_last_pair(keeper: EdgeKeeper, part: Any, copies: list[Any]) -> list[Any]:
    return copies[-1:]


def copy_apart(copier: EdgeCopier) -> None:
    """Order each part by itself, as if an update could not fall between."""
    if copier._is_due and not copier._is_ordered and not copier._offered:
        copier._is_due = False
        for part in PARTS:
            copier._queue.push(SnapshotJob(copier._state.committed, (part,)))


def keep_the_old_norm(updates: Updates, step: int, result: Applied) -> None:
    norm = updates._state.squared_gradient_norm
    APPLIED(updates, step, result)
    updates._state.squared_gradient_norm = updates._state.squared_gradient_norm or norm


def say_nothing(updates: Updates, step: int, result: Applied) -> None:
    APPLIED(updates, step, Applied(result.squared_gradient_norm))


APPLIED = Updates.applied

MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "an old driver's word counts": old_word,
    "the parts are copied apart": lambda patch: patch.setattr(EdgeCopier, "advance", copy_apart),
    "a keeper forgets the last pair": lambda patch: patch.setattr(EdgeKeeper, "_worth_keeping", forget_the_last_pair),
    "a skipped update leaves the old norm": lambda patch: patch.setattr(Updates, "applied", keep_the_old_norm),
    "a skipped update is not said": lambda patch: patch.setattr(Updates, "applied", say_nothing),
    "a stage does not say that a step is over": lambda patch: patch.setattr(
        BlockStage, "_tell_driver", lambda stage: None
    ),
}


def run_all(seeds: range) -> None:
    for seed in seeds:
        for method in SEEDS:
            run_seed(seed, method, hindered_schedule)


@pytest.mark.parametrize("guard", MUTANTS)
def test_the_simulator_sees_a_broken_guard(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[guard](monkeypatch)
    with pytest.raises(Violation):
        run_all(range(10_000, 10_250))


# --- who may fetch copies of S0 ---


class CuriousSimulation(Simulation):
    """Everybody asks S0 for every copy that it holds."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.served: set[tuple[str, str]] = set()
        """Who may fetch which part."""

    def ask_around(self) -> None:
        driver = self.owner(0)
        for digest in driver.snapshots if driver is not None else ():
            assert driver is not None
            request = FetchRequest(0, driver.core.state.incarnation, digest, 0)
            part = digest.partition(" ")[0]
            self.served |= {(part, peer) for peer in self.nodes if driver.core.may_fetch(peer, request)}


@pytest.mark.parametrize(
    ("keepers", "embedding", "head"), [(1, [1], [4]), (2, [1, 4], [1, 4]), (3, [1, 2, 4], [1, 3, 4])]
)
def test_copies_of_s0_are_for_their_keepers(keepers: int, embedding: list[int], head: list[int]) -> None:
    manifest = small_manifest(stages=5, steps=3, edge_keepers=keepers)
    simulation = build(1, [], manifest=manifest, spares=1, kind=CuriousSimulation)
    for instant in range(13, 25):
        simulation.at(instant / 10, simulation.ask_around)
    simulation.run(LIMIT_S)
    allowed = [*(("embedding", stage) for stage in embedding), *(("head", stage) for stage in head)]
    assert simulation.served == {(part, f"peer-{stage}") for part, stage in allowed}


# --- what is lost together ---


def recovered(lost: tuple[int, ...], keepers: int, seed: int) -> dict[str, Any]:
    """What the new S0 says after these stages died at the same moment."""
    manifest = small_manifest(stages=6, steps=8, edge_keepers=keepers)
    faults = [Kill(Trigger(0, 4, "committed"), stage) for stage in lost]
    simulation = build(seed, list(faults), manifest=manifest, spares=len(lost) + 1, kind=Simulation)
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    return next(dict(line.fields) for line in simulation.recoveries() if line.fields["stage"] == 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("lost", "keepers"), [((0,), 1), ((0, 1), 2), ((0, 5), 2), ((0, 1, 5), 3), ((0, 2, 3), 1)], ids=str
)
def test_s0_comes_back_exactly_from_whoever_keeps_it(lost: tuple[int, ...], keepers: int, seed: int) -> None:
    fields = recovered(lost, keepers, seed)
    assert fields["method"] == "edge copy"
    assert fields["reason"].endswith("exactly")


@pytest.mark.parametrize(
    ("lost", "keepers", "said"),
    [
        ((0, 1), 1, "the head as of step 3, the rest from the seed because its copy was lost too"),
        ((0, 5), 1, "the embedding as of step 3, the rest from the seed because its copy was lost too"),
        ((0, 1, 5), 2, "no copy of S0 is left"),
    ],
)
def test_with_too_few_keepers_it_says_what_is_lost(lost: tuple[int, ...], keepers: int, said: str) -> None:
    fields = recovered(lost, keepers, 1)
    assert said in fields["reason"]


# --- updates that are not finite ---


def overflow(updates: int, seed: int = 1) -> Simulation:
    manifest = replace_settings(small_manifest(stages=4, steps=10))
    fault = Overflow(Trigger(2, 2, "forward"), updates)
    simulation = build(seed, [fault], manifest=manifest, spares=1, kind=Simulation)
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    return simulation


def test_a_stage_that_skips_some_updates_says_so_and_goes_on() -> None:
    simulation = overflow(OWN_SKIPS_MAX - 1)
    assert [line.fields["in_a_row"] for line in simulation.named("update.skipped")] == list(range(1, OWN_SKIPS_MAX))
    assert not simulation.recoveries()


def test_a_stage_that_skips_every_update_is_given_up_and_replaced() -> None:
    simulation = overflow(100)
    assert [line.fields["step"] for line in simulation.named("update.skipped")] == list(range(2, 2 + OWN_SKIPS_MAX))
    (left,) = [line for line in simulation.named("peer.left") if line.fields.get("reason") == "failed"]
    assert left.observer == "peer-2"
    (line,) = simulation.recoveries()
    assert (line.observer, line.fields["stage"]) == ("spare-0", 2)
