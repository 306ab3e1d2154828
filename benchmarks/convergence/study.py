"""What is run: the model, the rates, the seeds, and which strategy meets which rate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import msgspec
import torch

from benchmarks.convergence.curves import stand_in
from benchmarks.convergence.failures import lost_stages
from benchmarks.convergence.results import Result, Run, read_all, write
from benchmarks.convergence.strategies import STRATEGIES, lost_with, vulnerable
from benchmarks.convergence.subject import Subject
from benchmarks.convergence.trainer import Trainer
from benchmarks.origin import Origin
from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import RunManifest
from understudy.protocol.manifest_reader import manifest_from_table
from understudy.protocol.presets import preset


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a study is."""

    manifest: RunManifest
    """Its ``seed`` is replaced by each run's."""
    iterations: int
    validate_every: int
    seeds: tuple[int, ...] = (0, 1, 2)
    failure_factor: float = 1.0
    """Times as many failures as the rate says: a smoke test of 20 iterations would meet none."""


def full_scale() -> Scale:
    """2.03 M parameters in six block stages of two layers, 2,048 tokens per iteration: 11 minutes on an idle core."""
    model = {
        "hidden_size": 128, "intermediate_size": 256, "attention_heads": 4,
        "block_stages": 6, "layers_per_stage": 2, "context_length": 128,
    }  # fmt: skip
    return Scale(_manifest(model, learning_rate=1e-3, warmup_steps=20), iterations=1000, validate_every=20)


def quick_scale() -> Scale:
    """Every strategy once, in a minute or two: does the study still run?"""
    model = {
        "hidden_size": 32, "intermediate_size": 64, "attention_heads": 2,
        "block_stages": 6, "layers_per_stage": 1, "context_length": 32,
    }  # fmt: skip
    manifest = _manifest(model, learning_rate=3e-3, warmup_steps=5)
    return Scale(manifest, iterations=40, validate_every=5, seeds=(0,), failure_factor=10)


def preset_scale(name: str, iterations: int) -> Scale:
    """A preset of the project, for machines with a GPU. Raises `SettingsError` for an unknown name."""
    return Scale(preset(name), iterations, validate_every=20)


def _manifest(model: dict[str, int], learning_rate: float, warmup_steps: int) -> RunManifest:
    table = {
        "name": "study",
        "model": model,
        "optimizer": {"learning_rate": learning_rate, "warmup_steps": warmup_steps},
        "step": {"microbatches": 2, "microbatch_size": 8},
        "wire": {"dtype": "float32"},
    }
    return manifest_from_table(table, "the study")


# --- which runs ---

_ORDER = (
    (("none",), (0,)),
    (("checkfree", "uniform", "copy", "random"), (16,)),
    (("checkfree+",), (16, 0)),
    (("checkfree", "checkfree+"), (10, 5)),
    (("checkfree-moments", "checkfree-probe", "checkfree-regression", "checkfree-decay"), (16,)),
    (("checkfree-1", "checkfree+mirror", "checkfree-all", "checkfree-cold"), (16,)),
    (("checkfree-clipped", "checkfree-1-clipped"), (16,)),
    (("standby-20", "standby-20-moments", "standby-20-pairs"), (16,)),
    (("standby-20-second", "standby-20-tenth", "standby-100"), (16,)),
    (("standby-5", "standby-1", "standby-100-moments", "standby-5-moments", "standby-1-moments"), (16,)),
    (("checkfree-pairs",), (16,)),
)
_URGENT = 5
"""So many rows of the order come before the others for every seed: a study that is cut short still says something."""


def runs(scale: Scale) -> Iterator[Run]:
    """All runs of a study, in order of importance."""
    for rows in (_ORDER[:_URGENT], _ORDER[_URGENT:]):
        for seed in scale.seeds:
            for strategies, percents in rows:
                yield from (Run(strategy, percent, seed) for percent in percents for strategy in strategies)


# --- running ---


def carry_out(run: Run, scale: Scale, device: str, origin: Origin) -> Result:
    """Train one model from beginning to end."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    strategy = STRATEGIES[run.strategy]
    trainer = Trainer(scale.manifest, strategy, run.seed, device)
    stages = vulnerable(strategy.loses, scale.manifest.model.block_stages)
    losses, validation = [], []
    for step in range(1, scale.iterations + 1):
        drawn = lost_stages(run.percent, run.seed, step, stages, scale.failure_factor)
        if drawn:
            trainer.lose(lost_with(strategy.loses, scale.manifest.model.block_stages, drawn), step - 1)
        losses.append(round(trainer.train_step(step), 5))
        if step % scale.validate_every == 0:
            validation.append((step, round(trainer.validation_loss(), 5)))
    return Result(
        strategy=run.strategy,
        percent=run.percent,
        seed=run.seed,
        manifest=Subject.of(trainer.manifest),
        losses=tuple(losses),
        validation=tuple(validation),
        recoveries=tuple(trainer.recoveries),
        seconds=round(time.perf_counter() - began, 1),
        origin=origin,
        failure_factor=scale.failure_factor,
    )


def run_all(scale: Scale, folder: Path, jobs: int, device: str) -> Iterator[Result]:
    """Carry out what is missing in ``folder``, in ``jobs`` processes; keep each result as it comes."""
    kept = read_all(folder)
    for result in kept.values():
        check_same_study(result, scale)
    missing = [run for run in runs(scale) if run not in kept]
    plain = [run for run in missing if not run.strategy.endswith("-clipped")]
    yield from _run_each(plain, scale, folder, jobs, device)
    results = read_all(folder)
    different = [run for run in missing if run not in plain and stand_in(run, results) == run]
    yield from _run_each(different, scale, folder, jobs, device)


def check_same_study(result: Result, scale: Scale) -> None:
    """Results of another model or length must not be mixed with these. Raises `SettingsError`."""
    expected = STRATEGIES[result.strategy].applied_to(msgspec.structs.replace(scale.manifest, seed=result.seed))
    is_same = result.manifest == Subject.of(expected) and result.failure_factor == scale.failure_factor
    if not is_same or len(result.losses) != scale.iterations:
        raise SettingsError(
            f"{result.run.file_name} is of another study, with another model, length or settings: "
            "keep the results of each in a --folder of its own"
        )


def _run_each(wanted: list[Run], scale: Scale, folder: Path, jobs: int, device: str) -> Iterator[Result]:
    origin = Origin.here(device, "1 thread per run")
    made = (
        (carry_out(run, scale, device, origin) for run in wanted)
        if jobs == 1
        else _side_by_side(wanted, scale, jobs, device, origin)
    )
    for result in made:
        write(result, folder)
        yield result


def _side_by_side(wanted: list[Run], scale: Scale, jobs: int, device: str, origin: Origin) -> Iterator[Result]:
    """In processes of their own, in the order in which they end."""
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(carry_out, run, scale, device, origin) for run in wanted]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
