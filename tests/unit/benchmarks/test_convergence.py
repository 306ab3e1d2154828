"""The study's trainer computes what the swarm computes, and rebuilds what it loses as the strategy says."""

from __future__ import annotations

import copy
from pathlib import Path

import msgspec
import pytest
import torch

from benchmarks.convergence.failures import RATES, lost_stages
from benchmarks.convergence.improvements import probe
from benchmarks.convergence.results import read_all
from benchmarks.convergence.strategies import STRATEGIES, lost_with
from benchmarks.convergence.study import check_same_study, full_scale, quick_scale
from benchmarks.convergence.trainer import Trainer
from benchmarks.origin import Origin
from understudy.node.compute.model import UnsplitModel
from understudy.node.compute.optimizer import StageOptimizer
from understudy.node.data.corpus import Batches, open_corpus
from understudy.protocol.manifest import RunManifest, WireSettings

torch.set_num_threads(1)

ORIGIN = Origin("abc", {}, "a machine")
MIDDLE = (2, 3, 4, 5)


def manifest() -> RunManifest:
    return quick_scale().manifest


def weights(trainer: Trainer, stage: int) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.hosts[stage].module.parameters()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


# --- failures ---


def test_a_stage_lost_at_one_rate_is_lost_at_every_higher_one() -> None:
    low, high = ({(i, s) for i in range(1, 2000) for s in lost_stages(p, 7, i, MIDDLE, 1.0)} for p in (5, 16))
    assert low
    assert low < high


def test_failures_do_not_depend_on_which_stages_are_asked_about() -> None:
    for iteration in range(1, 500):
        every = lost_stages(16, 3, iteration, (1, 2, 3, 4, 5, 6), 1.0)
        assert lost_stages(16, 3, iteration, MIDDLE, 1.0) == tuple(stage for stage in every if stage in MIDDLE)


@pytest.mark.parametrize("percent", [5, 10, 16])
def test_failures_come_as_often_as_the_rate_says(percent: int) -> None:
    iterations = 20_000
    lost = sum(len(lost_stages(percent, 1, iteration, MIDDLE, 1.0)) for iteration in range(1, iterations))
    expected = RATES[percent] * len(MIDDLE) * iterations
    assert abs(lost - expected) < 4 * expected**0.5


def test_nothing_is_lost_before_there_is_anything_to_lose() -> None:
    assert lost_stages(16, 0, 1, MIDDLE, 1000.0) == ()
    assert lost_stages(16, 0, 2, MIDDLE, 1000.0) == MIDDLE


# --- the trainer ---


def test_without_failures_it_trains_the_unsplit_model() -> None:
    trainer = Trainer(manifest(), STRATEGIES["none"], 0)
    unsplit, batches = UnsplitModel(manifest().model, 0), Batches(open_corpus(manifest().data), trainer.manifest)
    optimizers = [StageOptimizer(list(stage.parameters()), manifest().optimizer) for stage in unsplit.stages]
    for step in range(1, 4):
        losses = [unsplit(*batches.microbatch(step, index)) for index in range(2)]
        torch.stack(losses).sum().backward()
        for optimizer in optimizers:
            optimizer.apply(step, 2)
        assert trainer.train_step(step) == sum(loss.item() for loss in losses) / 2
    for stage, module in enumerate(unsplit.stages):
        assert same(weights(trainer, stage), [parameter.detach() for parameter in module.parameters()])


def test_swapped_routes_train_another_model() -> None:
    swapped, plain = (Trainer(manifest(), STRATEGIES[name], 0) for name in ("checkfree+", "none"))
    for trainer in (swapped, plain):
        trainer.train_step(1)
    assert not same(weights(swapped, 1), weights(plain, 1))


def test_steps_that_are_computed_again_give_the_same_weights_to_the_bit() -> None:
    """What lets the losses of checkpointing be read off a run without failures."""
    trainer = Trainer(manifest(), STRATEGIES["none"], 0)
    for step in (1, 2, 3):
        trainer.train_step(step)
    optimizers = [host.optimizer for host in trainer.hosts]
    modules = [host.module for host in trainer.hosts]
    checkpoint = copy.deepcopy(
        [(module.state_dict(), vars(own)) for module, own in zip(modules, optimizers, strict=True)]
    )
    straight = [trainer.train_step(step) for step in (4, 5, 6)]
    final = [weights(trainer, stage) for stage in range(7)]
    for module, own, (state, fields) in zip(modules, optimizers, checkpoint, strict=True):
        module.load_state_dict(state)
        for name in ("age", "means", "mean_squares", "counts"):
            setattr(own, name, fields[name])
    assert [trainer.train_step(step) for step in (4, 5, 6)] == straight
    assert all(same(weights(trainer, stage), final[stage]) for stage in range(7))


