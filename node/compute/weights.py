"""A stage's weights as things to blend, to send and to receive.

Weights travel as raw little-endian bytes, tensor after tensor in the order of
``module.named_parameters()``, described by `TensorSpec`s that go ahead of them. The receiver
checks the specs against its own module before it makes room, and every tensor against its digest
before it uses any. Names carry global layer numbers, which differ between equal stages; they are
compared by the layer's position within the stage.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor, nn

from understudy.protocol.errors import LocalProtocolError, WeightsError
from understudy.protocol.wire.tensors import TensorSpec, WeightsDtype

SPECS_MAX = 1 << 16
PAYLOAD_BYTES_MAX = 1 << 36
COEFFICIENT_SUM_TOLERANCE = 1e-6
BLEND_BLOCK = 1 << 16
"""Elements that are multiplied and added while they are in the processor's cache."""

DTYPES: dict[WeightsDtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_DTYPE_NAMES: dict[torch.dtype, WeightsDtype] = {dtype: name for name, dtype in DTYPES.items()}
_LAYER = re.compile(r"^model\.layers\.([0-9]+)\.")


@dataclass(frozen=True, slots=True, eq=False)
class WeightsSnapshot:
    """Weights as they were at one moment, in memory of their own, ready to be sent. Made by `snapshot`."""

    specs: tuple[TensorSpec, ...]
    tensors: tuple[Tensor, ...]
    """On the CPU, contiguous. Not to be written to."""

    @property
    def payload_bytes(self) -> int:
        return sum(spec.payload_bytes for spec in self.specs)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the encoded specs, and through their digests of every byte."""
        return hashlib.sha256(msgspec.msgpack.encode(self.specs)).hexdigest()

    def chunks(self, offset: int, chunk_bytes: int) -> Iterator[memoryview]:
        """The payload from byte ``offset`` on, in views of at most ``chunk_bytes`` that copy nothing.

        A view never spans two tensors. Raises `LocalProtocolError` for an offset outside of the payload.
        """
        if not 0 <= offset <= self.payload_bytes or chunk_bytes < 1:
            raise LocalProtocolError(f"no chunks of {chunk_bytes} bytes from {offset} of {self.payload_bytes}")
        return self._chunks(offset, chunk_bytes)

    def _chunks(self, offset: int, chunk_bytes: int) -> Iterator[memoryview]:
        for tensor in self.tensors:
            content = raw_bytes(tensor).toreadonly()
            for start in range(offset, len(content), chunk_bytes):
                yield content[start : start + chunk_bytes]
            offset = max(0, offset - len(content))


class HeldCopy:
    """A module's weights, copied to the CPU now; their digests are computed later, a tensor at a time."""

    def __init__(self, module: nn.Module) -> None:
        self._specs: list[TensorSpec] = []
        self._tensors = {name: _copied(parameter) for name, parameter in module.named_parameters()}
        self._names = list(self._tensors)
        self.whole: WeightsSnapshot | None = None
        """Ready to be sent, once every digest is there."""

    def digest_next(self) -> WeightsSnapshot | None:
        """One more tensor; what is whole after the last."""
        if self.whole is None:
            name = self._names[len(self._specs)]
            self._specs.append(_spec(name, self._tensors[name]))
            if len(self._specs) == len(self._names):
                self.whole = WeightsSnapshot(tuple(self._specs), tuple(self._tensors.values()))
        return self.whole


def snapshot(module: nn.Module, names: Sequence[str] = ()) -> WeightsSnapshot:
    """Copy a module's parameters, or those of the given names, to the CPU: later training does not touch the copy."""
    tensors = {name: _copied(parameter) for name, parameter in selected(module, names)}
    return described(tensors)


def described(tensors: Mapping[str, Tensor]) -> WeightsSnapshot:
    """Contiguous CPU tensors by name, with their digests, as they are: not copied."""
    return WeightsSnapshot(tuple(_spec(name, tensor) for name, tensor in tensors.items()), tuple(tensors.values()))


def _copied(parameter: Tensor) -> Tensor:
    return torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu").copy_(parameter.detach())


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(name, _DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), _digest(tensor))


def check_specs(specs: Sequence[TensorSpec], module: nn.Module, names: Sequence[str] = ()) -> None:
    """`check_tensors` with the module's parameters, or those of the given names."""
    check_tensors(specs, selected(module, names))


def check_tensors(specs: Sequence[TensorSpec], own: Sequence[tuple[str, Tensor]]) -> None:
    """Refuse specs that do not describe our tensors, which are given by name, in order.

    Raises `WeightsError` naming the first that differs. Layer numbers may differ, positions may not.
    """
    check_size(specs)
    if len(specs) != len(own):
        raise WeightsError(f"{len(specs)} tensors are offered where the stage has {len(own)}")
    theirs = _names_by_position([spec.name for spec in specs])
    ours = _names_by_position([name for name, _ in own])
    for spec, their_name, our_name, (name, tensor) in zip(specs, theirs, ours, own, strict=True):
        if their_name != our_name:
            raise WeightsError(f"{spec.name} is offered in the place of {name}")
        if spec.shape != tuple(tensor.shape) or DTYPES[spec.dtype] != tensor.dtype:
            raise WeightsError(
                f"{spec.name} is offered as {spec.dtype} {spec.shape}, the stage needs "
                f"{_dtype_name(tensor)} {tuple(tensor.shape)}"
            )


