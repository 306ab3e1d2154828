"""The language model, cut into stages.

S0 (`EdgeStage`) holds both ends of the model: token embedding, final norm, LM head and loss. The
block stages S1..Sn (`BlockStage`) are equal in shape, which is what lets a lost one be blended
from its neighbours. A microbatch travels

    tokens -> S0.embed -> S1 -> ... -> Sn -> S0.loss

The blocks are LLaMA's: RMSNorm before each half, rotary positions, causal attention, SwiGLU, no
biases. Parameters carry the names of Hugging Face's ``LlamaForCausalLM`` (transformers,
``models/llama/modeling_llama.py``), global layer numbers included, so the stages' state dicts
together are that model's. Weights and the residual stream are float32; under autocast the
projections and attention run in bfloat16.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.ids import DRIVER_STAGE
from understudy.protocol.manifest import ModelSettings

INITIAL_STD = 0.02
"""Standard deviation of every freshly drawn weight; norms start at one."""

EMBEDDING_NAMES = ("model.embed_tokens.weight",)
HEAD_NAMES = ("model.norm.weight", "lm_head.weight")
"""The parameters of S0 before and behind the blocks: what S1 and Sn keep copies of."""


class Rotary(NamedTuple):
    """Cosine and sine of every position's angles: two float32 tensors of (context, head size)."""

    cos: Tensor
    sin: Tensor


def rotary_tables(settings: ModelSettings) -> Rotary:
    """RoPE (arXiv 2104.09864): pair k of a head turns by position * theta^(-2k / head size).

    A pair is elements k and k + head size / 2 (Hugging Face's order), so each row holds the
    angles twice.
    """
    head_size = settings.hidden_size // settings.attention_heads
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device="cpu") / head_size
    frequencies = 1.0 / settings.rope_theta**exponents
    positions = torch.arange(settings.context_length, dtype=torch.float32, device="cpu")
    angles = torch.outer(positions, frequencies).repeat(1, 2)
    return Rotary(angles.cos(), angles.sin())


def rotate(heads: Tensor, rotary: Rotary) -> Tensor:
    """Turn queries or keys, (batch, heads, context, head size), by their position. Same shape and dtype."""
    context = heads.shape[-2]
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (heads * rotary.cos[:context] + turned * rotary.sin[:context]).to(heads.dtype)


class Attention(nn.Module):
    """Causal self-attention over rotated queries and keys."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        size = settings.hidden_size
        self.head_size = size // settings.attention_heads
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(self, hidden: Tensor, rotary: Rotary) -> Tensor:
        """(batch, context, hidden) -> same."""
        query = rotate(self._split_heads(self.q_proj(hidden)), rotary)
        key = rotate(self._split_heads(self.k_proj(hidden)), rotary)
        value = self._split_heads(self.v_proj(hidden))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        output: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return output

    def _split_heads(self, projected: Tensor) -> Tensor:
        """(batch, context, hidden) -> (batch, heads, context, head size)."""
        return projected.view(*projected.shape[:2], -1, self.head_size).transpose(1, 2)


class SwiGLU(nn.Module):
    """The gated feed-forward half of a block (arXiv 2002.05202)."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(settings.hidden_size, settings.intermediate_size, bias=False)
        self.up_proj = nn.Linear(settings.hidden_size, settings.intermediate_size, bias=False)
        self.down_proj = nn.Linear(settings.intermediate_size, settings.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, context, hidden) -> same."""
        output: Tensor = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return output


class DecoderBlock(nn.Module):
    """One layer: attention and feed-forward, each normed first and added to the residual stream."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.self_attn = Attention(settings)
        self.mlp = SwiGLU(settings)
        self.input_layernorm = nn.RMSNorm(settings.hidden_size, eps=settings.norm_epsilon)
        self.post_attention_layernorm = nn.RMSNorm(settings.hidden_size, eps=settings.norm_epsilon)

    def forward(self, hidden: Tensor, rotary: Rotary) -> Tensor:
        """(batch, context, hidden) -> same."""
        attended: Tensor = hidden + self.self_attn(self.input_layernorm(hidden), rotary)
        output: Tensor = attended + self.mlp(self.post_attention_layernorm(attended))
        return output


class BlockStage(nn.Module):
    """S1..Sn: ``layers_per_stage`` decoder blocks. Made by `build_stage`."""

    rotary_cos: Tensor
    rotary_sin: Tensor

    def __init__(self, settings: ModelSettings, stage: int) -> None:
        super().__init__()
        first = (stage - 1) * settings.layers_per_stage
        self.blocks = [DecoderBlock(settings) for _ in range(settings.layers_per_stage)]
        layers = nn.ModuleDict({str(first + j): block for j, block in enumerate(self.blocks)})
        self.model = nn.ModuleDict({"layers": layers})
        rotary = rotary_tables(settings)
        self.register_buffer("rotary_cos", rotary.cos, persistent=False)
        self.register_buffer("rotary_sin", rotary.sin, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, context, hidden), float32 -> same. The context may be shorter than the run's, never longer."""
        rotary = Rotary(self.rotary_cos, self.rotary_sin)
        for block in self.blocks:
            hidden = block(hidden, rotary)
        return hidden


