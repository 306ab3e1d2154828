"""Blocks in int8: half a scale of error, the bytes that the protocol says, no plausible numbers from broken ones."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.node.compute.quantisation import LEVELS, SCALE_MIN, quantised, restored, width_of
from understudy.node.compute.tensors import bytes_of, empty_tensor, from_wire, header_of, to_wire
from understudy.protocol.wire.frames import tensor_bytes
from understudy.protocol.wire.tensors import BLOCK_CHANNELS, TensorHeader, quantised_bytes

CPU = torch.device("cpu")
NUMBERS = st.floats(-(2.0**126), 2.0**126, width=32)


def rows(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def row_of(levels: list[int], *scales: float) -> Tensor:
    """One row as it travels, built by hand; the scales must be such as bfloat16 has."""
    data = struct.pack(f"<{len(levels)}b", *levels) + b"".join(struct.pack("<f", scale)[2:] for scale in scales)
    return torch.frombuffer(bytearray(data), dtype=torch.int8).view(1, -1)


def block_maxima(numbers: Tensor) -> Tensor:
    """For each number, the largest magnitude in its block."""
    return torch.cat([p.abs().amax(-1, keepdim=True).expand(p.shape) for p in numbers.split(BLOCK_CHANNELS, -1)], -1)


def relative_error(numbers: Tensor, came_back: Tensor) -> float:
    return float((came_back - numbers).square().sum().sqrt() / numbers.square().sum().sqrt())


# --- what arrives ---


@given(
    st.integers(1, 70).flatmap(lambda width: st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=1))
)
def test_every_number_comes_back_within_half_a_scale_of_its_block(values: list[list[float]]) -> None:
    numbers = rows(values)
    came_back = restored(quantised(numbers))
    maxima = block_maxima(numbers)
    scales = (maxima / LEVELS).bfloat16().double()
    bound = torch.where(scales <= SCALE_MIN, LEVELS * SCALE_MIN, scales / 2)
    assert came_back.shape == numbers.shape
    assert came_back.dtype == torch.float32
    assert ((came_back.double() - numbers.double()).abs() <= bound * (1 + 1e-4)).all()


def test_one_large_channel_costs_its_own_block_only() -> None:
    """Under one scale for the row, the others would lose 6.7 % (the norm of the error against that of the numbers)."""
    numbers = torch.randn(1024, 512, generator=torch.Generator().manual_seed(0))
    numbers[:, 7] *= 30
    came_back = restored(quantised(numbers))
    assert relative_error(numbers[:, BLOCK_CHANNELS:], came_back[:, BLOCK_CHANNELS:]) < 0.006
    assert relative_error(numbers[:, :7], came_back[:, :7]) < 0.08


@pytest.mark.parametrize("mantissa", [*range(120, 136), *range(248, 258)])
def test_no_rounding_of_a_scale_carries_the_largest_beyond_the_levels(mantissa: int) -> None:
    """bfloat16 has 8 bits of it: near 1.0 a scale may be rounded down by 0.4 %, and 127.5 would become -128."""
    numbers = rows([[LEVELS * (mantissa / 128 + offset) for offset in (0.0, 0.00389, 0.003906, 0.00392)]])
    for width in range(1, 5):
        row = numbers[:, :width]
        came_back = restored(quantised(row))
        assert (came_back > 0).all()
        torch.testing.assert_close(came_back.max(), row.max(), rtol=0.004, atol=0.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=40))
def test_the_largest_is_the_last_level_and_signs_are_kept(values: list[float]) -> None:
    numbers = rows([values])
    there, back = restored(quantised(numbers)), restored(quantised(-numbers))
    assert torch.equal(there, -back)
    largest = numbers.abs().max()
    if largest >= 1e-35:
        torch.testing.assert_close(there.abs().max(), largest, rtol=0.004, atol=0.0)


def test_rows_and_blocks_have_scales_of_their_own() -> None:
    first, second = [1000.0, -500.0] * (BLOCK_CHANNELS // 2), [0.001, -0.0005]
    numbers = rows([first + second, [-value for value in reversed(first)] + [1e-9, 0.0]])
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
@pytest.mark.parametrize("channel", [2, BLOCK_CHANNELS + 3])
def test_a_block_that_is_not_finite_comes_back_as_nan_and_leaves_the_others_alone(broken: float, channel: int) -> None:
    numbers = torch.full((2, 3, BLOCK_CHANNELS + 4), 127.0)
    is_lost = torch.zeros(numbers.shape, dtype=torch.bool)
    is_lost[1, 0].split(BLOCK_CHANNELS)[channel // BLOCK_CHANNELS].fill_(True)
    numbers[1, 0, channel] = broken
    came_back = restored(quantised(numbers))
    assert torch.equal(came_back.isnan(), is_lost)
    assert (came_back[~is_lost] == 127.0).all()


@pytest.mark.parametrize("scale", [-1.0, -1e-38, math.inf, -math.inf, math.nan])
def test_a_scale_that_nobody_sends_makes_its_block_nan(scale: float) -> None:
    levels = [1] * BLOCK_CHANNELS + [1, 0, -128]
    (came_back,) = restored(row_of(levels, scale, 2.0))
    assert came_back[:BLOCK_CHANNELS].isnan().all()
    assert came_back[BLOCK_CHANNELS:].tolist() == [2.0, 0.0, -256.0]


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=39, max_size=39))
def test_any_bytes_are_numbers_of_their_scale_or_nan(data: bytes) -> None:
    (came_back,) = restored(torch.frombuffer(bytearray(data), dtype=torch.int8).view(1, -1))
    levels = struct.unpack("<35b", data[:35])
    for start, found in zip((0, BLOCK_CHANNELS), came_back.split(BLOCK_CHANNELS), strict=True):
        behind = 35 + start // BLOCK_CHANNELS * 2
        (scale,) = struct.unpack("<f", b"\0\0" + data[behind : behind + 2])
        if math.isfinite(scale) and scale >= 0:
            expected = torch.tensor(levels[start : start + len(found)], dtype=torch.float32) * scale
            assert torch.equal(found, expected)
        else:
            assert found.isnan().all()


# --- on the wire ---


def test_a_row_is_its_levels_and_then_the_little_endian_scales_of_its_blocks() -> None:
    numbers = rows([[254.0, -127.0, *[3.0] * (BLOCK_CHANNELS - 2), -127.0, 3.0]])
    sent = bytes(bytes_of(to_wire(numbers, "int8")))
    assert sent == struct.pack("<34b4B", 127, -64, *[2] * (BLOCK_CHANNELS - 2), -127, 3, 0x00, 0x40, 0x80, 0x3F)


@given(st.integers(0, 1 << 16))
def test_the_bytes_of_a_row_tell_its_width(width: int) -> None:
    assert width_of(quantised_bytes(width)) == width


@pytest.mark.parametrize("shape", [(1, 1, 10), (2, 3, 31), (2, 3, 33), (3, 1, 100), (4, 256, 512)])
def test_the_header_says_how_many_bytes_come(shape: tuple[int, ...]) -> None:
    wired = to_wire(torch.ones(shape), "int8")
    header = header_of(wired)
    assert header == TensorHeader("int8", shape)
    row_bytes = shape[-1] + 2 * math.ceil(shape[-1] / BLOCK_CHANNELS)
    assert len(bytes_of(wired)) == tensor_bytes(header) == math.prod(shape[:-1]) * row_bytes
    arrived = empty_tensor(header)
    bytes_of(arrived)[:] = bytes_of(wired)
    assert torch.equal(from_wire(arrived, CPU), restored(wired))
    torch.testing.assert_close(restored(wired), torch.ones(shape), rtol=0.004, atol=0.0)


def test_what_is_sent_shares_no_memory_and_no_graph_with_the_stage() -> None:
    numbers = torch.ones(2, 8, requires_grad=True)
    wired = to_wire((2 * numbers).bfloat16().T, "int8")
    assert (wired.dtype, wired.requires_grad, wired.is_contiguous()) == (torch.int8, False, True)
    assert from_wire(wired, CPU).requires_grad_().is_leaf
