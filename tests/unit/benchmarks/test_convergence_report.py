"""The study's arithmetic of time and targets, its tables, and what it keeps and resumes."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import msgspec
import pytest
import torch

from benchmarks.convergence import study
from benchmarks.convergence.curves import (
    around_recoveries,
    checkpoint_costs,
    cost_of,
    find,
    first_step,
    loss_at,
    stand_in,
    target_loss,
)
from benchmarks.convergence.failures import chance_of_loss, lost_stages
from benchmarks.convergence.live import LiveRecovery, LiveResult, kills, read_live, replay_note, replayed, write_live
from benchmarks.convergence.report import parts
from benchmarks.convergence.results import Result, Run, read_all, write
from benchmarks.convergence.strategies import STRATEGIES
from benchmarks.convergence.study import Scale, carry_out, full_scale, quick_scale, run_all, runs
from benchmarks.convergence.subject import Subject
from benchmarks.convergence.tables import rise_table
from benchmarks.convergence.timing import (
    ITERATION_S,
    SAVE_S,
    Cost,
    checkpointed,
    going_on,
    recovery_s,
    restore_s,
)
from benchmarks.convergence.trainer import Recovery, Trainer
from benchmarks.origin import Origin
from benchmarks.page import fill_in
from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import RunManifest

torch.set_num_threads(1)

ORIGIN = Origin("abc", {}, "a machine")
MIDDLE = (2, 3, 4, 5)


def manifest() -> RunManifest:
    return quick_scale().manifest


# --- time ---


def rolled_back(steps: int, every: int, chance: float, luck: random.Random) -> int:
    """Iterations that one run with checkpoints takes, played through."""
    step = iterations = 0
    while step < steps:
        if luck.random() < chance:
            step -= step % every
        step += 1
        iterations += 1
    return iterations


@pytest.mark.parametrize(("steps", "every", "chance"), [(10, 5, 0.2), (23, 10, 0.05), (7, 100, 0.1), (12, 1, 0.5)])
def test_checkpointing_costs_what_playing_it_through_costs(steps: int, every: int, chance: float) -> None:
    luck = random.Random(7)
    played = [rolled_back(steps, every, chance, luck) for _ in range(4000)]
    expected = checkpointed(steps, every, chance)
    error = statistics.stdev(played) / len(played) ** 0.5
    assert expected.iterations == pytest.approx(statistics.fmean(played), abs=4 * error)
    losses = chance * expected.iterations
    saving = expected.iterations * (ITERATION_S + SAVE_S / every)
    assert expected.seconds == pytest.approx(saving + losses * restore_s())


def test_without_failures_checkpointing_costs_its_saving() -> None:
    assert checkpointed(10, 5, 0.0) == Cost(10, pytest.approx(10 * ITERATION_S + 2 * SAVE_S))
    assert checkpointed(12.5, 5, 0.0).iterations == 12.5


def test_the_chance_of_a_loss_is_how_often_the_draws_lose_a_stage() -> None:
    stages = (1, 2, 3, 4, 5, 6)
    struck = [bool(lost_stages(16, seed, step, stages, 1.0)) for seed in range(20) for step in range(2, 1002)]
    chance = chance_of_loss(16, 6, 1.0)
    error = (chance * (1 - chance) / len(struck)) ** 0.5
    assert chance == pytest.approx(statistics.fmean(struck), abs=4 * error)
    assert chance_of_loss(0, 6, 1.0) == 0


def test_going_on_pays_iterations_and_standstills() -> None:
    cost = going_on(100, [2, 1])
    assert cost.seconds == pytest.approx(100 * ITERATION_S + recovery_s(2) + recovery_s(1))


# --- curves and tables ---


def result(strategy: str, percent: int, seed: int, losses: list[float], *recoveries: Recovery) -> Result:
    validation = tuple((10 * (number + 1), loss) for number, loss in enumerate(losses))
    steps = tuple(loss for loss in losses for _ in range(10))
    return Result(strategy, percent, seed, Subject.of(manifest()), steps, validation, recoveries, 1.0, ORIGIN)


def results(*found: Result) -> dict[Run, Result]:
    return {each.run: each for each in found}


def test_between_two_measurements_a_curve_is_a_line() -> None:
    curve = [(10, 4.0), (20, 3.0), (30, 2.0)]
    assert loss_at(curve, 25) == 2.5
    assert first_step(curve, 2.5) == 25
    assert first_step(curve, 1.0) is None
    assert first_step([(10, 4.0), (20, 4.5), (30, 3.5)], 4.0) == 25


def test_what_needs_no_run_stands_in_for_what_it_repeats() -> None:
    calm = result("checkfree", 16, 0, [3.0], Recovery(3, 2, "checkfree", (1, 3), (0.5, 0.5), (0.9, 0.9)))
    clipped = Run("checkfree-clipped", 16, 0)
    assert stand_in(Run("none", 16, 0), {}) == Run("none", 0, 0)
    assert stand_in(Run("checkfree", 0, 1), {}) == Run("none", 0, 1)
    assert stand_in(Run("checkfree+", 0, 1), {}) == Run("checkfree+", 0, 1)
    assert stand_in(clipped, {}) == clipped
    assert stand_in(clipped, results(calm)) == Run("checkfree", 16, 0)
    loud = result("checkfree", 16, 0, [3.0], Recovery(3, 2, "checkfree", (1, 3), (0.5, 0.5), (0.9, 1.1)))
    assert stand_in(clipped, results(loud)) == clipped


def test_costs_count_the_failures_on_the_way_only() -> None:
    early = Recovery(5, 2, "checkfree", (1, 3), (0.5, 0.5), (1.0, 1.0))
    late = Recovery(29, 2, "checkfree", (1, 3), (0.5, 0.5), (1.0, 1.0))
    cost = cost_of(result("checkfree", 16, 0, [4.0, 3.0, 2.0], early, late), 3.0)
    assert cost == going_on(20, [2])
    assert cost_of(result("checkfree", 16, 0, [4.0, 3.0]), 1.0) is None


def test_the_tables_say_what_is_missing() -> None:
    found = results(result("none", 0, 0, [4.0, 3.0, 2.0]), result("uniform", 16, 0, [4.0, 3.9, 3.8]))
    assert target_loss(found) == pytest.approx(3.65)
    tables = parts(found, [])
    assert "0 of 1 arrived" in tables["order"]
    assert "not run" in tables["cost"]
    assert tables["swapping"] == "not run"
    assert "abc" in tables["origin"]
    assert find(found, "checkfree", 5) == []
    (first, *_) = checkpoint_costs(found, 3.65, 100, 0, "all")
    assert first is not None
    assert first.iterations == pytest.approx(13.5)


def test_a_derived_row_is_marked() -> None:
    calm = Recovery(3, 2, "checkfree", (1, 3), (0.5, 0.5), (0.9, 0.9))
    found = results(result("none", 0, 0, [4.0, 3.0, 2.0]), result("checkfree", 16, 0, [4.0, 3.5, 3.0], calm))
    rows = parts(found, [])["order"].splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == [
        "no failures", "CheckFree, norm squared", "CheckFree, squared norm after clipping *",
    ]  # fmt: skip


def test_swapping_is_compared_without_failures() -> None:
    found = results(result("none", 0, 0, [4.0, 3.0, 2.0]), result("checkfree+", 0, 0, [4.0, 3.5, 2.5]))
    assert parts(found, [])["swapping"].splitlines()[-1].split("|")[3].strip() == "3.333"


def test_the_loss_around_a_recovery_is_against_the_same_microbatches() -> None:
    recovery = Recovery(20, 2, "checkfree", (1, 3), (0.5, 0.5), (1.0, 1.0))
    calm, struck = (
        result("none", 0, 0, [4.0, 3.0, 2.0, 1.0]),
        result("checkfree", 16, 0, [4.1, 3.1, 2.4, 1.4], recovery),
    )
    assert around_recoveries(results(calm, struck), "checkfree", 5, 5) == pytest.approx([0.0] * 5 + [0.3] * 5)
    crowded = msgspec.structs.replace(struck, recoveries=(recovery, recovery))
    assert around_recoveries(results(calm, crowded), "checkfree", 5, 5) == []
    assert around_recoveries(results(struck), "checkfree", 5, 5) == []


def test_a_rise_comes_with_its_error() -> None:
    """Two recoveries, after which the loss stands 0.1 and 0.3 above the run without failures."""
    steps = [3.0] * 14
    first, second = (Recovery(step, 2, "copy", (1,), (1.0,), (1.0,)) for step in (40, 100))
    calm = result("none", 0, 0, steps)
    struck = result("copy", 16, 0, [3.0] * 4 + [3.1] * 6 + [3.4] * 4, first, second)
    row = rise_table(results(calm, struck)).splitlines()[2]
    assert row == "| copy of the previous stage | 2 | +0.200 ± 0.100 | +0.200 ± 0.100 | +0.200 ± 0.100 |"


def test_a_page_is_filled_in_between_its_marks() -> None:
    page = "before <!-- a -->old<!-- /a --> after"
    assert fill_in(page, {"a": "new"}) == "before <!-- a -->\n\nnew\n\n<!-- /a --> after"
    assert fill_in(fill_in(page, {"a": "x"}), {"a": "new"}) == fill_in(page, {"a": "new"})
    for broken in ("no mark", "<!-- a -->", "<!-- /a --><!-- a -->", page + page):
        with pytest.raises(SettingsError, match="needs the marks"):
            fill_in(broken, {"a": "new"})


# --- runs ---


def test_a_run_is_repeated_by_its_file(tmp_path: Path) -> None:
    quick = quick_scale()
    short = Scale(quick.manifest, 6, 3, failure_factor=40)
    run = Run("checkfree", 16, 0)
    first = carry_out(run, short, "cpu", ORIGIN)
    assert first.recoveries
    assert [step for step, _ in first.validation] == [3, 6]
    write(first, tmp_path)
    (tmp_path / "half-at-16-seed-0.partial").write_text("{")
    assert read_all(tmp_path) == {run: first}
    again = carry_out(run, short, "cpu", ORIGIN)
    assert (again.losses, again.recoveries) == (first.losses, first.recoveries)


def test_results_of_another_study_are_not_mixed_in(tmp_path: Path) -> None:
    write(result("none", 0, 0, [4.0, 3.0]), tmp_path)
    with pytest.raises(SettingsError, match="another study"):
        next(run_all(quick_scale(), tmp_path, 1, "cpu"))


def test_a_study_resumes_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = [Run("none", 0, 0), Run("uniform", 16, 0)]
    monkeypatch.setattr(study, "runs", lambda scale: iter(planned))
    short = Scale(manifest(), 2, 1, seeds=(0,))
    assert [found.run for found in run_all(short, tmp_path, 1, "cpu")] == planned
    (tmp_path / planned[1].file_name).unlink()
    assert [found.run for found in run_all(short, tmp_path, 1, "cpu")] == planned[1:]


# --- the live swarm ---


def test_kills_follow_the_schedule_of_the_failures() -> None:
    faults = kills(16, 5, 300, 4)
    assert len(faults) == 5
    assert all(fault.stage in lost_stages(16, 5, fault.step + 1, (1, 2, 3, 4), 1.0) for fault in faults)
    assert kills(0, 5, 300, 4) == ()


def test_live_results_come_in_pairs_and_are_replayed(tmp_path: Path) -> None:
    trainer = Trainer(manifest(), STRATEGIES["checkfree+"], 0)
    losses = []
    for step in (1, 2, 3):
        if step == 3:
            trainer.lose((2,), 2)
        losses.append(trainer.train_step(step))
    struck = (LiveRecovery(2, 2, "checkfree", 1.0),)
    churned = LiveResult(Subject.of(trainer.manifest), 16, 5, tuple(losses), (0.0, 1.0, 2.0), struck, ORIGIN)
    both = [churned, replayed(churned, trainer.manifest)]
    assert both[1].replayed == pytest.approx(losses, abs=1e-5)
    assert read_live(tmp_path) == []
    write_live(both[0], both[1], tmp_path)
    assert read_live(tmp_path) == both
    assert replay_note(both).startswith("With peers killed, the trainer's loss and the live swarm's are 0.0000 apart")


def test_every_strategy_meets_16_percent_and_four_strategies_every_rate() -> None:
    planned = set(runs(full_scale()))
    assert {run.strategy for run in planned} == set(STRATEGIES)
    for seed in (0, 1, 2):
        assert {Run(name, 16, seed) for name in STRATEGIES if name != "none"} <= planned
        assert {Run(name, percent, seed) for name in ("checkfree", "checkfree+") for percent in (5, 10)} <= planned
        assert {Run("none", 0, seed), Run("checkfree+", 0, seed)} <= planned


def test_copies_are_told_by_age_beside_what_had_none() -> None:
    found = results(
        result("none", 0, 0, [4.0, 3.0, 2.0]),
        result("standby-20", 16, 0, [4.0, 3.0, 2.5]),
        result("checkfree-all", 16, 0, [4.0, 3.9, 3.8]),
    )
    beside, copied = (row.split("|") for row in parts(found, [])["ages"].splitlines()[2:])
    assert [cell.strip() for cell in beside[1::4]] == ["CheckFree, edges copied", "not all arrived"]
    assert copied[1].strip() == "standby copy every 20, fresh optimizer"
    assert float(copied[5]) >= 1.0
