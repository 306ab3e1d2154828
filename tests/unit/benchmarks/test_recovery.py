"""What the recovery benchmark makes of a swarm's events: parts, yardstick, targets, tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.origin import Origin
from benchmarks.recovery.measure import recovered_from
from benchmarks.recovery.results import PARTS, Recovered, RecoveryResult, read_results
from benchmarks.recovery.scenarios import SCENARIOS
from benchmarks.recovery.tables import bandwidth_table, recovery_table, target_table
from understudy.bootstrap.founding import load_manifest
from understudy.bootstrap.local.monitor import Board, Loss
from understudy.protocol.manifest import RunManifest

RECOVERED = Recovered(
    parts={"detect": 0.1, "claim": 0.4, "fetch": 1.2, "blend": 0.5, "rejoin": 1.0},
    total_s=3.2,
    step_s=0.7,
    method="checkfree",
    donors=2,
    payload_bytes=400_000_000,
).beside((0.5, 0.7), (0.9, 1.1))


def result(*runs: Recovered) -> RecoveryResult:
    return RecoveryResult("heavy", RunManifest(name="heavy"), 2, runs, Origin("abc", {}, "a machine"))


def test_the_interrupted_step_is_no_part_of_the_recovery() -> None:
    assert RECOVERED.rest_s == pytest.approx(0.1 + 0.4 + 0.5 + 1.0 - 0.7)
    quick = Recovered({**RECOVERED.parts, "rejoin": 0.2}, 2.4, 0.7, "checkfree", 2, 1)
    assert quick.rest_s == pytest.approx(0.1 + 0.4 + 0.5)


def test_a_fetch_is_measured_by_raw_streams_of_as_many_senders() -> None:
    assert RECOVERED.expected_fetch_s == pytest.approx(1.0)
    assert RECOVERED.fetch_ratio == pytest.approx(1.2)
    assert Recovered({**RECOVERED.parts}, 3.2, 0.7, "checkfree", 2, 1).fetch_ratio is None


def events_of_a_loss() -> list[dict[str, object]]:
    commits = [
        {"event": "step.committed", "step": step, "time": 10.0 + step, "seconds": float(step)} for step in (1, 2, 3, 4)
    ]
    lost = {"stage": 2, "peer": "old", "incarnation": 1}
    recovered = {
        "event": "stage.recovered", "stage": 2, "peer": "new", "incarnation": 2, "time": 17.0, "method": "checkfree",
        "reason": "", "donors": ["a", "b"], "bytes": 80, "fetch_seconds": 1.5, "blend_seconds": 0.25,
    }  # fmt: skip
    return [
        *commits,
        {"event": "peer.dead", "time": 14.5, **lost},
        {"event": "stage.claimed", "stage": 2, "peer": "new", "time": 15.25},
        recovered,
        {"event": "step.committed", "step": 5, "time": 18.0, "seconds": 4.0},
    ]


def test_the_parts_come_from_the_events() -> None:
    board = Board(4, 5)
    board.struck(Loss(2, 14.25, "killed", 4))
    for event in events_of_a_loss():
        board.note(event)
    recovered = recovered_from(board, 4)
    assert recovered.parts == {"detect": 0.25, "claim": 0.75, "fetch": 1.5, "blend": 0.25, "rejoin": 1.0}
    assert tuple(recovered.parts) == PARTS
    assert recovered.total_s == 3.75
    assert recovered.step_s == 3.0, "the first step of a run is no measure"
    assert (recovered.donors, recovered.payload_bytes) == (2, 80)


def test_a_stage_that_stayed_lost_is_no_result() -> None:
    board = Board(4, 5)
    board.struck(Loss(2, 14.25, "killed", 4))
    with pytest.raises(RuntimeError, match="S2 was not recovered"):
        recovered_from(board, 4)


def test_the_tables_say_what_is_met_and_what_is_not() -> None:
    slow = Recovered({**RECOVERED.parts, "fetch": 2.4, "claim": 4.0}, 9.0, 0.7, "checkfree", 2, 400_000_000).beside(
        (0.5,), (1.0,)
    )
    assert "| 2.40 | 2.40 to 2.40 | **no** |" in target_table([result(slow)])
    assert target_table([result(RECOVERED)]).count("| yes |") == 2
    table = recovery_table([result(RECOVERED, slow, slow)])
    assert "| heavy | 3 | 2 | 200.0 | 0.70 | 0.10 | 4.00 | 2.40 | 0.50 | 1.00 | 9.00 (3.20 to 9.00) |" in table
    assert "| weights, verified | 2 | 400 | 1.20 | 333 |" in bandwidth_table([result(RECOVERED)])
    assert recovery_table([]) == target_table([]) == bandwidth_table([]) == "not run"


def test_a_scenario_without_a_yardstick_has_no_ratio() -> None:
    plain = Recovered({**RECOVERED.parts}, 3.2, 0.7, "checkfree", 2, 400)
    assert bandwidth_table([result(plain)]) == "not run"
    assert "fetch /" not in target_table([result(plain)])


def test_results_are_kept_whole(tmp_path: Path) -> None:
    kept = result(RECOVERED)
    kept.write(tmp_path)
    assert read_results(tmp_path) == [kept]
    assert [path.name for path in tmp_path.iterdir()] == ["recovery-heavy.json"]


def test_the_heavy_stage_is_of_200_mb_and_has_two_neighbours() -> None:
    scenario = SCENARIOS["stage-200mb"]
    manifest = load_manifest(scenario.source)
    assert 190e6 < manifest.model.stage_bytes(scenario.stage) < 210e6
    assert 1 < scenario.stage < manifest.last_stage, "CheckFree needs a neighbour on each side"
    assert manifest.tokens_per_step <= 64, "a step is short"
