"""What torch offers: torch.distributed.pipelining over gloo, one process per block stage.

The first process also holds the embedding and the last one the head, which spares it the hops to and from S0.
Gradients travel in the activations' dtype: they are the gradients of what was sent.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from benchmarks.throughput.results import WARM_UP
from understudy.node.compute.model import build_block_stage, build_edge_stage
from understudy.node.compute.optimizer import StageOptimizer
from understudy.node.compute.precision import arithmetic
from understudy.node.compute.weights import DTYPES
from understudy.node.data.sources import open_data
from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import RunManifest

SCHEDULES = {"GPipe": ScheduleGPipe, "1F1B": Schedule1F1B}


class Part(nn.Module):
    """One process's part of the model, which passes on activations in the wire's dtype."""

    def __init__(self, manifest: RunManifest, stage: int) -> None:
        super().__init__()
        edge = build_edge_stage(manifest.model, manifest.seed)
        self.embedding = edge.model["embed_tokens"] if stage == 1 else None
        self.block = build_block_stage(manifest.model, stage, manifest.seed)
        self.head = nn.Sequential(edge.model["norm"], edge.lm_head) if stage == manifest.model.block_stages else None
        self.manifest = manifest

    def forward(self, source: Tensor) -> Tensor:
        """Tokens or activations -> activations or logits."""
        with arithmetic(self.manifest, torch.device("cpu")):
            hidden = self.block(self.embedding(source) if self.embedding is not None else source.float())
            output: Tensor = self.head(hidden) if self.head else hidden.to(DTYPES[self.manifest.wire.dtype])
        return output


@dataclass(frozen=True, slots=True)
class Training:
    """What all processes of one pipeline do."""

    manifest: RunManifest
    steps: int
    schedule: str
    meeting: Path
    """The file by which they find each other."""


def step_seconds(
    manifest: RunManifest, steps: int, schedule: str, moves: Sequence[Callable[[], None]] = ()
) -> list[float]:
    """Seconds of each step under a schedule of `SCHEDULES`, by the last process's clock.

    ``moves``: what each process does first, such as to enter a network namespace. Raises `SettingsError` for a wire
    in int8: torch's pipelines send tensors as they are.
    """
    if manifest.wire.dtype == "int8":
        raise SettingsError(f"{schedule} knows no int8 on the wire: compare runs of another dtype")
    context = get_context("spawn")
    results: Queue[list[float]] = context.Queue()
    count = manifest.model.block_stages
    with tempfile.TemporaryDirectory(prefix="understudy-pipelining-") as folder:
        training = Training(manifest, steps, schedule, Path(folder) / "meeting")
        parts = [
            context.Process(target=_train, args=(training, stage, results, move))
            for stage, move in zip(range(1, count + 1), moves or [_stay] * count, strict=True)
        ]
        for part in parts:
            part.start()
        try:
            seconds = results.get(timeout=3600)
        finally:
            for part in parts:
                part.join(timeout=60)
                part.kill()
    return seconds


def _stay() -> None:
    """The process is where it should be."""


def _train(training: Training, stage: int, results: Queue[list[float]], move: Callable[[], None]) -> None:
    move()
    torch.set_num_threads(1)
    manifest, count = training.manifest, training.manifest.model.block_stages
    dist.init_process_group("gloo", init_method=f"file://{training.meeting}", rank=stage - 1, world_size=count)
    part = Part(manifest, stage)
    pipeline = PipelineStage(part, stage - 1, count, torch.device("cpu"))
    run = SCHEDULES[training.schedule](pipeline, manifest.step.microbatches, loss_fn=_loss)
    optimizer = StageOptimizer(part.parameters(), manifest.optimizer)
    data = open_data(manifest)
    seconds = []
    for step in range(1, WARM_UP + training.steps + 1):
        began = time.perf_counter()
        pairs = [data.microbatch(step, index) for index in range(manifest.step.microbatches)]
        tokens, labels = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
        if stage == 1:
            run.step(tokens)
        elif stage == count:
            run.step(target=labels, losses=[], return_outputs=False)
        else:
            run.step()
        optimizer.apply(step, 1)
        seconds.append(time.perf_counter() - began)
    data.close()
    if stage == count:
        results.put(seconds[WARM_UP:])
    dist.destroy_process_group()


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
