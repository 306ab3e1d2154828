"""The limit: the whole model in one process that has all cores to itself."""

from __future__ import annotations

import time

import torch

from benchmarks.throughput.results import WARM_UP
from understudy.node.compute.model import UnsplitModel
from understudy.node.compute.optimizer import StageOptimizer
from understudy.node.compute.precision import arithmetic
from understudy.node.data.sources import open_data
from understudy.protocol.manifest import RunManifest


def step_seconds(manifest: RunManifest, steps: int, threads: int) -> list[float]:
    """Seconds of each step: the same microbatches, optimizer and clipping per stage as in a swarm."""
    torch.set_num_threads(threads)
    model = UnsplitModel(manifest.model, manifest.seed)
    optimizers = [StageOptimizer(stage.parameters(), manifest.optimizer) for stage in model.stages]
    data = open_data(manifest)
    microbatches = manifest.step.microbatches
    seconds = []
    for step in range(1, WARM_UP + steps + 1):
        began = time.perf_counter()
        for index in range(microbatches):
            with arithmetic(manifest, torch.device("cpu")):
                loss = model(*data.microbatch(step, index))
            loss.backward()
            loss.item()
        for optimizer in optimizers:
            optimizer.apply(step, microbatches)
        seconds.append(time.perf_counter() - began)
    data.close()
    return seconds[WARM_UP:]
