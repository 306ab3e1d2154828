"""Manifests that come with the program: a small one, and the paper's models."""

from __future__ import annotations

from typing import Any

from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import RunManifest
from understudy.protocol.manifest_reader import manifest_from_table

_PAPER_OPTIMIZER = {"warmup_steps": 100, "weight_decay": 0.0}

_PRESETS: dict[str, dict[str, Any]] = {
    # Trains on two CPU cores in minutes on text that every machine already has.
    "tiny": {},
    # The paper's three models (CHECKFREE: 124M, 500M, 1.5B): width, heads, depth, context and rate.
    "124m": {
        "model": {
            "vocabulary_size": 50257, "hidden_size": 512, "intermediate_size": 1376, "attention_heads": 8,
            "block_stages": 4, "layers_per_stage": 3, "context_length": 512,
        },
        "optimizer": {**_PAPER_OPTIMIZER, "learning_rate": 6e-4},
        "step": {"microbatches": 16, "microbatch_size": 4, "microbatch_timeout_s": 120.0},
    },
    "500m": {
        "model": {
            "vocabulary_size": 50257, "hidden_size": 1024, "intermediate_size": 2752, "attention_heads": 16,
            "block_stages": 6, "layers_per_stage": 4, "context_length": 1024,
        },
        "optimizer": {**_PAPER_OPTIMIZER, "learning_rate": 3e-4},
        "recovery": {"learning_rate_scale": 1.2},
        "step": {"microbatches": 24, "microbatch_size": 2, "microbatch_timeout_s": 300.0},
    },
    "1.5b": {
        "model": {
            "vocabulary_size": 50257, "hidden_size": 2048, "intermediate_size": 5504, "attention_heads": 16,
            "block_stages": 6, "layers_per_stage": 4, "context_length": 4096,
        },
        "optimizer": {**_PAPER_OPTIMIZER, "learning_rate": 3e-4},
        "step": {"microbatches": 24, "microbatch_size": 1, "microbatch_timeout_s": 600.0},
    },
}  # fmt: skip

PRESETS = tuple(_PRESETS)


def preset(name: str) -> RunManifest:
    """The manifest of a preset. Raises `SettingsError` for an unknown name."""
    if name not in _PRESETS:
        raise SettingsError(f"unknown preset {name!r}: use one of {', '.join(PRESETS)}, or the path of a run.toml")
    return manifest_from_table({"name": name, **_PRESETS[name]}, f"preset {name}")
