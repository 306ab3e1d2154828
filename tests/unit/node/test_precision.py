"""Which arithmetic a stage computes in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from understudy.node.compute import precision
from understudy.node.compute.precision import HIDDEN_SIZE_MIN, arithmetic, is_bfloat16_faster
from understudy.node.compute.stage import StageHost
from understudy.protocol.ids import Attempt, Microbatch
from understudy.protocol.jobs import BackwardJob, ForwardJob, InitialiseJob
from understudy.protocol.manifest import ComputeSettings, ModelSettings, RunManifest, StepSettings, WireSettings

CPU = torch.device("cpu")
ONE, FIRST = Microbatch(1, 0), Attempt(1, 0)


def manifest(hidden_size: int = HIDDEN_SIZE_MIN, **settings: Any) -> RunManifest:
    model = ModelSettings(hidden_size=hidden_size, intermediate_size=64, block_stages=1, context_length=8)
    return RunManifest(
        name="p", model=model, step=StepSettings(microbatch_size=1), wire=WireSettings(dtype="float32"), **settings
    )


@pytest.fixture
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: request.param)


@pytest.mark.parametrize(
    ("instructions", "hidden_size", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, 512, True),
        ({"amx_bf16": True}, HIDDEN_SIZE_MIN, True),
        ({"avx512_bf16": True}, HIDDEN_SIZE_MIN - 1, False),
        ({"avx512_bf16": False, "avx512_f": True}, 512, False),
        ({}, 512, False),
    ],
    indirect=["instructions"],
)
def test_a_cpu_computes_in_bfloat16_where_that_is_faster(instructions: None, hidden_size: int, expected: bool) -> None:
    assert is_bfloat16_faster(CPU, hidden_size) is expected


def test_a_run_can_ask_for_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16_instructions", lambda: True)
    weights, hidden = torch.ones(2, 2), torch.ones(2, 2)
    for settings, dtype in ((ComputeSettings(), torch.bfloat16), (ComputeSettings(dtype="float32"), torch.float32)):
        with arithmetic(manifest(compute=settings), CPU):
            assert (hidden @ weights).dtype == dtype


def test_a_stage_rounds_its_products_and_nothing_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, gradients = [], []
    for has_instructions in (False, True):
        monkeypatch.setattr(precision, "has_bfloat16_instructions", lambda answer=has_instructions: answer)
        host = StageHost(manifest(), "cpu")
        host.work(InitialiseJob(1, 1))
        source = torch.randn(1, 8, HIDDEN_SIZE_MIN, generator=torch.Generator().manual_seed(0))
        outputs.append(host.work(ForwardJob(ONE, FIRST, source)))
        gradients.append(host.work(BackwardJob(ONE, FIRST, torch.ones_like(source), is_counted=True)))
        assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in host.module.parameters())
    for exact, rounded in (outputs, gradients):
        assert rounded.dtype == torch.float32
        assert not torch.equal(exact, rounded)
        assert torch.allclose(exact, rounded, atol=0.02, rtol=0.02)
