"""Messages lost and late by their kind, readers of old records, updates that overflow: nothing of it breaks a rule."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.sim.faults import Fault, Hinder, Kill, Overflow, Trigger
from tests.sim.node import Violation
from tests.sim.schedules import hindered_schedule, seeds
from tests.sim.simulation import Simulation, build, replace_settings, small_manifest
from tests.sim.test_seeds import chunks, run_seed
from tests.sim.transcripts import LIMIT_S, read
from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.jobs import Applied, ImageJob
from understudy.protocol.pipeline.coordinator import Coordinator
from understudy.protocol.pipeline.ledger import StageLedger
from understudy.protocol.pipeline.numbers import Spoilt
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.pipeline.updates import OWN_SKIPS_MAX, Updates
from understudy.protocol.recovery.lifecycle import Lifecycle
from understudy.protocol.standby.holders import DRIVER_PARTS
from understudy.protocol.standby.shelf import Shelf
from understudy.protocol.standby.source import CopySource
from understudy.protocol.wire.messages import FetchRequest

SEEDS = {"checkfree": seeds(10_000, 25), "checkfree+": seeds(10_000, 25)}


@pytest.mark.parametrize(("method", "chunk"), chunks(SEEDS))
def test_no_hindrance_breaks_an_invariant(method: str, chunk: range) -> None:
    for seed in chunk:
        run_seed(seed, method, hindered_schedule)


REGRESSION_SEEDS: list[tuple[str, int, str]] = [
    ("checkfree", 10_064, "an old driver's last Commit closed the step of one stage alone"),
    ("checkfree", 20_168, "after a split the first S0 took the other side's step for its predecessor's"),
    ("checkfree", 20_353, "a stage that alone knew the last step had left, and the new S0 did not look at its record"),
    ("checkfree", 20_561, "a stage that alone knew the last step had left, and the new S0 did not look at its record"),
    ("checkfree+", 20_274, "a stage that alone knew the last step had left, and the new S0 did not look at its record"),
    ("checkfree+", 20_449, "a stage that alone knew the last step had left, and the new S0 did not look at its record"),
    ("checkfree+", 20_468, "a stage that alone knew the last step had left, and the new S0 did not look at its record"),
    ("checkfree+", 20_382, "a stage that alone knew the last step left before it told its neighbours"),
    ("checkfree+", 500_036, "a claimant took a tenure while an old record showed the owner of before alive"),
]


@pytest.mark.parametrize(("method", "seed", "why"), REGRESSION_SEEDS)
def test_what_failed_once_when_hindered_does_not_fail_again(method: str, seed: int, why: str) -> None:
    run_seed(seed, method, hindered_schedule)


# --- an old driver's last word ---

LAST_WORD = Path(__file__).parents[1] / "scenarios" / "late_last_word.txt"
TAKE_OVER = Coordinator.take_over


def played() -> list[tuple[str, int]]:
    """Who committed what in the story of the late last word."""
    simulation = read(LAST_WORD).staged()
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    return [(line.observer, line.fields["step"]) for line in simulation.named("step.committed")]


def believe_every_driver(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StageLedger, "is_outdated", lambda ledger, incarnation: False)


def take_over_only_untouched(coordinator: Coordinator, step: int) -> None:
    if not coordinator._edge.ledger.losses:
        TAKE_OVER(coordinator, step)


def break_all(patch: pytest.MonkeyPatch) -> None:
    believe_every_driver(patch)
    patch.setattr(Coordinator, "take_over", take_over_only_untouched)
    patch.setattr(Lifecycle, "yield_if_apart", lambda lifecycle: None)


def test_an_old_drivers_last_word_closes_nothing_that_is_done_again() -> None:
    assert ("spare-0", 3) in played()


def test_without_that_guard_the_new_driver_catches_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of its losses are in then: what head and embedding counted differs, and each is divided by its own."""
    believe_every_driver(monkeypatch)
    assert played()[3:] == [("spare-0", 4), ("spare-0", 5)]


