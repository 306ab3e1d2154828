"""The step time of live swarms over their number of stages, beside the unsplit model of the same depth."""

from __future__ import annotations

import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.fresh import in_fresh_process
from benchmarks.origin import Origin
from benchmarks.page import render
from benchmarks.throughput import swarm, unsplit
from understudy.bootstrap.founding import load_manifest

RUN = """\
name = "depth-{stages}"
[model]
hidden_size = 256
intermediate_size = 688
attention_heads = 4
block_stages = {stages}
layers_per_stage = 1
context_length = 128
[recovery]
method = "checkfree"
[step]
microbatches = {microbatches}
microbatch_size = 8
window = 4
microbatch_timeout_s = 120.0
"""
MICROBATCHES = 8


class Depth(msgspec.Struct, frozen=True):
    """Seconds of every step that counts."""

    stages: int
    """Block stages; S0 comes on top."""
    swarm: list[float]
    unsplit: list[float]

    @property
    def ratio(self) -> float:
        """How many times as fast as the unsplit model the swarm was."""
        return statistics.median(self.unsplit) / statistics.median(self.swarm)


class DepthResult(msgspec.Struct, frozen=True):
    depths: tuple[Depth, ...]
    origin: Origin


def measure_depth(stages: int, steps: int) -> Depth:
    """A swarm of processes on this machine, then the whole model in one that has as many threads as there are cores.

    Raises `SettingsError` for fewer than three stages.
    """
    with tempfile.TemporaryDirectory(prefix="understudy-benchmark-") as folder:
        source = Path(folder) / "run.toml"
        source.write_text(RUN.format(stages=stages, microbatches=MICROBATCHES))
        manifest = load_manifest(str(source))
        ours = in_fresh_process(partial(swarm.step_seconds, str(source), steps))
    cores = len(os.sched_getaffinity(0))
    return Depth(stages, ours, in_fresh_process(partial(unsplit.step_seconds, manifest, steps, cores)))


def depth_table(result: DepthResult) -> str:
    """Milliseconds per step and per block stage and microbatch."""
    header = [
        "block stages",
        "swarm, ms per step",
        "per stage and microbatch",
        "unsplit, ms per step",
        "swarm / unsplit",
    ]
    return render(header, [_row(depth) for depth in result.depths])


def _row(depth: Depth) -> list[str]:
    ours, theirs = (1e3 * statistics.median(seconds) for seconds in (depth.swarm, depth.unsplit))
    each = ours / depth.stages / MICROBATCHES
    return [f"{depth.stages}", f"{ours:.0f}", f"{each:.1f}", f"{theirs:.0f}", f"{depth.ratio:.2f}"]
