"""Tensors as they travel: a header and raw little-endian bytes, no copy that is not needed."""

from __future__ import annotations

import torch
from torch import Tensor

from node.weights import DTYPES, raw_bytes
from protocol.errors import RemoteProtocolError
from protocol.manifest import RunManifest
from protocol.messages import TensorDtype, TensorHeader


def to_wire(tensor: Tensor, dtype: TensorDtype) -> Tensor:
    """A contiguous CPU tensor of the wire's dtype; the same tensor if it is one already."""
    return tensor.detach().to(device="cpu", dtype=DTYPES[dtype]).contiguous()


def from_wire(tensor: Tensor, device: torch.device) -> Tensor:
    """Back to float32 on the compute device."""
    return tensor.to(device=device, dtype=torch.float32)


def header_of(tensor: Tensor) -> TensorHeader:
    """Describe a tensor made by `to_wire`."""
    dtype: TensorDtype = "float32" if tensor.dtype == torch.float32 else "bfloat16"
    return TensorHeader(dtype, tuple(tensor.shape))


def bytes_of(tensor: Tensor) -> memoryview:
    """The raw bytes of a tensor made by `to_wire`, not copied."""
    return raw_bytes(tensor)


def empty_tensor(header: TensorHeader) -> Tensor:
    """Room for a tensor that arrives; fill `bytes_of` it."""
    return torch.empty(header.shape, dtype=DTYPES[header.dtype])


def activation_header(manifest: RunManifest) -> TensorHeader:
    """What every activation and gradient of the run looks like: (microbatch, context, hidden)."""
    model = manifest.model
    shape = (manifest.step.microbatch_size, model.context_length, model.hidden_size)
    return TensorHeader(manifest.wire.dtype, shape)


def check_activation(header: TensorHeader | None, expected: TensorHeader) -> None:
    """Raise `RemoteProtocolError` unless a data message carries exactly the run's activation."""
    if header != expected:
        described = "nothing" if header is None else f"{header.dtype} {header.shape}"
        raise RemoteProtocolError(f"an activation of {described}; the run's are {expected.dtype} {expected.shape}")
