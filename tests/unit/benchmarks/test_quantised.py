"""The benchmark of the wire's dtypes: its arithmetic, its files, and a model that trains with each wire."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.convergence.study import quick_scale
from benchmarks.keeping import FOLDER, PAGE, keep, read_kept
from benchmarks.origin import Origin
from benchmarks.page import fill_in
from benchmarks.quantised.__main__ import BLOCKS, COSTS, TRAININGS, app
from benchmarks.quantised.blocks import BlockLosses, block_table, measure_blocks
from benchmarks.quantised.measuring import time_all, train_all
from benchmarks.quantised.results import (
    NOISE,
    SEEDS,
    TIMED,
    WIRES,
    Costs,
    Training,
    WireName,
    bytes_per_token,
    cost_table,
    difference_table,
    loss_table,
    missing,
)
from benchmarks.quantised.wires import by_row, carry_of, there_and_back
from understudy.node.compute.quantisation import quantised, restored
from understudy.protocol.errors import SettingsError
from understudy.protocol.wire.tensors import BLOCK_CHANNELS

ORIGIN = Origin("abc", {}, "a machine")


def training(wire: WireName, seed: int, validation: float, iterations: int = 21) -> Training:
    losses = (9.0, *[2.0] * 10, *[3.0] * 10)[-iterations:]
    return Training(wire, seed, 128, losses, validation, ORIGIN)


FOUND = [
    training("int8", 1, 2.5),
    training("int8", 0, 2.25),
    training("float32", 0, 2.0),
    training("float32", 1, 3.0),
    training("noise", 7, 3.0),
]


def test_the_table_has_every_seed_and_their_middle() -> None:
    assert loss_table(FOUND).splitlines()[2:] == [
        "| float32 | 512 | 0, 1 | 2.000, 3.000 | 2.500 | 2.500 | 2.500, 2.500 | 2.500 | 2.500 |",
        "| float32 with 0.2% noise | 512 | 7 | 3.000 | 3.000 | 3.000 | 2.500 | 2.500 | 2.500 |",
        "| int8 | 136 | 0, 1 | 2.250, 2.500 | 2.375 | 2.375 | 2.500, 2.500 | 2.500 | 2.500 |",
    ]


def test_differences_are_between_runs_of_one_seed_and_need_something_to_differ_from() -> None:
    assert difference_table(FOUND).splitlines()[2:] == [
        "| int8 | +0.250, -0.500 | -0.125 | 0.530 | +0.000, +0.000 | +0.000 | 0.000 |"
    ]
    alone = [made for made in FOUND if made.seed == 0]
    assert difference_table(alone).splitlines()[2:] == ["| int8 | +0.250 | +0.250 |  | +0.000 | +0.000 |  |"]


def test_a_token_has_half_the_bytes_and_its_scales() -> None:
    assert [bytes_per_token(wire, 512) for wire in WIRES] == [2048, 2048, 1024, 544, 516]


def test_costs_are_medians() -> None:
    slow = dict.fromkeys(TIMED, (3e-06, 6e-06, 1.6e-05))
    slow["int8"] = (6e-06, 6e-06, 64e-06)
    rows = cost_table(Costs((4, 256, 512), slow, slow, ORIGIN)).splitlines()[2:]
    assert rows == ["| bfloat16 | 1024 | 6 | 6 | 1.0 |", "| int8 | 544 | 6 | 6 | 2.0 |"]


def test_blocks_lose_less_the_smaller_they_are_and_keep_an_outlier_to_themselves() -> None:
    threads = torch.get_num_threads()
    try:
        found = measure_blocks(quick_scale().manifest, (1, 3))
    finally:
        torch.set_num_threads(threads)
    exact = [loss for loss in found.losses if loss.scale == "float32"]
    assert [loss.bytes_per_number for loss in exact] == [1.25, 1.125, 1.0625, 1.0312, 1.0078]
    for kind in ("activations", "gradients", "others"):
        errors = [getattr(loss, kind) for loss in exact]
        assert errors == sorted(errors)
        assert 0.003 < errors[0] < errors[1]
    assert exact[-1].others > 0.06
    assert block_table(found).splitlines()[-1].startswith("| the row | bfloat16 | 1.004 | ")


# --- what is trained ---


def test_what_is_kept_is_not_trained_again() -> None:
    kept = [training("float32", 0, 2.0), training("int8", 1, 2.0)]
    assert missing(kept, ["int8", "float32"], [0, 1], 21) == [("int8", 0), ("float32", 1)]
    assert len(missing([], WIRES, SEEDS, 21)) == len(WIRES) * len(SEEDS)


def test_another_length_and_an_unknown_wire_are_refused() -> None:
    with pytest.raises(SettingsError, match="of 20 iterations, not 21: keep"):
        missing([training("int8", 1, 2.0, iterations=20)], ["int8"], [0], 21)
    with pytest.raises(SettingsError, match="'int4' is no wire of this comparison: float32, noise"):
        missing([], ["int4"], [0], 21)


def test_a_folder_is_filled_run_by_run(tmp_path: Path) -> None:
    command = ["train", "--folder", str(tmp_path), "--quick", "--iterations", "2", "--seed", "0", "--wire"]
    threads = torch.get_num_threads()
    try:
        first = CliRunner().invoke(app, [*command, "noise"])
        again = CliRunner().invoke(app, [*command, "noise", "--wire", "int8"])
    finally:
        torch.set_num_threads(threads)
    assert "noise, seed 0" in first.stdout
    assert "noise" not in again.stdout
    assert "int8, seed 0" in again.stdout
    assert CliRunner().invoke(app, [*command, "int4"]).exit_code == 2


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 100), st.integers(0, 1000))
def test_int8_with_other_scales_is_the_swarms_with_other_scales(width: int, seed: int) -> None:
    numbers = torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(there_and_back(numbers, BLOCK_CHANNELS, torch.bfloat16), restored(quantised(numbers)))
    rows = by_row(numbers)
    assert torch.equal(rows, there_and_back(numbers, 1000, torch.float32))
    assert ((rows - numbers).abs() <= numbers.abs().amax(-1, keepdim=True) / 254 * (1 + 1e-4)).all()


def test_noise_is_of_each_number_and_the_same_for_the_same_seed() -> None:
    numbers = torch.cat([torch.full((4, 4096), 100.0), torch.full((4, 4096), 0.01)])
    one, same, other = (carry_of("noise", seed)(numbers) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    relative = (one / numbers - 1).std(-1)
    torch.testing.assert_close(relative, torch.full((8,), NOISE), rtol=0.1, atol=0.0)


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
        "quantised-difference": difference_table(read_kept(FOLDER, TRAININGS, Training)),
        "quantised-blocks": "\n".join(block_table(found) for found in read_kept(FOLDER, BLOCKS, BlockLosses)),
        "quantised-cost": "",
        "quantised-origin": "",
    }
    fill_in(PAGE.read_text(encoding="utf-8"), parts)


def test_a_model_trains_alike_with_each_wire() -> None:
    threads = torch.get_num_threads()
    told: list[int] = []
    try:
        made = train_all(quick_scale().manifest, [(wire, 0) for wire in WIRES], 12, lambda step, _: told.append(step))
        exact, *others = made
    finally:
        torch.set_num_threads(threads)
    assert told == [*range(1, 13)] * len(WIRES)
    assert len({one.validation for one in (exact, *others)}) == len(WIRES)  # each is what it says
    for other in others:
        assert exact.losses[0] == pytest.approx(other.losses[0], abs=0.01)
        assert other.validation == pytest.approx(exact.validation, abs=0.1)
        assert other.losses[-1] < other.losses[0] - 0.3
