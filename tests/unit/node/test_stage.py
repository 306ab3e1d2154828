"""The arithmetic of one stage: what is counted and what is not, attempts, parts, and what is forgotten."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import msgspec
import pytest
import torch
from torch import Tensor

from understudy.node.compute import stage as module
from understudy.node.compute.model import build_block_stage, build_edge_stage, build_stage
from understudy.node.compute.parts import PART_NAMES
from understudy.node.compute.stage import StageHost
from understudy.node.compute.tensors import header_of, rooted, to_wire
from understudy.node.compute.weights import WeightsSnapshot, blend, snapshot
from understudy.node.data.access import TextAccess
from understudy.node.data.prefetch import ReadAhead
from understudy.node.data.training_data import TrainingData
from understudy.protocol.actions import Discard, ReleaseLease, ReleaseSnapshot
from understudy.protocol.errors import LocalProtocolError, TextError
from understudy.protocol.ids import Attempt, Microbatch
from understudy.protocol.jobs import (
    Applied,
    ApplyJob,
    BackwardJob,
    BlendJob,
    DigestJob,
    ForwardJob,
    ImageJob,
    InitialiseJob,
    Job,
    LeaseJob,
    LossJob,
    SnapshotJob,
)
from understudy.protocol.manifest import ModelSettings, RunManifest, StepSettings, WireDtype, WireSettings
from understudy.protocol.wire.fields import Part
from understudy.protocol.wire.tensors import TensorHeader

torch.set_num_threads(1)

MODEL = ModelSettings(
    hidden_size=8, intermediate_size=12, attention_heads=2, block_stages=3, layers_per_stage=2, context_length=6
)
SHAPE = (2, 6, 8)
SEED = 5
PARTS: tuple[Part, ...] = ("embedding", "head")
FIRST, SECOND = Attempt(1, 0), Attempt(1, 1)
ONE, TWO = Microbatch(1, 0), Microbatch(1, 1)


@pytest.fixture
def manifest() -> RunManifest:
    return RunManifest(
        name="stage",
        seed=SEED,
        model=MODEL,
        step=StepSettings(microbatch_size=SHAPE[0]),
        wire=WireSettings(dtype="float32"),
    )


def host_of(manifest: RunManifest, stage: int) -> StageHost:
    host = StageHost(manifest, "cpu")
    assert host.work(InitialiseJob(stage, 1)) is None
    return host


def noise(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def gradients(host: StageHost) -> dict[str, Tensor | None]:
    assert host._module is not None
    return {name: parameter.grad for name, parameter in host._module.named_parameters()}


def reference(pairs: list[tuple[Tensor, Tensor]]) -> tuple[dict[str, Tensor | None], list[Tensor]]:
    """Summed gradients of S1's weights, and the gradient of each input, by plain autograd."""
    module = build_block_stage(MODEL, 1, SEED)
    inputs = []
    for activation, gradient in pairs:
        source = activation.clone().requires_grad_()
        module(source).backward(gradient)
        assert source.grad is not None
        inputs.append(source.grad)
    return {name: parameter.grad for name, parameter in module.named_parameters()}, inputs


def assert_same(found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-9)


# --- counting ----------------------------------------------------------------------------------


