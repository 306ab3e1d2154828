"""Blending to the bit, and weights that survive the journey or are refused."""

from __future__ import annotations

import hashlib
import math
from dataclasses import FrozenInstanceError

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from understudy.node.compute import weights
from understudy.node.compute.model import EMBEDDING_NAMES, HEAD_NAMES, blank_stage, build_stage
from understudy.node.compute.weights import TensorSpec, WeightsSnapshot, adopt, blend, check_specs, snapshot
from understudy.node.compute.weights_buffer import WeightsBuffer
from understudy.protocol.errors import LocalProtocolError, WeightsError
from understudy.protocol.manifest import ModelSettings

torch.set_num_threads(1)

SETTINGS = ModelSettings(hidden_size=8, intermediate_size=12, attention_heads=2, block_stages=3, layers_per_stage=2)


def donors_of(count: int, seed: int = 0) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator) for shape in ((3, 5), (67,))] for _ in range(count)]


def fill(buffer: WeightsBuffer, content: memoryview) -> None:
    while content:
        count = min(len(content), len(buffer.writable()))
        buffer.writable()[:count] = content[:count]
        buffer.advance(count)
        content = content[count:]


def receive(source: WeightsSnapshot) -> WeightsBuffer:
    buffer = WeightsBuffer(source.specs)
    for chunk in source.chunks(0, 777):
        fill(buffer, chunk)
    return buffer


# Blending


def test_blend_is_the_weighted_mean() -> None:
    donors, coefficients = donors_of(3), [0.2, 0.5, 0.3]
    for position, blended in enumerate(blend(donors, coefficients)):
        sources = [donor[position].double().numpy() for donor in donors]
        expected = sum(c * source for c, source in zip(coefficients, sources, strict=True))
        np.testing.assert_allclose(blended.numpy(), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    shares=st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=4).filter(lambda s: sum(s) > 1e-3),
    seed=st.integers(0, 2**32 - 1),
    exponents=st.lists(st.integers(-40, 30), min_size=4, max_size=4),
    size=st.integers(1, 70),
)
def test_blend_is_the_documented_operations_to_the_bit(
    shares: list[float], seed: int, exponents: list[int], size: int
) -> None:
    coefficients = [share / math.fsum(shares) for share in shares]
    random = np.random.default_rng(seed)
    scales = [10.0**exponent for exponent in exponents[: len(coefficients)]]
    sources = [(random.standard_normal(size) * scale).astype(np.float32) for scale in scales]
    expected = np.float32(coefficients[0]) * sources[0]
    for coefficient, source in zip(coefficients[1:], sources[1:], strict=True):
        expected = expected + np.float32(coefficient) * source
    (blended,) = blend([[torch.from_numpy(source)] for source in sources], coefficients)
    assert blended.numpy().tobytes() == expected.tobytes()


def test_a_single_donor_is_copied() -> None:
    (donor,) = donors_of(1)
    blended = blend([donor], [1.0])
    assert all(torch.equal(copy, source) for copy, source in zip(blended, donor, strict=True))
    blended[0].zero_()
    assert donor[0].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 33, 66])
@pytest.mark.parametrize("coefficients", [(0.5, 0.5), (1.0, 0.0)])
def test_a_donor_that_is_not_finite_is_refused(bad: float, at: int, coefficients: tuple[float, ...]) -> None:
    donors = donors_of(2)
    donors[1][1][at] = bad
    with pytest.raises(WeightsError, match="tensor 1 of donor 1 holds NaN or Inf"):
        blend(donors, coefficients)


