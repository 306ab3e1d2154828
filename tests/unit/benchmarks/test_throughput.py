"""The contest of benchmarks/throughput: everybody trains the same model, and the ratios are right."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import torch
import torch.nn.functional as F

from benchmarks.origin import Origin
from benchmarks.throughput import unsplit
from benchmarks.throughput.pipelining import Part, step_seconds
from benchmarks.throughput.remote_experts import Expert, OncePerStep
from benchmarks.throughput.results import SWARM, Contest, read_all, write
from benchmarks.throughput.swarm import settled_seconds
from benchmarks.throughput.tables import parts
from understudy.bootstrap.founding import load_manifest
from understudy.node.compute.model import UnsplitModel, build_block_stage
from understudy.node.compute.optimizer import StageOptimizer
from understudy.node.data.sources import open_data
from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import ModelSettings, RunManifest, StepSettings, WireSettings

MODEL = ModelSettings(hidden_size=16, intermediate_size=24, attention_heads=2, block_stages=3, context_length=8)
MANIFEST = RunManifest(
    name="small", model=MODEL, step=StepSettings(microbatches=2, microbatch_size=2), wire=WireSettings(dtype="float32")
)


def test_torchs_pipeline_computes_the_same_model() -> None:
    data = open_data(MANIFEST)
    tokens, labels = data.microbatch(1, 0)
    logits = tokens
    for part in (Part(MANIFEST, stage) for stage in (1, 2, 3)):
        logits = part(logits)
    expected = UnsplitModel(MODEL, MANIFEST.seed)(tokens, labels)
    assert torch.equal(F.cross_entropy(logits.flatten(0, 1), labels.flatten()), expected)
    data.close()


def test_what_it_sends_has_the_wires_type() -> None:
    narrow = RunManifest(name="narrow", model=MODEL)
    assert Part(narrow, 1)(torch.zeros(1, 8, dtype=torch.int64)).dtype == torch.bfloat16


def test_gradients_travel_in_the_wires_type() -> None:
    narrow = RunManifest(name="narrow", model=MODEL)
    hidden = torch.zeros(1, 8, 16, dtype=torch.bfloat16, requires_grad=True)
    Part(narrow, 2)(hidden).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


def test_an_expert_computes_its_stage_and_updates_once_per_step() -> None:
    hidden = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
    expert = Expert(MANIFEST, 2)
    assert torch.equal(expert(hidden), build_block_stage(MODEL, 2, MANIFEST.seed)(hidden))
    optimizer = StageOptimizer(expert.parameters(), MANIFEST.optimizer)
    told = OncePerStep(optimizer, microbatches=2)
    ages = []
    for _ in range(4):
        expert(hidden).sum().backward()
        told.step()
        ages.append(optimizer.age)
    assert ages == [0, 1, 1, 2]


def test_the_limit_is_measured_step_by_step() -> None:
    threads = torch.get_num_threads()
    assert len(unsplit.step_seconds(MANIFEST, 3, threads)) == 3


def test_only_steps_behind_the_search_count() -> None:
    commits = [{"event": "step.committed", "step": step, "time": float(step**2)} for step in range(1, 7)]
    settled = {"event": "window.settled", "step": 4, "size": 4, "time": 16.0}
    assert settled_seconds([*commits, settled], is_searching=True) == [9.0, 11.0]
    assert settled_seconds(commits, is_searching=False) == [later**2 - now**2 for now, later in pairwise(range(2, 7))]
    with pytest.raises(RuntimeError, match="did not find"):
        settled_seconds(commits, is_searching=True)


def test_ratios_are_those_of_one_round(tmp_path: Path) -> None:
    """The machine may be slower in one round than in another; within a round it is the same for all."""
    seconds = {SWARM: [[1.0, 2.0, 3.0], [4.0]], "unsplit": [[1.0], [2.0]]}
    contest = Contest(MANIFEST, seconds, Origin("abc", {}, "a machine"))
    assert contest.ratios("unsplit") == [0.5, 0.5]
    write(contest, tmp_path)
    assert read_all(tmp_path) == [contest]
    table = parts([contest])["throughput"].splitlines()
    assert table[3] == "| small | unsplit | 1500 | 21 | 0.50 (0.50, 0.50) |"


@pytest.mark.parametrize("name", ["large", "thin"])
def test_the_models_are_what_the_page_says(name: str) -> None:
    manifest = load_manifest(f"benchmarks/throughput/{name}.toml")
    model = manifest.model
    assert (model.hidden_size, model.context_length, model.block_stages) == (512, 256, 4)
    assert manifest.tokens_per_step == 8192


def test_a_pipeline_of_torch_has_no_int8() -> None:
    narrow = msgspec.structs.replace(MANIFEST, wire=WireSettings(dtype="int8"))
    with pytest.raises(SettingsError, match="knows no int8"):
        step_seconds(narrow, 1, "GPipe")