@pytest.mark.parametrize(
    ("strategy", "stage", "shares"),
    [
        ("uniform", 3, {2: 0.5, 4: 0.5}),
        ("copy", 3, {2: 1.0}),
        ("checkfree+mirror", 1, {2: 1.0}),
        ("checkfree+mirror", 6, {5: 1.0}),
        ("checkfree+mirror", 2, {1: 1.0}),
        ("checkfree-all", 6, {5: 1.0}),
    ],
)
def test_a_lost_stage_comes_back_as_the_strategy_says(strategy: str, stage: int, shares: dict[int, float]) -> None:
    trainer = Trainer(manifest(), STRATEGIES[strategy], 0)
    trainer.train_step(1)
    donors = {donor: weights(trainer, donor) for donor in shares}
    trainer.lose((stage,), 1)
    for position, tensor in enumerate(weights(trainer, stage)):
        expected = torch.stack([share * donors[donor][position] for donor, share in shares.items()]).sum(0)
        torch.testing.assert_close(tensor, expected)
    (recovery,) = trainer.recoveries
    assert dict(zip(recovery.donors, recovery.coefficients, strict=True)) == pytest.approx(shares)


@pytest.mark.parametrize(("strategy", "power"), [("checkfree", 1.0), ("checkfree-1", 0.5)])
def test_checkfree_weighs_by_the_norms_of_the_neighbours(strategy: str, power: float) -> None:
    trainer = Trainer(manifest(), STRATEGIES[strategy], 0)
    trainer.train_step(1)
    trainer.lose((4,), 1)
    (recovery,) = trainer.recoveries
    low, high = (norm**power for norm in recovery.squared_norms if norm is not None)
    assert recovery.donors == (3, 5)
    assert recovery.coefficients == pytest.approx((low / (low + high), high / (low + high)))


def test_norms_after_clipping_weigh_the_same_when_all_are_clipped() -> None:
    tight = msgspec.structs.replace(manifest(), optimizer=msgspec.structs.replace(manifest().optimizer, clip_norm=1e-6))
    trainer = Trainer(tight, STRATEGIES["checkfree-clipped"], 0)
    trainer.train_step(1)
    trainer.lose((4,), 1)
    assert trainer.recoveries[0].coefficients == (0.5, 0.5)


def test_a_random_stage_has_weights_that_nobody_had() -> None:
    trainer = Trainer(manifest(), STRATEGIES["random"], 0)
    first = weights(trainer, 3)
    trainer.train_step(1)
    trainer.lose((3,), 1)
    assert not same(weights(trainer, 3), first)
    assert weights(trainer, 3)[0].std() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("strategy", ["checkfree", "checkfree-probe", "checkfree-regression", "checkfree-moments"])
def test_two_adjacent_losses_take_the_nearest_survivors(strategy: str) -> None:
    trainer = Trainer(manifest(), STRATEGIES[strategy], 0)
    trainer.train_step(1)
    trainer.lose((3, 4), 1)
    assert [recovery.donors for recovery in trainer.recoveries] == [(2, 5), (2, 5)]


# --- improvements ---


def test_blended_moments_are_the_neighbours_and_as_old_as_the_younger() -> None:
    trainer = Trainer(manifest(), STRATEGIES["checkfree-moments"], 0)
    for step in (1, 2, 3):
        trainer.train_step(step)
    low, high = (trainer.hosts[stage].optimizer.mean_squares[0].clone() for stage in (2, 4))
    trainer.lose((3,), 3)
    share, rest = trainer.recoveries[0].coefficients
    optimizer = trainer.hosts[3].optimizer
    torch.testing.assert_close(optimizer.mean_squares[0], share * low + rest * high)
    assert optimizer.age == 3
    assert optimizer.counts[0] == 3
    assert optimizer.learning_rate(4) == pytest.approx(1.1 * trainer.hosts[2].optimizer.learning_rate(4))


def test_regression_brings_a_stage_closer_to_what_it_did() -> None:
    """Measured on text that it has not seen, at full rate from the first step on: a young stage does little."""
    at_once = msgspec.structs.replace(manifest().optimizer, warmup_steps=0)
    lively = msgspec.structs.replace(manifest(), optimizer=at_once)
    tokens, _ = Batches(open_corpus(lively.data), lively).validation(0)
    distances = {}
    for name in ("checkfree", "checkfree-regression"):
        trainer = Trainer(lively, STRATEGIES[name], 0)
        for step in range(1, 7):
            trainer.train_step(step)
        with torch.no_grad():
            source = trainer.hosts[2].module(trainer.hosts[1].module(trainer.hosts[0].module.embed(tokens)))
            expected = trainer.hosts[3].module(source)
        trainer.lose((3,), 6)
        distances[name] = (trainer.hosts[3].module(source) - expected).square().mean().item()
    assert distances["checkfree-regression"] < 0.6 * distances["checkfree"]