@pytest.mark.parametrize("block", [1, 16, 67])
def test_the_size_of_the_blocks_changes_no_bit(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    donors = donors_of(3)
    expected = blend(donors, [0.2, 0.3, 0.5])
    monkeypatch.setattr(weights, "BLEND_BLOCK", block)
    assert all(map(torch.equal, blend(donors, [0.2, 0.3, 0.5]), expected))


def test_a_blend_that_overflows_is_refused() -> None:
    largest = torch.tensor([torch.finfo(torch.float32).max])
    with pytest.raises(WeightsError, match="the blend of tensor 0 holds NaN or Inf"):
        blend([[largest], [largest]], [0.5 + 4e-7, 0.5 + 4e-7])


def test_coefficients_that_are_no_mean_are_refused() -> None:
    for refused, message in (
        ([(0.5, 0.4), (0.5, 0.50001)], "must sum to 1"),
        ([(1.5, -0.5), (math.nan, 1.0), (math.inf, 0.0)], "finite and not negative"),
        ([(1.0,), (0.5, 0.25, 0.25)], "2 donors cannot be blended with . coefficients"),
    ):
        for coefficients in refused:
            with pytest.raises(WeightsError, match=message):
                blend(donors_of(2), coefficients)


def test_donors_that_do_not_match_are_refused() -> None:
    two = torch.ones(2)
    for donors, message in (
        ([[two], [two, two]], r"different numbers of tensors: \[1, 2\]"),
        ([[two], [torch.ones(1)]], r"tensor 0 of donor 1 is float32 \(1,\)"),
        ([[two], [two.double()]], r"tensor 0 of donor 1 is float64 \(2,\)"),
    ):
        with pytest.raises(WeightsError, match=message):
            blend(donors, [0.5, 0.5])
    with pytest.raises(WeightsError, match="0 donors"):
        blend([], [])


# Sending and receiving


def test_a_snapshot_does_not_follow_training() -> None:
    stage = build_stage(SETTINGS, 1, 0)
    taken = snapshot(stage)
    before, digest = b"".join(taken.chunks(0, 1000)), taken.digest
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.add_(1)
    assert b"".join(taken.chunks(0, 1000)) == before
    assert taken.digest == digest != snapshot(stage).digest
    assert not any(tensor.requires_grad for tensor in taken.tensors)
    with pytest.raises(FrozenInstanceError):
        taken.specs = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        next(taken.chunks(0, 10))[0] = 1


def test_the_payload_is_all_parameters_in_order() -> None:
    taken = snapshot(stage := build_stage(SETTINGS, 2, 0))
    expected = b"".join(parameter.detach().numpy().astype("<f4").tobytes() for parameter in stage.parameters())
    assert taken.payload_bytes == len(expected)
    assert [spec.name for spec in taken.specs] == [name for name, _ in stage.named_parameters()]
    for offset in (0, 1, 255, 256, 257, len(expected) - 1, len(expected)):
        chunks = list(taken.chunks(offset, 100))
        assert b"".join(chunks) == expected[offset:]
        assert all(0 < len(chunk) <= 100 for chunk in chunks)
    for offset, chunk_bytes in ((-1, 1), (len(expected) + 1, 1), (0, 0)):
        with pytest.raises(LocalProtocolError, match="no chunks"):
            taken.chunks(offset, chunk_bytes)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), chunk_bytes=st.integers(1, 700))
def test_resuming_anywhere_gives_the_same_weights(data: st.DataObject, chunk_bytes: int) -> None:
    source = snapshot(build_stage(SETTINGS, 1, 0))
    buffer = WeightsBuffer(source.specs)
    broken_at = data.draw(st.integers(0, source.payload_bytes))
    for chunk in source.chunks(0, chunk_bytes):
        fill(buffer, chunk[: max(0, broken_at - buffer.received)])
    assert buffer.received == broken_at
    assert buffer.is_complete == (broken_at == source.payload_bytes)
    for chunk in source.chunks(buffer.received, 997):
        fill(buffer, chunk)
    buffer.verify()
    assert buffer.received == source.payload_bytes
    assert len(buffer.writable()) == 0
    assert all(torch.equal(got, sent) for got, sent in zip(buffer.tensors, source.tensors, strict=True))


def test_bfloat16_travels_too() -> None:
    module = nn.Linear(3, 5).to(torch.bfloat16)
    assert torch.equal(receive(snapshot(module)).freeze().tensors[0], module.weight)


@pytest.mark.parametrize("is_digested_along", [False, True])
def test_a_corrupt_byte_is_found_and_its_tensor_named(is_digested_along: bool) -> None:
    source = snapshot(build_stage(SETTINGS, 1, 0))
    ends = [sum(spec.payload_bytes for spec in source.specs[: k + 1]) for k in range(len(source.specs))]
    for spec, end in zip(source.specs, ends, strict=True):
        payload = bytearray(b"".join(source.chunks(0, 1000)))
        payload[end - 1] ^= 1
        buffer = WeightsBuffer(source.specs)
        for start in range(0, len(payload), 100):
            fill(buffer, memoryview(payload)[start : start + 100])
            if is_digested_along:
                buffer.digest()
        with pytest.raises(WeightsError, match=f"bytes of {spec.name} do not match"):
            buffer.verify()