def test_counted_gradients_add_up(manifest: RunManifest) -> None:
    host = host_of(manifest, 1)
    pairs = [(noise(1), noise(2)), (noise(3), noise(4))]
    passed_on = []
    for microbatch, (activation, gradient) in zip((ONE, TWO), pairs, strict=True):
        output = host.work(ForwardJob(microbatch, FIRST, activation.clone()))
        torch.testing.assert_close(output, build_block_stage(MODEL, 1, SEED)(activation).detach())
        passed_on.append(host.work(BackwardJob(microbatch, FIRST, gradient, is_counted=True)))
    sums, inputs = reference(pairs)
    assert_same(gradients(host), sums)
    for found, expected in zip(passed_on, inputs, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_gradient_that_is_not_counted_is_passed_on_and_changes_nothing(manifest: RunManifest) -> None:
    host = host_of(manifest, 1)
    once = [(noise(1), noise(2))]
    for attempt, is_counted in ((FIRST, True), (SECOND, False)):
        host.work(ForwardJob(ONE, attempt, noise(1)))
        passed_on = host.work(BackwardJob(ONE, attempt, noise(2), is_counted=is_counted))
        torch.testing.assert_close(passed_on, reference(once)[1][0])
    assert_same(gradients(host), reference(once)[0])
    fresh = host_of(manifest, 1)
    fresh.work(ForwardJob(ONE, FIRST, noise(1)))
    fresh.work(BackwardJob(ONE, FIRST, noise(2), is_counted=False))
    assert set(gradients(fresh).values()) == {None}


def test_the_edge_stage_counts_head_and_embedding_each_for_itself(manifest: RunManifest) -> None:
    head = {"model.norm.weight", "lm_head.weight"}
    for counts_head, counts_embedding in ((True, True), (True, False), (False, True), (False, False)):
        host = host_of(manifest, 0)
        embedded = host.work(ForwardJob(ONE, FIRST))
        assert embedded.shape == SHAPE
        loss, gradient = host.work(LossJob(ONE, FIRST, noise(1), is_counted=counts_head))
        assert math.isfinite(loss)
        assert gradient.shape == SHAPE
        assert host.work(BackwardJob(ONE, FIRST, noise(2), is_counted=counts_embedding)) is None
        counted = {name for name, value in gradients(host).items() if value is not None}
        expected = (head if counts_head else set()) | ({"model.embed_tokens.weight"} if counts_embedding else set())
        assert counted == expected


def test_the_loss_and_its_gradient_are_the_models(manifest: RunManifest) -> None:
    host = host_of(manifest, 0)
    host.work(ForwardJob(ONE, FIRST))
    assert host._batches is not None
    _, labels = host._batches.microbatch(1, 0)
    for is_counted in (False, True):
        loss, gradient = host.work(LossJob(ONE, FIRST, noise(1), is_counted=is_counted))
        edge, hidden = build_edge_stage(MODEL, SEED), noise(1).requires_grad_()
        expected = edge.loss(hidden, labels)
        expected.backward()
        assert loss == pytest.approx(expected.item())
        torch.testing.assert_close(gradient, hidden.grad)
    assert_same(
        {name: value for name, value in gradients(host).items() if value is not None},
        {name: parameter.grad for name, parameter in edge.named_parameters() if parameter.grad is not None},
    )


# --- attempts ----------------------------------------------------------------------------------


def test_attempts_are_kept_apart_and_a_discarded_one_is_gone(manifest: RunManifest) -> None:
    host = host_of(manifest, 1)
    host.work(ForwardJob(ONE, FIRST, noise(1)))
    host.work(ForwardJob(ONE, SECOND, noise(3)))
    host.discard(Discard(ONE, FIRST))
    host.discard(Discard(TWO, FIRST))  # never seen: nothing to free
    passed_on = host.work(BackwardJob(ONE, SECOND, noise(2), is_counted=True))
    torch.testing.assert_close(passed_on, reference([(noise(3), noise(2))])[1][0])
    with pytest.raises(LocalProtocolError, match="no saved activation"):
        host.work(BackwardJob(ONE, FIRST, noise(2), is_counted=True))


def test_a_backward_pass_frees_its_activation(manifest: RunManifest) -> None:
    host = host_of(manifest, 1)
    host.work(ForwardJob(ONE, FIRST, noise(1)))
    assert len(host._saved) == 1
    host.work(BackwardJob(ONE, FIRST, noise(2), is_counted=True))
    assert host._saved == {}
    with pytest.raises(LocalProtocolError, match="no saved activation"):
        host.work(BackwardJob(ONE, FIRST, noise(2), is_counted=True))


def tensors(host: StageHost) -> list[Tensor]:
    """The weights as they stand."""
    return [parameter.detach() for parameter in host.module.parameters()]


# --- the step ----------------------------------------------------------------------------------


def test_a_step_moves_the_weights_measures_the_mean_and_forgets_the_sum(manifest: RunManifest) -> None:
    host = host_of(manifest, 1)
    before = [tensor.clone() for tensor in tensors(host)]
    for microbatch in (ONE, TWO):
        host.work(ForwardJob(microbatch, FIRST, noise(1)))
        host.work(BackwardJob(microbatch, FIRST, noise(2), is_counted=True))
    sums = [value for value in reference([(noise(1), noise(2))] * 2)[0].values() if value is not None]
    squared = sum(float((total / 2).double().square().sum()) for total in sums)
    assert host.work(ApplyJob(1, 2)).squared_gradient_norm == pytest.approx(squared, rel=1e-6)
    assert not any(torch.equal(old, new) for old, new in zip(before, tensors(host), strict=True))
    assert set(gradients(host).values()) == {None}


def test_a_step_frees_what_it_outdates_and_nothing_else(manifest: RunManifest) -> None:
    host = host_of(manifest, 1)
    for microbatch in (Microbatch(1, 0), Microbatch(2, 0), Microbatch(3, 0)):
        host.work(ForwardJob(microbatch, FIRST, noise(1)))
    assert host.work(ApplyJob(2, 0)) == Applied()
    assert list(host._saved) == [(Microbatch(3, 0), FIRST)]


def test_a_norm_that_is_no_number_is_none_and_moves_nothing(manifest: RunManifest) -> None:
    host = host_of(manifest, 1)
    before = [tensor.clone() for tensor in tensors(host)]
    host.work(ForwardJob(ONE, FIRST, noise(1)))
    host.work(BackwardJob(ONE, FIRST, torch.full(SHAPE, math.nan), is_counted=True))
    assert host.work(ApplyJob(1, 1)) == Applied(is_skipped=True, left_out=1)
    assert all(torch.equal(old, new) for old, new in zip(before, tensors(host), strict=True))


def test_head_and_embedding_are_divided_each_by_what_it_counted(manifest: RunManifest) -> None:
    """A new S0 closes a step that its predecessor decided: two losses are in, one gradient came home."""
    moved = {}
    for times_head, times_embedding in ((1, 1), (2, 1)):
        host = host_of(manifest, 0)
        for attempt in range(2):
            host.work(ForwardJob(ONE, Attempt(1, attempt)))
            host.work(LossJob(ONE, Attempt(1, attempt), noise(1), is_counted=attempt < times_head))
            host.work(BackwardJob(ONE, Attempt(1, attempt), noise(2), is_counted=attempt < times_embedding))
        norm = host.work(ApplyJob(1, times_embedding, times_head)).squared_gradient_norm
        moved[times_head, times_embedding] = (norm, [tensor.clone() for tensor in tensors(host)])
    (one, weights), (two, others) = moved.values()
    assert two == pytest.approx(one)
    for ours, theirs in zip(weights, others, strict=True):
        torch.testing.assert_close(ours, theirs)


BAD = [math.nan, math.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("is_gradient", [True, False])
def test_what_came_in_spoilt_is_left_out_and_the_others_count(
    manifest: RunManifest, bad: float, is_gradient: bool
) -> None:
    """The update is that of the other microbatch alone. A lying neighbour may answer NaN with a good gradient."""
    host, alone = host_of(manifest, 1), host_of(manifest, 1)
    activation, gradient = noise(3), noise(4)
    (gradient if is_gradient else activation)[0, 0, 0] = bad
    for one in (host, alone):
        one.work(ForwardJob(ONE, FIRST, noise(1)))
        one.work(BackwardJob(ONE, FIRST, noise(2), is_counted=True))
    host.work(ForwardJob(TWO, FIRST, activation))
    assert host.came is not None
    assert math.isfinite(host.came) == is_gradient
    assert host.work(BackwardJob(TWO, FIRST, gradient, is_counted=True)) is not None
    expected = alone.work(ApplyJob(1, 1))
    assert host.work(ApplyJob(1, 2)) == replace(expected, left_out=1)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors(host), tensors(alone), strict=True))
    host.work(ForwardJob(Microbatch(2, 0), FIRST, noise(1)))
    host.work(BackwardJob(Microbatch(2, 0), FIRST, noise(2), is_counted=True))
    assert host.work(ApplyJob(2, 1)).left_out == 0


