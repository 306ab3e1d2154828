"""What holders have of a stage: exact at first, followed by differences, and an optimizer that goes on."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch
from torch import Tensor

from understudy.node.compute.model import build_stage
from understudy.node.compute.parts import PART_NAMES, check_part, header_bytes_max
from understudy.node.compute.stage import StageHost
from understudy.node.compute.standby import difference, follow, followed
from understudy.node.compute.weights import WeightsSnapshot, described, snapshot
from understudy.protocol.actions import Keep, ReleaseCopy, ReleaseSnapshot
from understudy.protocol.errors import WeightsError
from understudy.protocol.ids import Attempt, Microbatch
from understudy.protocol.jobs import ApplyJob, BackwardJob, ForwardJob, ImageJob, InitialiseJob, SnapshotJob
from understudy.protocol.manifest import ModelSettings, RunManifest, StepSettings, WireSettings
from understudy.protocol.wire.fields import Part
from understudy.protocol.wire.frames import encode_frame
from understudy.protocol.wire.messages import FetchHeader
from understudy.protocol.wire.tensors import TensorSpec

torch.set_num_threads(1)

MODEL = ModelSettings(
    hidden_size=8, intermediate_size=12, attention_heads=2, block_stages=3, layers_per_stage=2, context_length=6
)
SHAPE = (2, 6, 8)
SEED = 5


@pytest.fixture
def manifest() -> RunManifest:
    step, wire = StepSettings(microbatch_size=SHAPE[0]), WireSettings(dtype="float32")
    return RunManifest(name="stage", seed=SEED, model=MODEL, step=step, wire=wire)


def host_of(manifest: RunManifest, stage: int = 1) -> StageHost:
    host = StageHost(manifest, "cpu")
    assert host.work(InitialiseJob(stage, 1)) is None
    return host


def noise(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def train(host: StageHost, *steps: int) -> None:
    """A block stage's updates."""
    for step in steps:
        host.work(ForwardJob(Microbatch(step, 0), Attempt(1, 0), noise(step)))
        host.work(BackwardJob(Microbatch(step, 0), Attempt(1, 0), noise(-step), is_counted=True))
        host.work(ApplyJob(step, 1))