def test_digests_are_computed_once_and_while_bytes_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a fetch takes the time of the digests on top, when the last byte is there."""
    digested: list[int] = []

    class Digest:
        def __init__(self) -> None:
            self._digest = hashlib.new("sha256")

        def update(self, content: memoryview) -> None:
            digested.append(len(content))
            self._digest.update(content)

        def hexdigest(self) -> str:
            return self._digest.hexdigest()

    source = snapshot(build_stage(SETTINGS, 1, 0))
    payload = memoryview(b"".join(source.chunks(0, 1000)))
    monkeypatch.setattr(hashlib, "sha256", Digest)
    buffer = WeightsBuffer(source.specs)
    while not buffer.is_complete:
        fill(buffer, payload[buffer.received : buffer.received + 77])
        buffer.digest()
        assert sum(digested) == buffer.received
    buffer.verify()
    assert sum(digested) == len(payload)


def test_advancing_beyond_the_room_is_our_bug() -> None:
    buffer = WeightsBuffer(snapshot(build_stage(SETTINGS, 1, 0)).specs)
    for count in (len(buffer.writable()) + 1, -1):
        with pytest.raises(LocalProtocolError, match="cannot have been written"):
            buffer.advance(count)
    complete = receive(snapshot(nn.Linear(2, 2)))
    complete.advance(0)
    with pytest.raises(LocalProtocolError, match="where 0 were missing"):
        complete.advance(1)


def test_received_weights_can_be_served_in_turn() -> None:
    source = snapshot(build_stage(SETTINGS, 0, 0), HEAD_NAMES)
    buffer = receive(source)
    assert buffer.freeze().digest == source.digest
    assert b"".join(buffer.freeze().chunks(0, 99)) == b"".join(source.chunks(0, 99))
    with pytest.raises(WeightsError, match="incomplete: 0 bytes came"):
        WeightsBuffer(source.specs).freeze()


def test_parts_of_a_stage_travel_by_name() -> None:
    old, new = build_stage(SETTINGS, 0, 0), build_stage(SETTINGS, 0, 1)
    for names in (EMBEDDING_NAMES, HEAD_NAMES):
        part = snapshot(old, names)
        assert tuple(spec.name for spec in part.specs) == names
        check_specs(part.specs, new, names)
        adopt(new, part.tensors, names)
    assert snapshot(new).digest == snapshot(old).digest


# Specs


def test_specs_of_another_stage_fit_by_position() -> None:
    own = build_stage(SETTINGS, 1, 0)
    for stage in (1, 2, 3):
        check_specs(snapshot(build_stage(SETTINGS, stage, 0)).specs, own)


def changed(position: int, **changes: object) -> list[TensorSpec]:
    specs = list(snapshot(build_stage(SETTINGS, 2, 0)).specs)
    specs[position] = msgspec.structs.replace(specs[position], **changes)
    return specs


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (changed(0, shape=(8, 9)), r"q_proj.weight is offered as float32 \(8, 9\), the stage needs float32 \(8, 8\)"),
        (changed(0, dtype="bfloat16"), r"offered as bfloat16 \(8, 8\), the stage needs float32"),
        (changed(0, name="model.layers.2.self_attn.k_proj.weight"), r"in the place of \S+layers.0.self_attn.q_proj"),
        (changed(0, name="model.layers.3.self_attn.q_proj.weight"), r"layers.2.\S+ is offered in the place of"),
        (changed(9, name="model.layers.2.self_attn.q_proj.weight"), r"in the place of \S+layers.1.self_attn.q_proj"),
        (changed(0)[:-1], "17 tensors are offered where the stage has 18"),
        ([], "0 tensors are offered where the stage has 18"),
    ],
)
def test_specs_that_do_not_fit_are_refused(specs: list[TensorSpec], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        check_specs(specs, build_stage(SETTINGS, 1, 0))


def test_specs_beyond_all_bounds_are_refused_before_memory_is_taken() -> None:
    huge = TensorSpec("weight", "float32", (weights.PAYLOAD_BYTES_MAX // 4, 2), "0" * 64)
    many = [TensorSpec("weight", "float32", (1,), "0" * 64)] * (weights.SPECS_MAX + 1)
    for specs, message in (([huge], "bytes of weights are offered"), (many, "tensors are offered; at most")):
        with pytest.raises(WeightsError, match=message):
            WeightsBuffer(specs)
        with pytest.raises(WeightsError, match=message):
            check_specs(specs, nn.Linear(1, 1))


def test_a_spec_from_the_network_is_validated() -> None:
    good: dict[str, object] = {"name": "weight", "dtype": "float32", "shape": [2, 3], "digest": "0" * 64}
    assert msgspec.convert(list(good.values()), TensorSpec).payload_bytes == 24
    shapes = ({"shape": shape} for shape in ([0], [-1, -4], [1] * 5, [1.5]))
    names = ({"name": name} for name in ("", "n" * 257))
    digests = ({"digest": digest} for digest in ("z" * 64, "0" * 63))
    for bad in (*shapes, *names, *digests, {"dtype": "float64"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(list((good | bad).values()), TensorSpec)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(list(good.values())[:-1], TensorSpec)


# Loading


def test_adopted_tensors_are_the_weights() -> None:
    """A stage without memory gets the very tensors: no weight is drawn or copied first."""
    source, target = build_stage(SETTINGS, 1, 0), blank_stage(SETTINGS, 2)
    tensors = [parameter.detach().clone() for parameter in source.parameters()]
    adopt(target, tensors)
    for parameter, tensor in zip(target.parameters(), tensors, strict=True):
        assert parameter.data_ptr() == tensor.data_ptr()
        assert parameter.requires_grad
        assert parameter.is_leaf


def test_loading_what_does_not_fit_changes_nothing() -> None:
    module = nn.Linear(3, 5)
    before = snapshot(module).digest
    for bias, message in (
        ([torch.full((5,), math.nan)], "bias holds NaN or Inf"),
        ([torch.zeros(1)], r"bias is float32 \(5,\), not float32 \(1,\)"),
        ([torch.zeros(5).double()], r"bias is float32 \(5,\), not float64 \(5,\)"),
        ([], "1 tensors cannot be loaded where the stage has 2"),
    ):
        with pytest.raises(WeightsError, match=message):
            adopt(module, [torch.zeros(5, 3), *bias])
        assert snapshot(module).digest == before
