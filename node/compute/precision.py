"""In which arithmetic a stage computes: bfloat16 where this machine multiplies it faster, float32 elsewhere.

Weights, gradients, optimizer and the residual stream are float32 always; autocast rounds the projections' and the
attention's inputs. The rule depends on nothing that is measured, so the same machine always computes the same.
"""

from __future__ import annotations

import torch

from understudy.protocol.manifest import RunManifest

HIDDEN_SIZE_MIN = 256
"""On a CPU with bfloat16 instructions a stage is 1.4 to 1.9 times as fast from here on (docs/experiments.md).

Below, casting the weights eats the gain: 1.13 and 0.89 times at hidden size 128.
"""


def arithmetic(manifest: RunManifest, device: torch.device) -> torch.autocast:
    """A fresh context for one forward pass of a stage."""
    is_allowed = manifest.compute.dtype == "auto"
    is_faster = is_allowed and is_bfloat16_faster(device, manifest.model.hidden_size)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_faster)


def is_bfloat16_faster(device: torch.device, hidden_size: int) -> bool:
    """Whether the device has instructions for it, and the matrices are large enough to make up for the casts."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return hidden_size >= HIDDEN_SIZE_MIN and has_bfloat16_instructions()


def has_bfloat16_instructions() -> bool:
    """Of this machine's CPU."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