def test_nothing_is_regressed_on_what_vanished_with_a_neighbour() -> None:
    rebuilt = {}
    for name in ("checkfree", "checkfree-regression"):
        trainer = Trainer(manifest(), STRATEGIES[name], 0)
        trainer.train_step(1)
        trainer.lose((3, 4), 1)
        rebuilt[name] = weights(trainer, 3)
    assert same(rebuilt["checkfree"], rebuilt["checkfree-regression"])


def test_regression_works_on_a_bfloat16_wire() -> None:
    narrow = msgspec.structs.replace(manifest(), wire=WireSettings(dtype="bfloat16"))
    trainer = Trainer(narrow, STRATEGIES["checkfree-regression"], 0)
    trainer.train_step(1)
    trainer.lose((3,), 1)
    assert trainer.train_step(2) > 0


def test_a_cold_optimizer_goes_on_at_the_full_rate() -> None:
    rates = {}
    for name in ("checkfree", "checkfree-cold"):
        trainer = Trainer(manifest(), STRATEGIES[name], 0)
        for step in range(1, 8):
            trainer.train_step(step)
        trainer.lose((3,), 7)
        rates[name] = trainer.hosts[3].optimizer.learning_rate(8)
        assert trainer.hosts[3].optimizer.counts[0] == 0
    assert rates["checkfree-cold"] == pytest.approx(1.1 * 3e-3)
    assert rates["checkfree"] == pytest.approx(rates["checkfree-cold"] / 5)


def test_a_probe_takes_the_coefficients_with_the_least_loss() -> None:
    assert probe((0.9, 0.1), lambda coefficients: abs(coefficients[0] - 0.3)) == (0.25, 0.75)
    assert probe((0.3, 0.7), lambda coefficients: abs(coefficients[0] - 0.3)) == (0.3, 0.7)


# --- standby copies ---


def test_a_stage_comes_back_as_it_was_when_it_was_last_copied() -> None:
    trainer = Trainer(manifest(), STRATEGIES["standby-5"], 0)
    then: list[torch.Tensor] = []
    for step in range(1, 13):
        trainer.train_step(step)
        then = weights(trainer, 3) if step == 10 else then
    trainer.lose((3, 4), 12)
    for back, copied in zip(weights(trainer, 3), then, strict=True):
        torch.testing.assert_close(back, copied, rtol=0, atol=1e-4)
    assert [recovery.method for recovery in trainer.recoveries] == ["standby", "standby"]
    optimizer = trainer.hosts[3].optimizer
    assert (optimizer.age, optimizer.learning_rate_scale) == (0, 1.0)


def test_what_is_lost_before_its_first_copy_is_rebuilt_from_its_neighbours() -> None:
    trainer = Trainer(manifest(), STRATEGIES["standby-5"], 0)
    trainer.train_step(1)
    trainer.lose((3,), 1)
    assert trainer.recoveries[0].donors == (2, 4)


@pytest.mark.parametrize(
    ("strategy", "age", "has_means"),
    [("standby-20-moments", 40, True), ("standby-20-second", None, False), ("standby-20", None, False)],
)
def test_the_optimizer_goes_on_from_what_was_copied_of_it(strategy: str, age: int | None, has_means: bool) -> None:
    trainer = Trainer(manifest(), STRATEGIES[strategy], 0)
    for step in range(1, 42):
        trainer.train_step(step)
    before = trainer.hosts[2].optimizer.mean_squares[0].clone()
    trainer.lose((2,), 41)
    optimizer = trainer.hosts[2].optimizer
    assert optimizer.age == (age or 0)
    assert bool(optimizer.means[0].any()) == has_means
    assert bool(optimizer.mean_squares[0].any()) == (age is not None)
    if age is not None:
        torch.testing.assert_close(optimizer.mean_squares[0].sqrt(), before.sqrt(), rtol=0.2, atol=1e-3)


def test_adjacent_stages_are_lost_in_pairs() -> None:
    assert lost_with("pairs", 6, (2,)) == (2, 3)
    assert lost_with("pairs", 6, (6,)) == (5, 6)
    assert lost_with("pairs", 6, (1, 2)) == (1, 2, 3)
    assert lost_with("all", 6, (2,)) == (2,)


def test_results_of_old_can_be_read_and_are_of_todays_study() -> None:
    """Settings come and go; what was trained is what it was."""
    kept = read_all(Path("docs/results"))
    assert len(kept) >= 59
    for result in kept.values():
        check_same_study(result, full_scale())