def adopt(module: nn.Module, tensors: Sequence[Tensor], names: Sequence[str] = ()) -> None:
    """Make tensors the module's parameters, or those of the given names, in order. They are not copied: keep none.

    The module may be a `blank_stage`. Raises `WeightsError`, with nothing changed, if one has another shape or
    dtype or is not finite.
    """
    own = selected(module, names)
    if len(tensors) != len(own):
        raise WeightsError(f"{len(tensors)} tensors cannot be loaded where the stage has {len(own)}")
    for (name, parameter), tensor in zip(own, tensors, strict=True):
        if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
            raise WeightsError(
                f"{name} is {_dtype_name(parameter)} {tuple(parameter.shape)}, "
                f"not {_dtype_name(tensor)} {tuple(tensor.shape)}"
            )
        require_finite(tensor, name)
    module.load_state_dict(
        {name: tensor for (name, _), tensor in zip(own, tensors, strict=True)}, strict=False, assign=True
    )


def blend(donors: Sequence[Sequence[Tensor]], coefficients: Sequence[float]) -> list[Tensor]:
    """The coefficient-weighted mean of the donors' weights (CheckFree, Algorithm 1, line 3), tensor by tensor.

    ``donors[k]`` are the float32 tensors of donor k, on one device and in the same order. The
    coefficients, as planned by protocol/recovery/ladder.py, are rounded to float32 first; then, every
    operation rounded to float32 before the next (no fused multiply-add)::

        result = c[0] * W[0];  result = result + (c[k] * W[k])  for k = 1, 2, ...

    so any implementation of these lines agrees to the bit. Raises `WeightsError` if the
    coefficients are no weights of a mean, if tensors do not match, or if an input or a result is not
    finite. Beyond its result it needs memory for `BLEND_BLOCK` elements.
    """
    _check_coefficients(donors, coefficients)
    factors = [torch.tensor(coefficient, dtype=torch.float32) for coefficient in coefficients]
    with torch.no_grad():
        return [
            _blend_tensor([donor[position] for donor in donors], factors, position)
            for position in range(len(donors[0]))
        ]


def _blend_tensor(sources: Sequence[Tensor], factors: Sequence[Tensor], position: int) -> Tensor:
    for donor, source in enumerate(sources):
        if source.shape != sources[0].shape or source.dtype != torch.float32:
            raise WeightsError(
                f"tensor {position} of donor {donor} is {_dtype_name(source)} {tuple(source.shape)}: "
                f"only float32 of one shape can be blended, donor 0 has {tuple(sources[0].shape)}"
            )
        require_finite(source, f"tensor {position} of donor {donor}")
    result = sources[0].contiguous() * factors[0]
    for source, factor in zip(sources[1:], factors[1:], strict=True):
        _add_product(result, source, factor)
    require_finite(result, f"the blend of tensor {position}")
    return result


def _add_product(result: Tensor, source: Tensor, factor: Tensor) -> None:
    """``result += source * factor``, in blocks: memory for the product of a whole tensor took half of the time."""
    product = torch.empty(min(BLEND_BLOCK, source.numel()), dtype=source.dtype, device=source.device)
    blocks = zip(torch.split(result.view(-1), BLEND_BLOCK), torch.split(source.reshape(-1), BLEND_BLOCK), strict=True)
    for block, piece in blocks:
        block.add_(torch.mul(piece, factor, out=product[: len(piece)]))


def _check_coefficients(donors: Sequence[Sequence[Tensor]], coefficients: Sequence[float]) -> None:
    if not donors or len(donors) != len(coefficients):
        raise WeightsError(f"{len(donors)} donors cannot be blended with {len(coefficients)} coefficients")
    if any(len(donor) != len(donors[0]) for donor in donors):
        raise WeightsError(f"the donors have different numbers of tensors: {[len(donor) for donor in donors]}")
    if not all(math.isfinite(coefficient) and coefficient >= 0 for coefficient in coefficients):
        raise WeightsError(f"coefficients must be finite and not negative: {list(coefficients)}")
    if abs(math.fsum(coefficients) - 1) > COEFFICIENT_SUM_TOLERANCE:
        raise WeightsError(f"coefficients must sum to 1: {list(coefficients)}")


def check_size(specs: Sequence[TensorSpec]) -> None:
    """Bound what a peer can make us hold. Raises `WeightsError`."""
    if len(specs) > SPECS_MAX:
        raise WeightsError(f"{len(specs)} tensors are offered; at most {SPECS_MAX} are allowed")
    payload_bytes = sum(spec.payload_bytes for spec in specs)
    if payload_bytes > PAYLOAD_BYTES_MAX:
        raise WeightsError(f"{payload_bytes} bytes of weights are offered; at most {PAYLOAD_BYTES_MAX} are allowed")


def require_finite(tensor: Tensor, what: str) -> None:
    """Raises `WeightsError` for NaN and Inf."""
    if not is_finite(tensor):
        raise WeightsError(f"{what} holds NaN or Inf: these weights are unusable")


def is_finite(tensor: Tensor) -> bool:
    """No NaN and no Inf. Minimum and maximum let NaN through, and need no memory."""
    lowest, highest = torch.aminmax(tensor.detach())
    return math.isfinite(lowest) and math.isfinite(highest)


def selected(module: nn.Module, names: Sequence[str]) -> list[tuple[str, nn.Parameter]]:
    """The named parameters, in the module's order; all of them if no names are given."""
    return [(name, parameter) for name, parameter in module.named_parameters() if not names or name in names]


def _names_by_position(names: Sequence[str]) -> list[str]:
    """Replace each layer number by how many other layers came before it."""
    positions: dict[str, int] = {}

    def renumber(match: re.Match[str]) -> str:
        return f"model.layers.{positions.setdefault(match[1], len(positions))}."

    return [_LAYER.sub(renumber, name) for name in names]


def raw_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor: little-endian, as on every machine that torch trains on."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(raw_bytes(tensor)).hexdigest()


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