class EdgeStage(nn.Module):
    """S0: embedding, final norm and LM head (untied). Made by `build_stage`."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        size, vocabulary = settings.hidden_size, settings.vocabulary_size
        # Not nn.Embedding(...), whose own draw costs 1.3 s of imports on the meta device (torch 2.13).
        embed_tokens = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
            torch.empty(vocabulary, size), freeze=False
        )
        norm = nn.RMSNorm(size, eps=settings.norm_epsilon)
        self.model = nn.ModuleDict({"embed_tokens": embed_tokens, "norm": norm})
        self.lm_head = nn.Linear(size, vocabulary, bias=False)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids, int64 (batch, context) -> (batch, context, hidden), float32."""
        hidden: Tensor = self.model["embed_tokens"](tokens)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(batch, context, hidden) -> (batch, context, vocabulary)."""
        scores: Tensor = self.lm_head(self.model["norm"](hidden))
        return scores

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy in nats, a float32 scalar.

        ``labels``, int64 (batch, context), are already shifted: labels[b, t] follows tokens[b, t].
        """
        return F.cross_entropy(self.logits(hidden).flatten(0, 1), labels.flatten())


class UnsplitModel(nn.Module):
    """All stages in one module: what the swarm's arithmetic is measured against.

    ``stages[i]`` is exactly `build_stage` (settings, i, seed), so it starts where a swarm starts.
    """

    def __init__(self, settings: ModelSettings, seed: int) -> None:
        super().__init__()
        self.edge = build_edge_stage(settings, seed)
        self.blocks = nn.ModuleList(
            build_block_stage(settings, stage, seed) for stage in range(1, settings.block_stages + 1)
        )

    @property
    def stages(self) -> list[nn.Module]:
        """S0..Sn."""
        return [self.edge, *self.blocks]

    def forward(self, tokens: Tensor, labels: Tensor, route: Sequence[int] | None = None) -> Tensor:
        """The loss of a microbatch that visits the block stages in the order of ``route`` (default S1..Sn)."""
        hidden = self.edge.embed(tokens)
        for stage in range(1, len(self.blocks) + 1) if route is None else route:
            hidden = self.blocks[stage - 1](hidden)
        return self.edge.loss(hidden, labels)


def blank_stage(settings: ModelSettings, stage: int) -> BlockStage | EdgeStage:
    """The stage's names and shapes without its weights, on torch's meta device: it takes no memory.

    Raises `LocalProtocolError` for a stage that the model does not have.
    """
    if not 0 <= stage <= settings.block_stages:
        raise LocalProtocolError(f"stage {stage} holds no blocks: the model's are 1 to {settings.block_stages}")
    with torch.device("meta"):
        return EdgeStage(settings) if stage == DRIVER_STAGE else BlockStage(settings, stage)


def build_stage(settings: ModelSettings, stage: int, seed: int) -> BlockStage | EdgeStage:
    """The freshly initialised stage, on the CPU: a pure function of its arguments.

    Neither reads nor moves torch's global random state. Raises like `blank_stage`.
    """
    module = blank_stage(settings, stage)
    _initialise(module, stage, seed)
    return module


def build_edge_stage(settings: ModelSettings, seed: int) -> EdgeStage:
    """`build_stage` for S0, typed as such."""
    edge = build_stage(settings, DRIVER_STAGE, seed)
    assert isinstance(edge, EdgeStage)
    return edge


def build_block_stage(settings: ModelSettings, stage: int, seed: int) -> BlockStage:
    """`build_stage` for one of S1..Sn, typed as such."""
    block_stage = build_stage(settings, stage, seed)
    if not isinstance(block_stage, BlockStage):
        raise LocalProtocolError(f"stage {stage} holds no blocks: the model's are 1 to {settings.block_stages}")
    return block_stage


def _initialise(module: nn.Module, stage: int, seed: int) -> None:
    """Give a module on the meta device its first and only weights, drawn in order of declaration."""
    digest = hashlib.sha256(f"weights/{seed}/{stage}".encode()).digest()
    generator = torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "little"))
    weights = {name: _first_weight(parameter.shape, generator) for name, parameter in module.named_parameters()}
    module.load_state_dict(weights, assign=True)


def _first_weight(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Ones for a norm's vector, small normal values for a matrix."""
    if len(shape) == 1:
        return torch.ones(shape)
    return torch.empty(shape).normal_(std=INITIAL_STD, generator=generator)
