"""The model against an independent float64 reference, and the stages against the unsplit model."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from understudy.node.compute.model import (
    EMBEDDING_NAMES,
    HEAD_NAMES,
    BlockStage,
    EdgeStage,
    UnsplitModel,
    build_block_stage,
    build_edge_stage,
    build_stage,
    rotary_tables,
    rotate,
)
from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.manifest import ModelSettings

torch.set_num_threads(1)

SETTINGS = ModelSettings(
    hidden_size=24, intermediate_size=40, attention_heads=3, block_stages=3, layers_per_stage=2, context_length=10
)


def random_hidden(seed: int, context: int = SETTINGS.context_length) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, context, SETTINGS.hidden_size, generator=generator)


def random_tokens(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    windows = torch.randint(0, 256, (2, SETTINGS.context_length + 1), generator=generator)
    return windows[:, :-1], windows[:, 1:]


def strong(stage: BlockStage) -> BlockStage:
    """Weights large enough that every part of the block shows in its output."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return stage


# The reference: float64, one position and one head at a time, pairs turned as complex numbers.


def reference_norm(row: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return row / math.sqrt(np.mean(row * row) + SETTINGS.norm_epsilon) * weight


def reference_turn(vector: np.ndarray, position: int) -> np.ndarray:
    half = len(vector) // 2
    pairs = vector[:half] + 1j * vector[half:]
    angles = [position * SETTINGS.rope_theta ** (-2 * k / len(vector)) for k in range(half)]
    turned = pairs * np.exp(1j * np.array(angles))
    return np.concatenate([turned.real, turned.imag])


def reference_attention(rows: np.ndarray, weight: Callable[[str], np.ndarray]) -> np.ndarray:
    heads, size = SETTINGS.attention_heads, SETTINGS.hidden_size // SETTINGS.attention_heads
    query, key, value = (rows @ weight(f"self_attn.{name}_proj").T for name in "qkv")
    mixed = np.zeros_like(rows)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for t in range(len(rows)):
            asked = reference_turn(query[t, part], t)
            scores = [asked @ reference_turn(key[s, part], s) / math.sqrt(size) for s in range(t + 1)]
            shares = np.exp(np.array(scores) - max(scores))
            mixed[t, part] = shares / shares.sum() @ value[: t + 1, part]
    return mixed @ weight("self_attn.o_proj").T


def reference_block(rows: np.ndarray, weight: Callable[[str], np.ndarray]) -> np.ndarray:
    normed = np.stack([reference_norm(row, weight("input_layernorm")) for row in rows])
    rows = rows + reference_attention(normed, weight)
    normed = np.stack([reference_norm(row, weight("post_attention_layernorm")) for row in rows])
    gate = normed @ weight("mlp.gate_proj").T
    gated = gate / (1 + np.exp(-gate)) * (normed @ weight("mlp.up_proj").T)
    return rows + gated @ weight("mlp.down_proj").T


def test_a_stage_computes_the_reference_blocks() -> None:
    stage = strong(build_block_stage(SETTINGS, 2, 0))
    weights = {name: value.double().numpy() for name, value in stage.state_dict().items()}
    hidden = random_hidden(1)
    for batch_row, computed in zip(hidden.double().numpy(), stage(hidden).detach(), strict=True):
        expected = batch_row
        for layer in (2, 3):
            expected = reference_block(
                expected, lambda part, layer=layer: weights[f"model.layers.{layer}.{part}.weight"]
            )
        np.testing.assert_allclose(computed.numpy(), expected, rtol=2e-4, atol=2e-4)


def test_the_loss_is_the_mean_cross_entropy_of_the_normed_head() -> None:
    edge = build_edge_stage(SETTINGS, 0)
    hidden, (_, labels) = random_hidden(2), random_tokens(2)
    weights = {name: value.double().numpy() for name, value in edge.state_dict().items()}
    losses = []
    for row, label in zip(hidden.double().numpy().reshape(-1, SETTINGS.hidden_size), labels.flatten(), strict=True):
        scores = weights["lm_head.weight"] @ reference_norm(row, weights["model.norm.weight"])
        losses.append(np.log(np.exp(scores).sum()) - scores[label])
    assert edge.loss(hidden, labels).item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert edge.logits(hidden).shape == (2, SETTINGS.context_length, SETTINGS.vocabulary_size)


@pytest.mark.parametrize("changed", [1, 5, 9])
def test_a_token_changes_nothing_before_itself(changed: int) -> None:
    stage = strong(build_block_stage(SETTINGS, 1, 0))
    hidden = random_hidden(3)
    other = hidden.clone()
    other[:, changed] += 1
    before, after = stage(hidden), stage(other)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.isclose(before[:, changed:], after[:, changed:]).all(dim=-1).any()


def test_a_shorter_context_is_a_prefix() -> None:
    stage = strong(build_block_stage(SETTINGS, 1, 0))
    hidden = random_hidden(4)
    torch.testing.assert_close(stage(hidden[:, :6]), stage(hidden)[:, :6])


def test_parameters_have_the_names_of_hugging_face() -> None:
    parts = [
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        "input_layernorm",
        "post_attention_layernorm",
    ]
    expected = [f"model.layers.{layer}.{part}.weight" for layer in (4, 5) for part in parts]
    stage, edge = build_stage(SETTINGS, 3, 0), build_stage(SETTINGS, 0, 0)
    assert [name for name, _ in stage.named_parameters()] == expected
    assert list(stage.state_dict()) == expected
    assert [name for name, _ in edge.named_parameters()] == [*EMBEDDING_NAMES, *HEAD_NAMES]


@pytest.mark.parametrize("route", [None, (2, 1, 3)])
def test_stages_compute_what_the_unsplit_model_computes(route: tuple[int, ...] | None) -> None:
    unsplit = UnsplitModel(SETTINGS, seed=11)
    tokens, labels = random_tokens(5)
    whole_loss = unsplit(tokens, labels, route)
    whole_loss.backward()

    edge = build_edge_stage(SETTINGS, 11)
    blocks = {stage: build_block_stage(SETTINGS, stage, 11) for stage in (1, 2, 3)}
    arrivals, departures = [], [edge.embed(tokens)]
    for stage in route or (1, 2, 3):
        arrivals.append(departures[-1].detach().requires_grad_())
        departures.append(blocks[stage](arrivals[-1]))
    arrivals.append(departures[-1].detach().requires_grad_())
    loss = edge.loss(arrivals[-1], labels)
    loss.backward()
    for departure, arrival in zip(reversed(departures), reversed(arrivals), strict=True):
        departure.backward(arrival.grad)

    assert loss.item() == whole_loss.item()
    for split, whole in zip([edge, *blocks.values()], unsplit.stages, strict=True):
        for ours, theirs in zip(split.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_route_matters() -> None:
    unsplit = UnsplitModel(SETTINGS, seed=1)
    tokens, labels = random_tokens(6)
    assert unsplit(tokens, labels, (1, 2, 3)).item() == unsplit(tokens, labels).item()
    assert unsplit(tokens, labels, (2, 1, 3)).item() != unsplit(tokens, labels).item()


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_stage_is_a_pure_function_of_seed_and_number(stage: int) -> None:
    torch.manual_seed(1)
    first = build_stage(SETTINGS, stage, 5).state_dict()
    torch.manual_seed(2)
    state_before = torch.get_rng_state()
    second = build_stage(SETTINGS, stage, 5).state_dict()
    assert torch.equal(torch.get_rng_state(), state_before)
    other_seed = build_stage(SETTINGS, stage, 6).state_dict()
    for name, weight in first.items():
        assert torch.equal(weight, second[name])
        if "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight))
        else:
            assert not torch.equal(weight, other_seed[name])
            assert weight.mean().item() == pytest.approx(0, abs=0.005)
            assert weight.std().item() == pytest.approx(0.02, rel=0.15)


def test_stages_and_layers_start_different() -> None:
    drawn = [
        weight
        for stage in (1, 2, 3)
        for name, weight in build_stage(SETTINGS, stage, 0).state_dict().items()
        if "q_proj" in name
    ]
    assert len({weight.numpy().tobytes() for weight in drawn}) == len(drawn) == 6


def test_a_built_stage_is_real_and_trainable() -> None:
    for stage in range(SETTINGS.block_stages + 1):
        built = build_stage(SETTINGS, stage, 0)
        assert isinstance(built, EdgeStage if stage == 0 else BlockStage)
        for tensor in [*built.parameters(), *built.buffers()]:
            assert tensor.device.type == "cpu"
            assert tensor.dtype == torch.float32
        assert all(parameter.requires_grad for parameter in built.parameters())


@pytest.mark.parametrize("stage", [-1, 4])
def test_a_stage_the_model_does_not_have_is_refused(stage: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"stage {stage} holds no blocks"):
        build_stage(SETTINGS, stage, 0)


def test_autocast_stays_close_and_returns_a_float32_loss() -> None:
    unsplit = UnsplitModel(SETTINGS, seed=0)
    tokens, labels = random_tokens(8)
    exact = unsplit(tokens, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert unsplit.blocks[0](random_hidden(1)).dtype == torch.float32
        rounded = unsplit(tokens, labels)
    assert rounded.dtype == torch.float32
    rotary = rotary_tables(SETTINGS)
    assert rotary.cos.dtype == torch.float32
    assert rotate(torch.ones(1, 3, 5, 8, dtype=torch.bfloat16), rotary).dtype == torch.bfloat16
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-2)