def test_without_both_the_run_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the third way out, which costs a stage: who is left behind gives it up."""
    break_all(monkeypatch)
    with pytest.raises(Violation, match="not done"):
        played()


# --- a step that only a stage in the middle knows to be over ---


def known_in_the_middle(seed: int) -> Simulation:
    """S1 and S4 are replaced late in step 3, so neither counted all of it; S0 decides it and dies with only S2 told."""
    before = Trigger(0, 3, "forward")
    faults: list[Fault] = [
        Kill(Trigger(1, 3, "backward", 0.15), 1),
        Kill(Trigger(4, 3, "backward", 0.15), 4),
        Hinder(before, 60.0, ("Commit",), towards=2, victim=0),
        Hinder(before, 60.0, ("Commit",), loss=1.0, victim=0),
        Kill(replace(before, moment="committed"), 0),
    ]
    manifest = small_manifest(stages=5, steps=5, microbatches=8, method="checkfree")
    simulation = build(seed, faults, manifest=manifest, spares=4, kind=Simulation)
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    return simulation


def standstill_s(simulation: Simulation) -> float:
    """From the new S0's first moment to its first commit."""
    began = next(line for line in simulation.named("peer.serving") if line.fields["stage"] == 0 and line.time > 2.0)
    return next(line.time for line in simulation.named("step.committed") if line.time > began.time) - began.time


AHEAD_OF_ALL_VOTERS = (41, 48)
"""Seeds whose new S0 is recognised by owners who are all a step behind: their grants do not tell it."""


def test_a_stage_that_is_asked_to_do_a_step_again_says_that_it_is_over() -> None:
    for seed in (*range(8), *AHEAD_OF_ALL_VOTERS):
        simulation = known_in_the_middle(seed)
        assert [line.fields["step"] for line in simulation.named("step.committed")] == [1, 2, 3, 4, 5]
        assert standstill_s(simulation) < 1.0


def test_without_that_word_its_record_tells_it_seconds_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the answer to the new S0's own word of the step before, which tells it, too."""
    tell, resend = BlockStage._tell_driver, Coordinator.resend_commits

    def tell_when_applied(stage: BlockStage) -> None:
        if sys._getframe(1).f_code.co_name != "on_forward":
            tell(stage)

    def resend_own(coordinator: Coordinator) -> None:
        if coordinator._ledger.step != coordinator._first_step:
            resend(coordinator)

    monkeypatch.setattr(BlockStage, "_tell_driver", tell_when_applied)
    monkeypatch.setattr(Coordinator, "resend_commits", resend_own)
    assert min(standstill_s(known_in_the_middle(seed)) for seed in AHEAD_OF_ALL_VOTERS) > 2.0


def for_all(story: Callable[[int], Simulation]) -> None:
    for seed in range(20):
        story(seed)


# --- copies of S0 ---


def dies_while_copying(seed: int) -> Simulation:
    """S0 and its successor die while the next pair is on its way to its keepers, one part faster than the other."""
    late = Hinder(Trigger(0, 2, "forward"), 60.0, ("CopyOffer", "CopyKept"), delay_s=0.5)
    kills = [Kill(Trigger(0, step, "committed", 0.05 * (seed % 10)), 0) for step in (12, 20)]
    manifest = small_manifest(stages=5, steps=24, microbatches=2)
    simulation = build(seed, [late, *kills], manifest=manifest, spares=3, kind=Simulation)
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    return simulation


def skips_and_donates(seed: int) -> Simulation:
    """S2 skips an update, then S3 is lost and rebuilt from it: the norm of before says nothing any more."""
    faults: list[Fault] = [Overflow(Trigger(2, 3, "forward"), 1), Kill(Trigger(2, 3, "apply", 0.05), 3)]
    simulation = build(seed, faults, manifest=small_manifest(stages=5, steps=6), spares=2, kind=Simulation)
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    return simulation


def copy_apart(source: Any) -> None:
    """Copy the embedding, and the head a moment later: an update may fall between."""
    if getattr(source, "is_head_due", False):
        source.is_head_due = False
        source._queue.push(ImageJob(source._state.committed, DRIVER_PARTS[1:]))
    elif source._is_due and not source._is_ordered and not source._offered:
        source._is_due, source._is_ordered = False, True
        source._queue.push(ImageJob(source._state.committed, DRIVER_PARTS[:1]))


def note_apart(source: Any, parts: tuple[Any, ...], copied: tuple[tuple[int, str], ...]) -> None:
    others = {part: copy for part, copy in source._held.items() if part not in parts}
    source._held = {part: copy for part, copy in source._held.items() if part in parts}
    IMAGES(source, parts, copied)
    source._held |= others
    source._is_ordered = source.is_head_due = parts == DRIVER_PARTS[:1]