def test_s0_leaves_out_what_came_spoilt_to_its_loss_and_came_home_spoilt(manifest: RunManifest) -> None:
    host, alone = host_of(manifest, 0), host_of(manifest, 0)
    for one in (host, alone):
        one.work(ForwardJob(ONE, FIRST))
        one.work(LossJob(ONE, FIRST, noise(1), is_counted=True))
        one.work(BackwardJob(ONE, FIRST, noise(2), is_counted=True))
    host.work(ForwardJob(TWO, FIRST))
    assert host.came is None
    loss, _ = host.work(LossJob(TWO, FIRST, torch.full(SHAPE, math.nan), is_counted=True))
    assert not math.isfinite(loss)
    host.work(BackwardJob(TWO, FIRST, torch.full(SHAPE, math.nan), is_counted=True))
    expected = alone.work(ApplyJob(1, 1, 1))
    assert host.work(ApplyJob(1, 2, 2)) == replace(expected, left_out=1)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors(host), tensors(alone), strict=True))


def test_a_magnitude_is_the_root_mean_square(manifest: RunManifest) -> None:
    host = host_of(manifest, 1)
    host.work(ForwardJob(ONE, FIRST, noise(1)))
    assert host.came == pytest.approx(float(noise(1).square().mean().sqrt()), rel=1e-5)


