"""The benchmark of the wire's dtypes: its arithmetic, its files, and a model that trains in int8."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.convergence.study import quick_scale
from benchmarks.keeping import FOLDER, PAGE, keep, read_kept
from benchmarks.origin import Origin
from benchmarks.page import fill_in
from benchmarks.quantised.__main__ import COSTS, TRAININGS
from benchmarks.quantised.measuring import time_all, train_all
from benchmarks.quantised.results import DTYPES, Costs, Training, bytes_per_token, cost_table, loss_table
from understudy.protocol.manifest import WireDtype

ORIGIN = Origin("abc", {}, "a machine")


def training(dtype: WireDtype, seed: int, validation: float) -> Training:
    return Training(dtype, seed, 128, (9.0, *[2.0] * 10, *[3.0] * 10), validation, ORIGIN)


def test_the_table_compares_runs_of_one_seed() -> None:
    found = [
        training("int8", 1, 2.5),
        training("int8", 0, 2.25),
        training("float32", 0, 2.0),
        training("float32", 1, 3.0),
    ]
    assert loss_table(found).splitlines()[2:] == [
        "| float32 | 512 | 0, 1 | 2.500, 2.500 | 2.000, 3.000 | +0.0000, +0.0000 |",
        "| int8 | 132 | 0, 1 | 2.500, 2.500 | 2.250, 2.500 | +0.2500, -0.5000 |",
    ]


def test_a_difference_needs_something_to_differ_from() -> None:
    assert loss_table([training("int8", 0, 2.0)]).splitlines()[2].endswith("| 2.000 |  |")


def test_a_token_has_half_the_bytes_and_a_scale() -> None:
    assert [bytes_per_token(dtype, 512) for dtype in DTYPES] == [2048, 1024, 516]


def test_costs_are_medians() -> None:
    times = dict.fromkeys(DTYPES, (1e-06, 3e-06, 8e-06))
    rows = cost_table(Costs((4, 256, 512), times, times, ORIGIN)).splitlines()[2:]
    assert rows == ["| bfloat16 | 1024 | 3 | 3 |", "| int8 | 516 | 3 | 3 |"]


def test_results_come_back_from_their_files(tmp_path: Path) -> None:
    made, costs = training("int8", 3, 2.0), time_all(2)
    for result, name in ((made, made.file_name), (costs, COSTS)):
        keep(result, tmp_path / name)
    assert read_kept(tmp_path, TRAININGS, Training) == [made]
    assert read_kept(tmp_path, COSTS, Costs) == [costs]
    assert {len(times) for part in (costs.outward, costs.inward) for times in part.values()} == {2}


def test_what_is_kept_can_be_read_and_shown() -> None:
    parts = {
        "quantised-loss": loss_table(read_kept(FOLDER, TRAININGS, Training)),
        "quantised-cost": "",
        "quantised-origin": "",
    }
    fill_in(PAGE.read_text(encoding="utf-8"), parts)


def test_a_model_trains_alike_with_each_dtype() -> None:
    threads = torch.get_num_threads()
    told: list[int] = []
    try:
        exact, narrow, quantised = train_all(quick_scale().manifest, [0], 12, lambda step, _: told.append(step))
    finally:
        torch.set_num_threads(threads)
    assert told == [*range(1, 13)] * 3
    assert exact.losses[0] == pytest.approx(quantised.losses[0], abs=0.01)
    assert exact.validation != narrow.validation != quantised.validation != exact.validation  # each is what it says
    assert quantised.validation == pytest.approx(exact.validation, abs=0.1)
    assert quantised.losses[-1] < quantised.losses[0] - 0.3
