"""Rows in int8: half a scale of error, the bytes that the protocol says, no plausible numbers out of broken rows."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.node.quantising import LEVELS, SCALE_MIN, quantised, restored
from understudy.node.tensors import bytes_of, empty_tensor, from_wire, header_of, to_wire
from understudy.protocol.messages import TensorHeader
from understudy.protocol.wire import tensor_bytes

CPU = torch.device("cpu")
NUMBERS = st.floats(-(2.0**126), 2.0**126, width=32)


def rows(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def row_of(levels: list[int], scale: float) -> Tensor:
    """One row as it travels, built by hand."""
    data = struct.pack(f"<{len(levels)}bf", *levels, scale)
    return torch.frombuffer(bytearray(data), dtype=torch.int8).view(1, -1)


# --- what arrives ---


@given(
    st.integers(1, 40).flatmap(lambda width: st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=1))
)
def test_every_number_comes_back_within_half_a_scale(values: list[list[float]]) -> None:
    numbers = rows(values)
    came_back = restored(quantised(numbers))
    scales = numbers.double().abs().amax(-1, keepdim=True) / LEVELS
    bound = torch.where(scales < SCALE_MIN, LEVELS * SCALE_MIN, scales / 2)
    assert came_back.shape == numbers.shape
    assert came_back.dtype == torch.float32
    assert ((came_back.double() - numbers.double()).abs() <= bound * (1 + 1e-4)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=40))
def test_the_largest_comes_back_and_signs_are_kept(values: list[float]) -> None:
    numbers = rows([values])
    there, back = restored(quantised(numbers)), restored(quantised(-numbers))
    assert torch.equal(there, -back)
    largest = numbers.abs().max()
    if largest >= 1e-35:
        torch.testing.assert_close(there.abs().max(), largest, rtol=1e-6, atol=0.0)


def test_rows_have_scales_of_their_own() -> None:
    numbers = rows([[1000.0, 500.0], [0.001, -0.0005]])
    torch.testing.assert_close(restored(quantised(numbers)), numbers, rtol=1e-2, atol=0.0)


def test_halves_are_rounded_to_even() -> None:
    numbers = rows([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert restored(quantised(numbers)).tolist() == [[127.0, 0.0, 2.0, 2.0, 0.0, -2.0]]


@pytest.mark.parametrize("tiny", [0.0, 1e-45, 60 * 1e-45, 180 * 1e-45, 1e-38, 1.4e-36])
def test_rows_of_zeros_and_of_next_to_nothing_are_zeros(tiny: float) -> None:
    numbers = rows([[tiny, -tiny, 0.0], [1.0, 2.0, 3.0]])
    first, second = restored(quantised(numbers))
    assert first.tolist() == [0.0, 0.0, 0.0]
    assert second.tolist() == pytest.approx([1.0, 2.0, 3.0], abs=3 / 254)


# --- what must not look like numbers ---


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_comes_back_as_nan_and_leaves_the_others_alone(broken: float) -> None:
    numbers = torch.ones(2, 3, 4)
    numbers[1, 0, 2] = broken
    wired = quantised(numbers)
    came_back = restored(wired)
    assert came_back[1, 0].isnan().all()
    came_back[1, 0] = 1.0
    assert torch.equal(came_back, torch.ones(2, 3, 4))
    assert wired[1, 0, 4:].view(torch.float32).isnan()


@pytest.mark.parametrize("scale", [-1.0, -1e-45, math.inf, -math.inf, math.nan])
def test_a_scale_that_nobody_sends_makes_its_row_nan(scale: float) -> None:
    came_back = restored(torch.cat([row_of([1, 0, -128], scale), row_of([1, 0, -128], 2.0)]))
    assert came_back[0].isnan().all()
    assert came_back[1].tolist() == [2.0, 0.0, -256.0]


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=14, max_size=14))
def test_any_bytes_are_numbers_of_one_scale_or_nan(data: bytes) -> None:
    (came_back,) = restored(torch.frombuffer(bytearray(data), dtype=torch.int8).view(1, -1))
    *levels, scale = struct.unpack("<10bf", data)
    if math.isfinite(scale) and scale >= 0:
        expected = torch.tensor(levels, dtype=torch.float32) * scale
        assert torch.equal(came_back, expected)
    else:
        assert came_back.isnan().all()


# --- on the wire ---


def test_a_row_is_its_levels_and_a_little_endian_scale() -> None:
    assert bytes(bytes_of(to_wire(rows([[254.0, -127.0, 3.0]]), "int8"))) == struct.pack("<3bf", 127, -64, 2, 2.0)


@pytest.mark.parametrize("shape", [(1, 1, 10), (2, 3, 9), (4, 256, 512)])
def test_the_header_says_how_many_bytes_come(shape: tuple[int, ...]) -> None:
    wired = to_wire(torch.ones(shape), "int8")
    header = header_of(wired)
    assert header == TensorHeader("int8", shape)
    assert len(bytes_of(wired)) == tensor_bytes(header) == math.prod(shape[:-1]) * (shape[-1] + 4)
    arrived = empty_tensor(header)
    bytes_of(arrived)[:] = bytes_of(wired)
    assert torch.equal(from_wire(arrived, CPU), torch.ones(shape))


def test_what_is_sent_shares_no_memory_and_no_graph_with_the_stage() -> None:
    numbers = torch.ones(2, 8, requires_grad=True)
    wired = to_wire((2 * numbers).bfloat16().T, "int8")
    assert (wired.dtype, wired.requires_grad, wired.is_contiguous()) == (torch.int8, False, True)
    assert from_wire(wired, CPU).requires_grad_().is_leaf