def move(host: StageHost, seed: int) -> None:
    """By amounts that no bfloat16 is exactly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in host.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 300)


def weights(host: StageHost) -> list[Tensor]:
    return [parameter.detach() for parameter in host.module.parameters()]


def image_of(host: StageHost, part: Part = "stage") -> WeightsSnapshot:
    ((payload_bytes, digest),) = host.work(ImageJob(1, (part,)))
    image = host.shelf.find(digest)
    assert image is not None
    assert (image.payload_bytes, image.digest) == (payload_bytes, digest)
    return image


def way(host: StageHost, base: WeightsSnapshot, image: WeightsSnapshot) -> WeightsSnapshot:
    found = host.shelf.find_difference(base.digest, image.digest)
    assert found is not None
    return found


def assert_same(found: WeightsSnapshot, expected: WeightsSnapshot) -> None:
    assert found.specs == expected.specs
    assert all(map(torch.equal, found.tensors, expected.tensors))


# --- images ------------------------------------------------------------------------------------


def test_the_first_image_is_exact_and_does_not_follow_training(manifest: RunManifest) -> None:
    host = host_of(manifest)
    image = image_of(host)
    assert_same(image, snapshot(host.module))
    move(host, 1)
    assert_same(image, snapshot(build_stage(MODEL, 1, SEED)))


def test_the_next_image_is_what_a_holder_makes_of_the_difference(manifest: RunManifest) -> None:
    host = host_of(manifest)
    held = image_of(host)
    for seed in range(1, 5):
        move(host, seed)
        image = image_of(host)
        lacking = way(host, held, image)
        assert {spec.dtype for spec in lacking.specs} == {"bfloat16"}
        assert lacking.payload_bytes * 2 == image.payload_bytes
        held = followed(held, lacking)
        assert_same(held, image)


def test_what_one_difference_lost_is_in_the_next(manifest: RunManifest) -> None:
    """So errors do not add up: the image is as near after many differences as after one."""
    host = host_of(manifest)
    image_of(host)
    for seed in range(1, 30):
        move(host, seed)
        image = image_of(host)
    moved = 4 / 300  # by no more than four standard deviations, and an eighth bit of it is lost
    for own, seen in zip(weights(host), image.tensors, strict=True):
        assert 0 < float((own - seen).abs().max()) < moved / 256 or own.dim() == 1
    image_of(host)
    nearest = image_of(host)
    for own, seen in zip(weights(host), nearest.tensors, strict=True):
        torch.testing.assert_close(own, seen, rtol=1e-6, atol=1e-9)


def test_the_parts_of_s0_are_imaged_apart(manifest: RunManifest) -> None:
    host = host_of(manifest, 0)
    parts: tuple[Part, ...] = ("embedding", "head")
    before = host.work(ImageJob(1, parts))
    with torch.no_grad():
        dict(host.module.named_parameters())["lm_head.weight"].add_(0.5)
    after = host.work(ImageJob(2, parts))
    assert before[0] == after[0]
    assert before[1] != after[1]
    assert host.shelf.find_difference(before[0][1], after[0][1]) is None
    for part, (_, digest) in zip(parts, after, strict=True):
        image = host.shelf.find(digest)
        assert image is not None
        assert tuple(spec.name for spec in image.specs) == PART_NAMES[part]


def test_an_image_of_weights_that_did_not_move_is_the_last_one(manifest: RunManifest) -> None:
    host = host_of(manifest)
    image = image_of(host)
    assert image_of(host) is image
    host.release_snapshot(ReleaseSnapshot(image.digest))
    assert host.shelf.find(image.digest) is None
    assert image_of(host) is image
    assert host.shelf.find_difference(image.digest, image.digest) is None


def test_a_released_image_is_still_what_the_next_one_follows(manifest: RunManifest) -> None:
    host = host_of(manifest)
    first = image_of(host)
    move(host, 1)
    second = image_of(host)
    host.release_snapshot(ReleaseSnapshot(first.digest))
    assert_same(followed(first, way(host, first, second)), second)
    host.release_snapshot(ReleaseSnapshot(second.digest))
    assert host.shelf.find(second.digest) is None
    assert host.shelf.find_difference(first.digest, second.digest) is None
    move(host, 2)
    third = image_of(host)
    assert_same(followed(second, way(host, second, third)), third)


def test_a_difference_is_found_by_both_its_ends(manifest: RunManifest) -> None:
    host = host_of(manifest)
    first = image_of(host)
    move(host, 1)
    second = image_of(host)
    for base, digest in ((second, first), (first, first), (second, second)):
        assert host.shelf.find_difference(base.digest, digest.digest) is None
    assert host.shelf.find_difference("", first.digest) is None
    assert host.shelf.find_difference(first.digest, "") is None


def test_an_image_and_a_donation_of_the_same_weights_are_freed_apart(manifest: RunManifest) -> None:
    host = host_of(manifest)
    image = image_of(host)
    assert host.work(SnapshotJob(1)) == (image.payload_bytes, image.digest)
    host.release_snapshot(ReleaseSnapshot(image.digest))
    assert host.shelf.find(image.digest) is not None
    host.release_snapshot(ReleaseSnapshot(image.digest))
    assert host.shelf.find(image.digest) is None


@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
def test_nothing_follows_what_is_not_finite(manifest: RunManifest, spoilt: float) -> None:
    """It would never be finite again."""
    host = host_of(manifest)
    first = image_of(host)
    parameter = weights(host)[0]
    good = parameter.clone()
    parameter.view(-1)[0] = spoilt
    broken = image_of(host)
    assert not torch.isfinite(broken.tensors[0]).all()
    assert host.shelf.find_difference(first.digest, broken.digest) is None
    parameter.copy_(good)
    healed = image_of(host)
    assert_same(healed, snapshot(host.module))
    assert host.shelf.find_difference(broken.digest, healed.digest) is None


def test_a_difference_that_no_bfloat16_holds_is_none(manifest: RunManifest) -> None:
    host = host_of(manifest)
    weights(host)[0].view(-1)[0] = -3e38
    first = image_of(host)
    weights(host)[0].view(-1)[0] = 3e38
    second = image_of(host)
    assert_same(second, snapshot(host.module))
    assert host.shelf.find_difference(first.digest, second.digest) is None


def test_images_go_with_the_stage_and_kept_copies_stay(manifest: RunManifest) -> None:
    host = host_of(manifest)
    first = image_of(host)
    move(host, 1)
    second = image_of(host)
    kept = snapshot(build_stage(MODEL, 2, SEED))
    host.keep(Keep(kept.digest, kept))
    host.release_snapshot(ReleaseSnapshot(kept.digest))
    host.release()
    assert host.shelf.find(first.digest) is host.shelf.find(second.digest) is None
    assert host.shelf.find_difference(first.digest, second.digest) is None
    assert host.shelf.find(kept.digest) is kept
    host.work(InitialiseJob(1, 2))
    assert_same(image_of(host), snapshot(host.module))
    host.release_copy(ReleaseCopy(kept.digest))
    host.release_copy(ReleaseCopy(kept.digest))
    assert host.shelf.find(kept.digest) is None


def test_a_difference_to_other_weights_is_not_followed(manifest: RunManifest) -> None:
    base = snapshot(build_stage(MODEL, 1, SEED))
    other = snapshot(build_stage(MODEL, 0, SEED))
    narrow = described({spec.name: t.to(torch.bfloat16) for spec, t in zip(other.specs, other.tensors, strict=True)})
    with pytest.raises(WeightsError, match="to other weights"):
        followed(base, narrow)


def test_a_difference_is_rounded_once_and_added_in_float32() -> None:
    image, wanted = [torch.tensor([1.0, -2.0])], [torch.tensor([1.0 + 1 / 300, -2.0])]
    (lacking,) = difference(wanted, image)
    assert lacking.dtype == torch.bfloat16
    assert float(follow(image, [lacking])[0][0]) == pytest.approx(1 + 1 / 300, rel=2**-8 / 300)


# --- moments -----------------------------------------------------------------------------------


def moments(manifest: RunManifest, stage: int = 1) -> tuple[StageHost, WeightsSnapshot]:
    """Of a stage after three updates."""
    host = host_of(manifest, stage)
    host.optimizer.learning_rate_scale = 1.5
    if stage:
        train(host, 1, 2, 3)
    return host, image_of(host, "moments")


def test_moments_are_those_of_each_parameter_with_age_and_scale(manifest: RunManifest) -> None:
    host, image = moments(manifest)
    names = [name for name, _ in host.module.named_parameters()]
    expected = [kind + name for name in names for kind in ("mean.", "mean_square.")]
    assert [spec.name for spec in image.specs] == [*expected, "age_and_scale"]
    assert [spec.dtype for spec in image.specs] == ["bfloat16"] * len(expected) + ["float32"]
    for at, (mean, square) in enumerate(zip(host.optimizer.means, host.optimizer.mean_squares, strict=True)):
        assert torch.equal(image.tensors[2 * at], mean.to(torch.bfloat16))
        assert torch.equal(image.tensors[2 * at + 1], square.to(torch.bfloat16))
    assert image.tensors[-1].tolist() == [3.0, 1.5]
    assert image_of(host, "moments").digest == image.digest
    host.release_snapshot(ReleaseSnapshot(image.digest))
    assert host.shelf.find(image.digest) is None


def test_a_stage_goes_on_from_its_weights_and_moments(manifest: RunManifest) -> None:
    """The next update is the one that the lost owner would have made, up to the rounding of the moments."""
    lost, image = moments(manifest)
    copy = snapshot(lost.module)
    host = StageHost(manifest, "cpu")
    assert host.work(InitialiseJob(1, 2, 1.0, (("stage", copy), ("moments", image)))) is None
    assert host.optimizer.learning_rate(4) == pytest.approx(lost.optimizer.learning_rate(4))
    assert [float(count) for count in host.optimizer.counts] == [3.0] * len(host.optimizer.counts)
    assert all(mean.dtype == torch.float32 for mean in host.optimizer.means)
    kept = [tensor.clone() for tensor in image.tensors]
    for either in (lost, host):
        train(either, 4)
    assert host.optimizer.age == 4
    assert all(map(torch.equal, image.tensors, kept)), "the copy may be served to others still"
    rate = lost.optimizer.learning_rate(4)
    for own, theirs in zip(weights(host), weights(lost), strict=True):
        assert float((own - theirs).abs().max()) < rate * 0.02


def test_a_decaying_scale_goes_on_where_it_was(manifest: RunManifest) -> None:
    recovery = msgspec.structs.replace(manifest.recovery, learning_rate_decay_steps=10)
    lost, image = moments(msgspec.structs.replace(manifest, recovery=recovery))
    host = StageHost(msgspec.structs.replace(manifest, recovery=recovery), "cpu")
    copy = snapshot(lost.module)
    assert host.work(InitialiseJob(1, 2, 1.0, (("stage", copy), ("moments", image)))) is None
    assert host.optimizer.learning_rate(500) == pytest.approx(lost.optimizer.learning_rate(500))


def test_moments_are_no_weights(manifest: RunManifest) -> None:
    """What there is no copy of is drawn from the seed, though there are moments of it."""
    _, image = moments(manifest)
    host = StageHost(manifest, "cpu")
    assert host.work(InitialiseJob(1, 2, 1.0, (("moments", image),))) is None
    assert all(map(torch.equal, weights(host), build_stage(MODEL, 1, SEED).parameters()))


def test_s0_has_moments_too(manifest: RunManifest) -> None:
    host, image = moments(manifest, 0)
    check_part(image.specs, "moments", MODEL, 0)
    parts: tuple[Part, ...] = ("embedding", "head")
    copies = tuple((part, snapshot(host.module, PART_NAMES[part])) for part in parts)
    assert StageHost(manifest, "cpu").work(InitialiseJob(0, 2, 1.0, (*copies, ("moments", image)))) is None


def changed(image: WeightsSnapshot, at: int, value: float, element: int = 0) -> WeightsSnapshot:
    tensors = [tensor.clone() for tensor in image.tensors]
    tensors[at].view(-1)[element] = value
    return WeightsSnapshot(image.specs, tuple(tensors))


@pytest.mark.parametrize(
    ("at", "value", "element", "reason"),
    [
        (0, math.nan, 0, "NaN or Inf"),
        (1, math.inf, 0, "NaN or Inf"),
        (1, -1e-3, 0, "negative"),
        (-1, math.nan, 0, "NaN or Inf"),
        (-1, 1.5, 0, "1.5 updates"),
        (-1, -1.0, 0, "-1 updates"),
        (-1, 2.0**54, 0, "updates"),
        (-1, 0.0, 1, "scaled by 0"),
        (-1, -1.0, 1, "scaled by -1"),
        (-1, 101.0, 1, "scaled by 101"),
    ],
)
def test_unusable_moments_are_a_reason_and_nothing_is_installed(
    manifest: RunManifest, at: int, value: float, element: int, reason: str
) -> None:
    lost, image = moments(manifest)
    spoilt = changed(image, at, value, element)
    host = StageHost(manifest, "cpu")
    said = host.work(InitialiseJob(1, 2, 1.0, (("stage", snapshot(lost.module)), ("moments", spoilt))))
    assert isinstance(said, str)
    assert reason in said
    assert (host._module, host._optimizer) == (None, None)


def test_moments_of_another_stage_are_refused(manifest: RunManifest) -> None:
    _, image = moments(manifest, 0)
    host = StageHost(manifest, "cpu")
    assert isinstance(host.work(InitialiseJob(1, 2, 1.0, (("moments", image),))), str)
    assert host._module is None


# --- specs -------------------------------------------------------------------------------------


def narrow(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(msgspec.structs.replace(spec, dtype="bfloat16") for spec in specs)


@pytest.mark.parametrize("stage", [0, 1])
def test_specs_of_moments_and_of_differences_are_checked(manifest: RunManifest, stage: int) -> None:
    host, image = moments(manifest, stage)
    whole = snapshot(host.module).specs
    check_part(image.specs, "moments", MODEL, stage)
    check_part(whole, "stage", MODEL, stage)
    check_part(narrow(whole), "stage", MODEL, stage, is_difference=True)
    refused: tuple[tuple[tuple[TensorSpec, ...], Part, int, bool], ...] = (
        (image.specs, "moments", 1 - stage, False),
        (image.specs[:-1], "moments", stage, False),
        (narrow(image.specs), "moments", stage, False),
        (image.specs[::-1], "moments", stage, False),
        (whole, "stage", stage, True),
        (narrow(whole), "stage", stage, False),
        ((whole[0], *narrow(whole[1:])), "stage", stage, True),
        (narrow(whole[:-1]), "stage", stage, True),
    )
    for specs, part, of, is_difference in refused:
        with pytest.raises(WeightsError):
            check_part(specs, part, MODEL, of, is_difference=is_difference)


@pytest.mark.parametrize(
    ("part", "stage"), [("embedding", 0), ("head", 0), ("stage", 1), ("moments", 0), ("moments", 3)]
)
def test_a_header_with_a_base_may_be_so_long(manifest: RunManifest, part: Part, stage: int) -> None:
    host, image = moments(manifest, stage)
    held = image if part == "moments" else snapshot(host.module, PART_NAMES[part])
    assert len(encode_frame(FetchHeader(held.specs, 2**50, "d" * 128))) <= header_bytes_max(part, MODEL, stage)
