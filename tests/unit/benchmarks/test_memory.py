"""What a stage needs, by the manifest and by autograd; what a process takes; whether it grows."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.memory.expected import FACTOR, OVERHEAD_BYTES, activation_bytes, expected
from benchmarks.memory.measure import planned_kills
from benchmarks.memory.results import WARM_UP_STEPS, MemoryResult, Process, Sample, read_results, slope
from benchmarks.memory.tables import growth_table, peak_table
from benchmarks.memory.watch import Watcher, memory_in, memory_of
from benchmarks.origin import Origin
from understudy.bootstrap.local.faults import Fault, check_faults
from understudy.bootstrap.local.monitor import Board, Loss
from understudy.node.compute.model import build_block_stage
from understudy.protocol.manifest import ModelSettings, RunManifest, StepSettings

MANIFEST = RunManifest(
    name="x",
    model=ModelSettings(
        hidden_size=64, intermediate_size=176, attention_heads=4, block_stages=4, layers_per_stage=3, context_length=32
    ),
    step=StepSettings(microbatches=6, microbatch_size=2, window=4),
)


def test_weights_gradients_and_two_averages() -> None:
    needed = expected(MANIFEST, 2)
    weights = MANIFEST.model.stage_bytes(2)
    assert (needed.weights, needed.gradients, needed.optimizer) == (weights, weights, 2 * weights)
    assert needed.activations == 4 * activation_bytes(MANIFEST, 2), "as many microbatches as are in flight"
    assert needed.bound == round(FACTOR * needed.total) + OVERHEAD_BYTES


def test_the_edge_keeps_embeddings_and_the_logits_of_one_microbatch() -> None:
    tokens = 2 * 32
    assert expected(MANIFEST, 0).activations == 4 * 4 * tokens * 64 + 3 * 4 * tokens * 256


def saved_by_autograd(stage: int) -> int:
    """Bytes that a forward pass keeps, each memory once, weights and tables left out."""
    module = build_block_stage(MANIFEST.model, stage, 0)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    alive: list[torch.Tensor] = []
    source = torch.randn(2, 32, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(source)
    return sum(kept.values())


def test_activations_are_what_autograd_keeps() -> None:
    assert activation_bytes(MANIFEST, 2) == pytest.approx(saved_by_autograd(2), rel=0.1)


@pytest.mark.parametrize("last_stage", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("kills", [0, 1, 4, 20])
def test_kills_are_spread_over_the_run(kills: int, last_stage: int) -> None:
    faults = planned_kills(kills, 150, last_stage)
    check_faults(faults, last_stage, 150)
    assert len(faults) == len({fault.step for fault in faults}) == kills
    assert last_stage < 3 or not {0, 1, last_stage} & {fault.stage for fault in faults}


def test_the_middle_stages_die_in_turn() -> None:
    assert planned_kills(3, 100, 4) == (Fault(2, 25), Fault(3, 50), Fault(2, 75))


def test_a_status_file_is_read() -> None:
    text = "Name:\tpython\nVmPeak:\t  900 kB\nVmHWM:\t  500 kB\nVmRSS:\t  400 kB\nThreads:\t1\n"
    assert memory_in(text) == (500 * 1024, 400 * 1024)
    assert memory_in("Name:\tgone\nState:\tZ (zombie)\n") is None
    mine = memory_of(os.getpid())
    assert mine is not None
    assert mine[0] >= mine[1] > 0


class OneMoreSpare:
    """A local swarm that only counts the spares it is to start."""

    def __init__(self) -> None:
        self.board = Board(5, 100)
        self.started = 0

    async def start_spare(self) -> None:
        self.started += 1


def test_every_spare_that_became_an_owner_is_replaced() -> None:
    swarm: Any = OneMoreSpare()
    watcher = Watcher(swarm, 1)
    swarm.board.losses = [Loss(2, 0.0, "killed", 9), Loss(3, 0.0, "killed", 9)]
    asyncio.run(watcher.replace_spares())
    assert swarm.started == 0
    for loss in reversed(swarm.board.losses):
        loss.recovered = {"step": 9}
        asyncio.run(watcher.replace_spares())
        asyncio.run(watcher.replace_spares())
    assert swarm.started == 2


def test_the_slope_of_a_straight_line() -> None:
    assert slope([(0, 7), (10, 27), (20, 47)]) == pytest.approx(2)
    assert slope([(0, 1), (1, 3), (2, 1), (3, 3)]) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="two points"):
        slope([(1, 1), (1, 2)])


def process(growth: int, steps: int = 200, peak: int = 500_000_000) -> Process:
    samples = [Sample(step, 300_000_000 + growth * step, 50_000_000) for step in range(10, 10 + steps, 10)]
    samples[0] = Sample(10, 0, 0)
    return Process("peer", 2, 10, peak, 60_000_000, samples)


def result(*processes: Process) -> MemoryResult:
    return MemoryResult(MANIFEST, 200, ((2, 100),), 1, processes, Origin("abc", {}, "a machine"))


def test_growth_is_that_after_the_warm_up() -> None:
    assert process(1000).growth() == pytest.approx(100_000)
    assert process(1000).growth(of_daemon=True) == pytest.approx(0)
    assert process(1000, steps=WARM_UP_STEPS + 40).growth() is None, "too short a life to tell"


def test_the_tables_show_the_highest_peak_and_all_growth() -> None:
    table = peak_table([result(process(0), process(0, peak=700_000_000))])
    assert "| S2 |" in table
    assert "| 700 | 60 | **no** |" in table
    assert "| 500 | 60 | yes |" in peak_table([result(process(0))])
    assert "| +0.10 | +0.00 |" in growth_table([result(process(1000), process(1000, steps=20))])
    assert peak_table([]) == growth_table([]) == "not run"


def test_results_are_kept_whole(tmp_path: Path) -> None:
    kept = result(process(5))
    kept.write(tmp_path)
    assert read_results(tmp_path) == [kept]
