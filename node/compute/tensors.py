"""Tensors as they travel: a header and raw little-endian bytes, no copy that is not needed."""

from __future__ import annotations

import torch
from torch import Tensor

from understudy.node.compute.quantisation import quantised, restored, width_of
from understudy.node.compute.weights import DTYPES, raw_bytes
from understudy.protocol.errors import LocalProtocolError, RemoteProtocolError
from understudy.protocol.manifest import RunManifest, WireDtype
from understudy.protocol.wire.tensors import TensorHeader

_WIRE_DTYPES: dict[WireDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}
_NAMES: dict[torch.dtype, WireDtype] = {dtype: name for name, dtype in _WIRE_DTYPES.items()}


def to_wire(tensor: Tensor, dtype: WireDtype) -> Tensor:
    """A contiguous CPU tensor as it travels; the same tensor if it is one already.

    Its shape is the tensor's, but in int8 each row has its scales behind it (node/compute/quantisation.py).
    """
    if dtype == "int8":
        return quantised(tensor).cpu()
    return tensor.detach().to(device="cpu", dtype=DTYPES[dtype]).contiguous()


def from_wire(tensor: Tensor, device: torch.device) -> Tensor:
    """Back to float32, and to its own shape, on the compute device."""
    if tensor.dtype == torch.int8:
        return restored(tensor.to(device))
    return tensor.to(device=device, dtype=torch.float32)


def header_of(tensor: Tensor) -> TensorHeader:
    """Describe a tensor made by `to_wire`: its dtype, and the shape that `from_wire` gives it."""
    name, (*rows, width) = _NAMES[tensor.dtype], tensor.shape
    return TensorHeader(name, (*rows, width_of(width) if name == "int8" else width))


def bytes_of(tensor: Tensor) -> memoryview:
    """The raw bytes of a tensor made by `to_wire`, not copied."""
    return raw_bytes(tensor)


def empty_tensor(header: TensorHeader) -> Tensor:
    """Room for a tensor that arrives; fill `bytes_of` it."""
    *rows, width = header.shape
    size = (*rows, header.row_bytes if header.dtype == "int8" else width)
    return torch.empty(size, dtype=_WIRE_DTYPES[header.dtype])


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


def rooted(output: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient with respect to ``output`` is ``gradient``, to the bit.

    `torch.autograd.backward` takes the gradient itself, but imports 486 modules (sympy) for it: 0.7 s of a core, and
    on a busy machine two seconds, for which the swarm waited at the first backward pass of every new owner. Raises
    `LocalProtocolError` if the shapes differ: a product would broadcast them.
    """
    if output.shape != gradient.shape:
        raise LocalProtocolError(f"a gradient of {tuple(gradient.shape)} for an output of {tuple(output.shape)}")
    return (output * gradient).sum()