def spoil(host: StageHost) -> None:
    with torch.no_grad():
        next(host.module.parameters()).fill_(math.nan)


@pytest.mark.parametrize("is_spoilt", [True, False])
def test_a_stage_knows_whether_it_spoils_the_numbers_itself(manifest: RunManifest, is_spoilt: bool) -> None:
    """From the second skipped update on: nobody looks at good numbers."""
    host = host_of(manifest, 1)
    if is_spoilt:
        spoil(host)
    gradient = noise(2) if is_spoilt else torch.full(SHAPE, math.nan)
    for step in (1, 2):
        microbatch = Microbatch(step, 0)
        host.work(ForwardJob(microbatch, FIRST, noise(1)))
        host.work(BackwardJob(microbatch, FIRST, gradient, is_counted=True))
        applied = host.work(ApplyJob(step, 1))
    assert applied == Applied(is_skipped=True, is_own=is_spoilt, left_out=0 if is_spoilt else 1)


def test_s0_knows_whether_its_head_spoils_the_loss(manifest: RunManifest) -> None:
    host = host_of(manifest, 0)
    with torch.no_grad():
        dict(host.module.named_parameters())["lm_head.weight"].fill_(math.inf)
    for step in (1, 2):
        microbatch = Microbatch(step, 0)
        host.work(ForwardJob(microbatch, FIRST))
        host.work(LossJob(microbatch, FIRST, noise(1), is_counted=True))
        host.work(BackwardJob(microbatch, FIRST, noise(2), is_counted=True))
        applied = host.work(ApplyJob(step, 1, 1))
    assert applied == Applied(is_skipped=True, is_own=True)


# --- snapshots and building --------------------------------------------------------------------


def test_what_is_held_is_copied_at_once_and_digested_bit_by_bit(manifest: RunManifest) -> None:
    """Training goes on between the copy and its last digest, and leaves the copy alone."""
    host = host_of(manifest, 1)
    expected = snapshot(build_stage(MODEL, 1, SEED))
    assert host.work(LeaseJob(0)) is None
    with torch.no_grad():
        for parameter in host.module.parameters():
            parameter.add_(1.0)
    for _ in range(len(expected.specs) - 1):
        assert host.work(DigestJob(0)) is None
        assert host.shelf.find(expected.digest) is None
    assert host.work(DigestJob(0)) == (expected.payload_bytes, expected.digest)
    assert host.work(DigestJob(0)) == (expected.payload_bytes, expected.digest)
    found = host.shelf.find(expected.digest)
    assert found is not None
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.tensors, expected.tensors, strict=True))
    assert host.shelf.find("unknown") is None
    host.release_lease(ReleaseLease(0))
    host.release_lease(ReleaseLease(0))
    assert host.shelf.find(expected.digest) is None
    assert host.work(DigestJob(0)) is None


def test_a_held_copy_and_a_donation_of_the_same_weights_are_freed_apart(manifest: RunManifest) -> None:
    host = host_of(manifest, 1)
    _, digest = host.work(SnapshotJob(0))
    host.work(LeaseJob(0))
    while (held := host.work(DigestJob(0))) is None:
        pass
    assert held[1] == digest
    host.release_snapshot(ReleaseSnapshot(digest))
    assert host.shelf.find(digest) is not None
    host.release()
    assert host.shelf.find(digest) is None


def test_a_snapshot_stays_as_it_was_until_it_is_released(manifest: RunManifest) -> None:
    host = host_of(manifest, 1)
    payload_bytes, digest = host.work(SnapshotJob(0))
    assert host.shelf.snapshots[digest].payload_bytes == payload_bytes
    host.work(ForwardJob(ONE, FIRST, noise(1)))
    host.work(BackwardJob(ONE, FIRST, noise(2), is_counted=True))
    host.work(ApplyJob(1, 1))
    assert host.shelf.snapshots[digest].digest == digest == snapshot(build_stage(MODEL, 1, SEED)).digest
    assert (
        host.shelf.snapshots[digest]
        .tensors[0]
        .equal(build_stage(MODEL, 1, SEED).state_dict()[host.shelf.snapshots[digest].specs[0].name])
    )
    _, later = host.work(SnapshotJob(1))
    host.release_snapshot(ReleaseSnapshot(digest))
    host.release_snapshot(ReleaseSnapshot("unknown"))
    assert set(host.shelf.snapshots) == {later}