def forget_the_last_pair(shelf: Shelf, stage: int, part: Any, copies: list[Any]) -> list[Any]:
    return copies[-1:]


def keep_the_old_norm(updates: Updates, step: int, result: Applied, first: Spoilt | None = None) -> None:
    norm = updates._state.squared_gradient_norm
    APPLIED(updates, step, result, first)
    updates._state.squared_gradient_norm = updates._state.squared_gradient_norm or norm


def say_nothing(updates: Updates, step: int, result: Applied, first: Spoilt | None = None) -> None:
    APPLIED(updates, step, Applied(result.squared_gradient_norm))


IMAGES, APPLIED = CopySource.on_images, Updates.applied

MUTANTS: dict[str, tuple[Callable[[int], Simulation], dict[tuple[type, str], Any]]] = {
    "the parts are copied apart": (
        dies_while_copying,
        {(CopySource, "advance"): copy_apart, (CopySource, "on_images"): note_apart},
    ),
    "a keeper forgets the last pair": (
        dies_while_copying,
        {(Shelf, "_worth_keeping"): forget_the_last_pair},
    ),
    "a skipped update leaves the old norm": (skips_and_donates, {(Updates, "applied"): keep_the_old_norm}),
    "a skipped update is not said": (skips_and_donates, {(Updates, "applied"): say_nothing}),
}


@pytest.mark.parametrize("story", [dies_while_copying, skips_and_donates])
def test_the_stories_of_the_mutants_break_no_rule(story: Callable[[int], Simulation]) -> None:
    for_all(story)


@pytest.mark.parametrize("guard", MUTANTS)
def test_the_simulator_sees_a_broken_guard(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    story, changes = MUTANTS[guard]
    for (where, name), broken in changes.items():
        monkeypatch.setattr(where, name, broken)
    with pytest.raises((Violation, LocalProtocolError)):
        for_all(story)


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
            request = FetchRequest(0, driver.core.state.incarnation, digest, 0, piece_bytes=1)
            part = digest.removeprefix("image of ").partition(" ")[0]
            self.served |= {(part, peer) for peer in self.nodes if driver.core.may_fetch(peer, request)}


@pytest.mark.parametrize(
    ("keepers", "embedding", "head"), [(1, [1], [4]), (2, [1, 4], [1, 4]), (3, [1, 2, 4], [1, 3, 4])]
)
def test_copies_of_s0_are_for_their_keepers(keepers: int, embedding: list[int], head: list[int]) -> None:
    manifest = small_manifest(stages=5, steps=40, edge_keepers=keepers)
    simulation = build(1, [], manifest=manifest, spares=1, kind=CuriousSimulation)
    for instant in range(13, 90, 4):
        simulation.at(instant / 10, simulation.ask_around)
    simulation.run(LIMIT_S)
    allowed = {*(("embedding", f"peer-{stage}") for stage in embedding), *(("head", f"peer-{stage}") for stage in head)}
    of_weights = {(part, peer) for part, peer in simulation.served if part in DRIVER_PARTS}
    assert of_weights == allowed | {(part, "spare-0") for part in DRIVER_PARTS}


# --- what is lost together ---


def recovered(lost: tuple[int, ...], keepers: int, seed: int) -> dict[str, Any]:
    """What the new S0 says after these stages died at the same moment; no spare was there to hold a copy of it."""
    manifest = small_manifest(stages=6, steps=8, edge_keepers=keepers)
    faults = [Kill(Trigger(0, 4, "committed"), stage) for stage in lost]
    simulation = build(seed, list(faults), manifest=manifest, spares=0, kind=Simulation)
    for number in range(len(lost) + 1):
        simulation.add_node(f"spare-{number}", at=8.0)
    simulation.run(LIMIT_S)
    simulation.check_outcome()
    return next(dict(line.fields) for line in simulation.recoveries() if line.fields["stage"] == 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("lost", "keepers"), [((0,), 1), ((0, 1), 2), ((0, 5), 2), ((0, 1, 5), 3), ((0, 2, 3), 1)], ids=str
)
def test_s0_comes_back_whole_from_whoever_keeps_it(lost: tuple[int, ...], keepers: int, seed: int) -> None:
    fields = recovered(lost, keepers, seed)
    assert fields["method"] == "standby"
    assert fields["reason"] in {f"embedding and head as of step {step}" for step in (2, 3)}


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
