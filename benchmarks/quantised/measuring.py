"""The same model with each wire between its stages, and the same activation through each dtype."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import msgspec
import torch

from benchmarks.convergence.strategies import STRATEGIES
from benchmarks.convergence.trainer import Trainer
from benchmarks.origin import Origin
from benchmarks.quantised.results import TIMED, Costs, Run, Training
from benchmarks.quantised.wires import DTYPES, carry_of
from understudy.node.compute.tensors import from_wire, to_wire
from understudy.protocol.manifest import RunManifest, WireDtype, WireSettings

SHAPE = (4, 256, 512)
"""Batch, context, hidden: 1 MiB in bfloat16."""
CPU = torch.device("cpu")


def train_all(
    manifest: RunManifest, runs: Sequence[Run], iterations: int, tell: Callable[[int, float], None]
) -> Iterator[Training]:
    """Each run, on one thread: of runs of one seed initialisation and text are the same, the wire alone differs."""
    torch.set_num_threads(1)
    origin = Origin.here("cpu", "1 thread")
    for run in runs:
        yield train(manifest, run, iterations, tell, origin)


def train(
    manifest: RunManifest, run: Run, iterations: int, tell: Callable[[int, float], None], origin: Origin
) -> Training:
    """One model, by the swarm's own stages (benchmarks/convergence/trainer.py), nothing lost on the way."""
    wire, seed = run
    wired = msgspec.structs.replace(manifest, wire=WireSettings(dtype=DTYPES[wire]))
    trainer = Trainer(wired, STRATEGIES["none"], seed, carry=carry_of(wire, seed))
    losses = []
    for step in range(1, iterations + 1):
        losses.append(round(trainer.train_step(step), 5))
        tell(step, losses[-1])
    validation = round(trainer.validation_loss(), 5)
    return Training(wire, seed, manifest.model.hidden_size, tuple(losses), validation, origin)


def time_all(repetitions: int) -> Costs:
    """One activation to the wire and back, on one thread; the dtypes take turns."""
    torch.set_num_threads(1)
    numbers = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    outward: dict[WireDtype, list[float]] = {dtype: [] for dtype in TIMED}
    inward: dict[WireDtype, list[float]] = {dtype: [] for dtype in TIMED}
    for repetition in range(repetitions + 1):
        for dtype in TIMED:
            began = time.perf_counter()
            wired = to_wire(numbers, dtype)
            sent = time.perf_counter()
            from_wire(wired, CPU)
            if repetition:
                outward[dtype].append(sent - began)
                inward[dtype].append(time.perf_counter() - sent)
    return Costs(SHAPE, _frozen(outward), _frozen(inward), Origin.here("cpu", "1 thread"))


def _frozen(times: dict[WireDtype, list[float]]) -> dict[WireDtype, tuple[float, ...]]:
    return {dtype: tuple(round(seconds, 7) for seconds in found) for dtype, found in times.items()}