def test_both_parts_are_copied_by_their_names_at_one_moment(manifest: RunManifest) -> None:
    host = host_of(manifest, 0)
    parts: tuple[Part, ...] = ("embedding", "head")
    copied = host.work(ImageJob(0, parts))
    for part, (payload_bytes, digest) in zip(parts, copied, strict=True):
        held = host.shelf.find(digest)
        assert held is not None
        assert tuple(spec.name for spec in held.specs) == PART_NAMES[part]
        assert held.payload_bytes == payload_bytes


def donors(*seeds: int) -> tuple[WeightsSnapshot, ...]:
    return tuple(snapshot(build_stage(MODEL, 1, seed)) for seed in seeds)


def poisoned(held: WeightsSnapshot) -> WeightsSnapshot:
    tensors = [tensor.clone() for tensor in held.tensors]
    tensors[-1].view(-1)[-1] = math.inf
    return WeightsSnapshot(held.specs, tuple(tensors))


def test_a_blended_stage_is_the_formula_with_a_fresh_optimizer(manifest: RunManifest) -> None:
    host = StageHost(manifest, "cpu")
    payloads = donors(1, 2)
    assert host.work(BlendJob(2, 3, payloads, (0.25, 0.75), 1.1)) is None
    expected = blend([held.tensors for held in payloads], (0.25, 0.75))
    assert all(torch.equal(found, wanted) for found, wanted in zip(tensors(host), expected, strict=True))
    assert host._optimizer is not None
    assert host._optimizer.learning_rate_scale == 1.1
    assert host._optimizer.decay_steps == 0


def test_a_stage_knows_over_how_many_updates_its_rate_decays(manifest: RunManifest) -> None:
    recovery = msgspec.structs.replace(manifest.recovery, learning_rate_decay_steps=50)
    host = StageHost(msgspec.structs.replace(manifest, recovery=recovery), "cpu")
    assert host.work(BlendJob(2, 3, donors(1, 2), (0.25, 0.75), 1.1)) is None
    assert host._optimizer is not None
    assert host._optimizer.decay_steps == 50


def test_no_weight_is_drawn_that_is_replaced_anyway(manifest: RunManifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """To draw 200 MB takes longer than to blend them, and the swarm waits."""
    monkeypatch.setattr(module, "build_stage", lambda *_: pytest.fail("weights were drawn"))
    assert StageHost(manifest, "cpu").work(BlendJob(2, 3, donors(1, 2), (0.25, 0.75), 1.1)) is None
    other = build_stage(MODEL, 0, SEED + 1)
    parts = tuple((part, snapshot(other, PART_NAMES[part])) for part in PARTS)
    host = StageHost(manifest, "cpu")
    assert host.work(InitialiseJob(0, 2, 1.0, parts)) is None
    assert all(map(torch.equal, tensors(host), other.parameters()))


def test_a_copy_that_was_loaded_does_not_follow_training(manifest: RunManifest) -> None:
    copy = snapshot(build_stage(MODEL, 0, SEED))
    host = StageHost(manifest, "cpu")
    assert host.work(InitialiseJob(0, 2, 1.0, (("initial", copy),))) is None
    assert not {found.data_ptr() for found in tensors(host)} & {held.data_ptr() for held in copy.tensors}


def test_the_edge_stage_is_rebuilt_from_the_parts_there_are(manifest: RunManifest) -> None:
    other = build_stage(MODEL, 0, SEED + 1)
    copy = snapshot(other, PART_NAMES["head"])
    host = StageHost(manifest, "cpu")
    assert host.work(InitialiseJob(0, 2, 1.0, (("head", copy),))) is None
    weights, own = dict(other.named_parameters()), dict(build_stage(MODEL, 0, SEED).named_parameters())
    for name, tensor in zip(own, tensors(host), strict=True):
        assert torch.equal(tensor, (weights if name in PART_NAMES["head"] else own)[name].detach()), name


@pytest.mark.parametrize("is_edge", [False, True])
def test_unusable_weights_are_a_reason_and_not_a_crash(manifest: RunManifest, is_edge: bool) -> None:
    """Whoever sent them, the next rung of the ladder is tried."""
    host = StageHost(manifest, "cpu")
    job: Job
    if is_edge:
        copy = poisoned(snapshot(build_stage(MODEL, 0, SEED), PART_NAMES["embedding"]))
        job = InitialiseJob(0, 2, 1.0, (("embedding", copy),))
    else:
        good, bad = donors(1, 2)
        job = BlendJob(2, 2, (good, poisoned(bad)), (0.5, 0.5), 1.1)
    reason = host.work(job)
    assert isinstance(reason, str)
    assert "NaN or Inf" in reason
    assert host._module is None


def test_a_new_stage_begins_without_the_old_ones_activations(manifest: RunManifest) -> None:
    host = host_of(manifest, 1)
    host.work(ForwardJob(ONE, FIRST, noise(1)))
    host.work(InitialiseJob(2, 1))
    assert host._saved == {}


def test_a_released_stage_is_forgotten(manifest: RunManifest) -> None:
    host = host_of(manifest, 1)
    host.work(ForwardJob(ONE, FIRST, noise(1)))
    host.work(SnapshotJob(0))
    host.release()
    assert (host._saved, host.shelf.snapshots, host._module, host._optimizer) == ({}, {}, None, None)


@pytest.mark.parametrize(
    "job",
    [
        ForwardJob(ONE, FIRST, noise(1)),
        BackwardJob(ONE, FIRST, noise(1), is_counted=True),
        LossJob(ONE, FIRST, noise(1), is_counted=True),
        ApplyJob(1, 1),
        SnapshotJob(1),
    ],
)
def test_a_job_without_a_stage_is_our_mistake(manifest: RunManifest, job: Job) -> None:
    with pytest.raises(LocalProtocolError):
        StageHost(manifest, "cpu").work(job)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_what_is_sent_is_the_runs_activation(manifest: RunManifest, dtype: WireDtype) -> None:
    narrow = RunManifest(name="x", seed=SEED, model=MODEL, step=manifest.step, wire=WireSettings(dtype=dtype))
    host = host_of(narrow, 1)
    output = host.work(ForwardJob(ONE, FIRST, to_wire(noise(1), dtype)))
    passed_on = host.work(BackwardJob(ONE, FIRST, to_wire(noise(2), dtype), is_counted=True))
    for tensor in (output, passed_on):
        assert header_of(tensor) == TensorHeader(dtype, tuple(noise(1).shape))
        assert (tensor.requires_grad, tensor.is_contiguous()) == (False, True)
    assert {value.dtype for value in gradients(host).values() if value is not None} == {torch.float32}


def test_who_waits_for_the_text_of_s0_is_not_waited_for(manifest: RunManifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that stops closes the stage while the compute thread may be waiting for a read that hangs."""
    is_over, is_reading = threading.Event(), threading.Event()

    def hang(_: RunManifest, __: TextAccess, reading: ReadAhead) -> TrainingData:
        def read() -> TrainingData:
            is_reading.set()
            is_over.wait()
            raise AssertionError

        return reading.result(reading.start(read))

    monkeypatch.setattr("understudy.node.data.data_check.open_data", hang)
    monkeypatch.setattr("understudy.node.data.prefetch.CLOSE_TIMEOUT_S", 0.0)
    host = StageHost(manifest, "cpu")
    with ThreadPoolExecutor() as compute:
        building = compute.submit(host.work, InitialiseJob(0, 1))
        assert is_reading.wait(30)
        host.close()
        with pytest.raises(TextError, match="nobody waits"):
            building.result(timeout=30)
    is_over.set()


def test_a_released_s0_lets_go_of_its_text_and_may_come_again(
    manifest: RunManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[TrainingData] = []
    monkeypatch.setattr("understudy.node.data.corpus.Batches.close", lambda batches: closed.extend([batches]))
    host = host_of(manifest, 0)
    batches = host._batches
    host.release()
    assert closed == [batches]
    host.work(InitialiseJob(0, 1))
    assert host._batches not in (None, batches)
    host.close()


BACKWARD = """
import sys
import torch
from understudy.node.compute.tensors import rooted
source = torch.ones(2, 3, requires_grad=True)
torch.autograd.backward([rooted(source * 2, torch.full((2, 3), 5.0))])
assert torch.equal(source.grad, torch.full((2, 3), 10.0))
assert "sympy" not in sys.modules
"""


def test_the_first_backward_pass_of_a_process_imports_nothing() -> None:
    """It took 0.7 s of a core, for which the swarm waited at every recovery."""
    subprocess.run([sys.executable, "-c", BACKWARD], check=True, timeout=60)


def test_a_gradient_of_another_shape_is_not_broadcast() -> None:
    with pytest.raises(LocalProtocolError, match=r"a gradient of \(3,\) for an output of \(2, 3\)"):
        rooted(torch.ones(2, 3), torch.ones(3))
