"""CheckFree's formula and the ladder of sources."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import InitialSettings, RecoverySettings
from understudy.protocol.presets import preset
from understudy.protocol.recovery.case import NO_STAGE, GrantedDonations, Plan, RecoveryCase, Source, initial_source
from understudy.protocol.recovery.ladder import LADDER, plan_recovery, weigh
from understudy.protocol.wire.fields import Part
from understudy.protocol.wire.messages import Donation

NORMS = st.floats(min_value=1e-3, max_value=9e2)  # within `NORMS_APART_MAX` of each other


BLOCK_STAGES = 6


def witness(stage: int, step: int = 5, norm: float | None = 1.0) -> GrantedDonations:
    """A block stage with weights, or S0, which has none to give."""
    donation = Donation("stage", stage, step, norm, 8, f"weights of S{stage}")
    return GrantedDonations(stage, PeerId(f"peer-{stage}"), step, (donation,) if stage else ())


def keeper(stage: int, part: Part, *steps: int) -> GrantedDonations:
    """A neighbour of S0 with copies of a part as of these steps."""
    copies = tuple(Donation(part, stage, step, None, 8, f"{part} as of {step}", is_copy=True) for step in steps)
    return GrantedDonations(stage, PeerId(f"peer-{stage}"), max(steps, default=5), copies)


def best(stage: int, *witnesses: GrantedDonations, method: str = "checkfree", **settings: Any) -> Plan:
    case = RecoveryCase(stage, BLOCK_STAGES, witnesses, RecoverySettings(method=method, **settings))  # type: ignore[arg-type]
    return plan_recovery(case)[0]


def donors_of(plan: Plan) -> list[int]:
    return [source.stage for source in plan.sources]


# --- the formula ---


@pytest.mark.parametrize(
    ("squared_norms", "exponent", "coefficients"),
    [
        ([1.0, 3.0], 2, (0.25, 0.75)),
        ([3.0, 1.0], 2, (0.75, 0.25)),
        ([1.0, 9.0], 1, (0.25, 0.75)),
        ([1.0, 9.0], 0, (0.5, 0.5)),
        ([1.0, 999_999.0], 2, (1e-6, 0.999999)),
        ([0.0, 2.0], 0, (0.5, 0.5)),
        ([5.0], 2, (1.0,)),
        ([1.0, 1.0, 2.0], 2, (0.25, 0.25, 0.5)),
    ],
)
def test_coefficients(squared_norms: list[float], exponent: int, coefficients: tuple[float, ...]) -> None:
    weighting = weigh(squared_norms, exponent)
    assert weighting.coefficients == coefficients
    assert weighting.fallback is None


@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize(
    ("squared_norms", "why"),
    [
        ([0.0, 0.0], "zero"),
        ([math.nan, 1.0], "not finite"),
        ([1.0, math.inf], "not finite"),
        ([1.0, -math.inf], "not finite"),
        ([None, 1.0], "missing"),
        ([None, None], "missing"),
        ([-1.0, 2.0], "missing or not finite"),
        ([1.0, 1e300], "1000 times"),
        ([1e6, 1.0], "1000 times"),
        ([0.0, 2.0], "1000 times"),
        ([5e-324, 1.0], "1000 times"),
    ],
)
def test_unusable_norms_fall_back_to_uniform(squared_norms: list[float | None], why: str, exponent: int) -> None:
    weighting = weigh(squared_norms, exponent)
    assert weighting.coefficients == (0.5, 0.5)
    assert weighting.fallback is not None
    assert why in weighting.fallback


def test_norms_too_large_to_add_fall_back_to_uniform() -> None:
    weighting = weigh([1.7e308, 1.7e308], 2)
    assert weighting.coefficients == (0.5, 0.5)
    assert weighting.fallback == "the gradient norms are too large to add"


@pytest.mark.parametrize("norm", [math.nan, math.inf, -1.0, None, 0.0])
def test_uniform_by_choice_needs_no_norms_and_no_excuse(norm: float | None) -> None:
    assert weigh([norm, 1.0], 0).coefficients == (0.5, 0.5)
    assert weigh([norm, 1.0], 0).fallback is None


@given(st.lists(NORMS, min_size=1, max_size=4), st.sampled_from([0, 1, 2]))
def test_coefficients_are_the_formula_and_sum_to_one(squared_norms: list[float], exponent: int) -> None:
    coefficients = weigh(squared_norms, exponent).coefficients
    powers = [math.sqrt(norm) ** exponent for norm in squared_norms]
    assert math.isclose(math.fsum(coefficients), 1.0, rel_tol=1e-12)
    for coefficient, power in zip(coefficients, powers, strict=True):
        assert math.isclose(coefficient, power / math.fsum(powers), rel_tol=1e-9)


@given(st.lists(st.none() | st.floats(), min_size=1, max_size=4), st.sampled_from([0, 1, 2]))
def test_coefficients_are_always_a_mean(squared_norms: list[float | None], exponent: int) -> None:
    coefficients = weigh(squared_norms, exponent).coefficients
    assert len(coefficients) == len(squared_norms)
    assert all(0.0 <= coefficient <= 1.0 for coefficient in coefficients)
    assert math.isclose(math.fsum(coefficients), 1.0, rel_tol=1e-9)


# --- the ladder ---


def test_both_sides_are_blended_with_more_weight_to_the_larger_norm() -> None:
    plan = best(3, witness(2, norm=1.0), witness(4, norm=3.0))
    assert (plan.method, donors_of(plan), plan.coefficients) == ("checkfree", [2, 4], (0.25, 0.75))
    assert plan.learning_rate_scale == 1.1


@pytest.mark.parametrize("exponent", [0, 1, 2])
def test_the_exponent_is_a_setting_of_the_run(exponent: int) -> None:
    plan = best(3, witness(2, norm=1.0), witness(4, norm=16.0), norm_exponent=exponent)
    assert plan.coefficients == weigh([1.0, 16.0], exponent).coefficients
    assert f"to the power {exponent}" in plan.reason


def test_a_uniform_fallback_says_why() -> None:
    plan = best(3, witness(2, norm=None), witness(4, norm=3.0))
    assert plan.coefficients == (0.5, 0.5)
    assert plan.reason == "uniform average of S2 and S4: a donor's gradient norm is missing or not finite"


@pytest.mark.parametrize(
    ("lost", "survivors", "donors"),
    [
        (1, [0, 2], [2]),
        (6, [0, 5], [5]),
        (2, [1, 4], [1, 4]),
        (2, [0, 4], [4]),
        (3, [1, 5], [1, 5]),
    ],
)
def test_the_nearest_survivors_with_weights_are_the_donors(lost: int, survivors: list[int], donors: list[int]) -> None:
    assert donors_of(best(lost, *map(witness, survivors))) == donors


def test_the_nearest_of_several_on_a_side_is_asked() -> None:
    assert donors_of(best(4, witness(1), witness(3), witness(5), witness(6))) == [3, 5]


def test_one_side_is_copied() -> None:
    plan = best(1, witness(0), witness(2))
    assert (plan.method, plan.coefficients, plan.learning_rate_scale) == ("copy", (1.0,), 1.1)
    assert plan.reason == "S2 is the only neighbour with weights"


def test_a_survivor_without_weights_is_no_donor() -> None:
    silent = GrantedDonations(2, PeerId("peer-2"), 5)
    assert donors_of(best(3, silent, witness(4))) == [4]


def test_before_the_first_commit_the_seed_is_exact() -> None:
    plan = best(3, witness(2, step=0), witness(4, step=0))
    assert (plan.method, plan.step, plan.sources, plan.learning_rate_scale) == ("seed", 0, (), 1.0)
    assert "exact" in plan.reason


def test_block_weights_do_not_fit_s0() -> None:
    plan = best(0, witness(1), witness(4))
    assert (plan.method, plan.sources) == ("seed", ())


def test_with_nothing_left_the_stage_begins_anew_at_the_swarms_step() -> None:
    plan = best(1, witness(0, step=7))
    assert (plan.method, plan.step, plan.sources) == ("seed", 7, ())


def test_the_stage_stands_at_the_newest_step_of_its_witnesses() -> None:
    assert best(3, witness(2, step=4), witness(4, step=5)).step == 5


def methods_of(case: RecoveryCase) -> list[str]:
    """Every plan in turn, when each fails in turn."""
    methods, rung = [], 0
    while rung < len(LADDER):
        plan, rung = plan_recovery(case, rung)
        methods.append(plan.method)
        rung += 1
    return methods


def test_a_failed_attempt_goes_on_below_its_rung() -> None:
    witnesses = (witness(1), witness(3))
    assert methods_of(RecoveryCase(2, 6, witnesses, RecoverySettings(method="checkfree"))) == [
        "checkfree",
        "copy",
        "seed",
    ]
    mirrored = RecoverySettings(method="checkfree+", swapped_pairs="mirror")
    assert methods_of(RecoveryCase(2, 6, witnesses, mirrored)) == ["mirror", "checkfree", "copy", "seed"]
    assert methods_of(RecoveryCase(0, 6, (keeper(1, "head", 4),), mirrored)) == ["standby", "seed"]


def test_below_the_last_rung_is_the_seed() -> None:
    plan, rung = plan_recovery(RecoveryCase(3, 6, (witness(2), witness(4)), RecoverySettings()), len(LADDER))
    assert (plan.method, rung) == ("seed", len(LADDER))


# --- weights that the run began with ---

INITIAL = Source(NO_STAGE, PeerId("founder"), Donation("initial", 2, 0, None, 8, "initial weights of S2"))


def begun(*witnesses: GrantedDonations, stage: int = 2, **known: Any) -> Plan:
    """A run that began with weights of its own."""
    return plan_recovery(RecoveryCase(stage, 6, witnesses, RecoverySettings(method="checkfree"), **known))[0]


def test_before_training_the_initial_weights_are_exact() -> None:
    plan = begun(witness(1, step=0), initial=INITIAL)
    assert (plan.method, plan.sources, plan.donors, plan.learning_rate_scale) == ("initial", (INITIAL,), [], 1.0)
    assert "initial weights are exact" in plan.reason


def test_without_survivors_a_stage_begins_anew_with_the_initial_weights() -> None:
    witnesses = (GrantedDonations(0, PeerId("peer-0"), 5),)
    assert begun(*witnesses, initial=INITIAL).method == "initial"
    assert begun(*witnesses, initial=INITIAL).step == 5
    assert begun(witness(1), witness(3), initial=INITIAL).method == "checkfree"


def test_initial_weights_that_cannot_be_had_are_told_about() -> None:
    for witnesses in ((witness(1, step=0),), (GrantedDonations(0, PeerId("peer-0"), 5),)):
        plan = begun(*witnesses, is_initial_lost=True)
        assert (plan.method, plan.sources) == ("seed", ())
        assert "the founder does not deliver the initial weights" in plan.reason
        assert "founder" not in begun(*witnesses).reason


def test_a_lost_part_of_s0_comes_from_the_initial_weights_and_its_copy_wins() -> None:
    """What is loaded later overwrites what was loaded before."""
    plan = begun(keeper(1, "embedding", 4), stage=0, initial=INITIAL)
    assert plan.method == "standby"
    assert [source.donation.part for source in plan.sources] == ["initial", "embedding"]
    assert plan.donors == [1]
    assert "the rest from the run's initial weights" in plan.reason
    assert "the rest from the seed" in begun(keeper(1, "embedding", 4), stage=0).reason
    whole = begun(keeper(1, "embedding", 4), keeper(6, "head", 4), stage=0, initial=INITIAL)
    assert [source.donation.part for source in whole.sources] == ["embedding", "head"]


def test_the_manifest_says_what_the_run_began_with() -> None:
    manifest = preset("tiny")
    assert initial_source(manifest, 2) is None
    digests = tuple(f"{stage:064x}" for stage in range(5))
    manifest = msgspec.structs.replace(manifest, initial=InitialSettings(digests=digests, peer="founder"))
    source = initial_source(manifest, 2)
    assert source is not None
    assert (source.peer, source.donation.digest) == ("founder", digests[2])
    assert source.donation.payload_bytes == manifest.model.stage_bytes(2)


# --- CheckFree+: swapped partners ---


@pytest.mark.parametrize(
    ("lost", "swapped_pairs", "method", "donors"),
    [
        (1, "average", "mirror", [2]),
        (1, "mirror", "mirror", [2]),
        (6, "average", "mirror", [5]),
        (2, "average", "checkfree", [1, 3]),
        (2, "mirror", "mirror", [1]),
        (5, "average", "checkfree", [4, 6]),
        (5, "mirror", "mirror", [6]),
        (3, "mirror", "checkfree", [2, 4]),
    ],
)
def test_a_swapped_partner_stands_in(lost: int, swapped_pairs: str, method: str, donors: list[int]) -> None:
    plan = best(lost, witness(lost - 1), witness((lost + 1) % 7), method="checkfree+", swapped_pairs=swapped_pairs)
    assert (plan.method, donors_of(plan)) == (method, donors)
    assert plan.learning_rate_scale == 1.1


def test_without_the_partner_the_nearest_survivor_is_copied() -> None:
    plan = best(1, witness(0), witness(3), method="checkfree+")
    assert (plan.method, donors_of(plan)) == ("copy", [3])


@pytest.mark.parametrize("swapped_pairs", ["mirror", "average"])
def test_the_middle_of_three_has_two_partners_and_is_averaged(swapped_pairs: str) -> None:
    settings = RecoverySettings(method="checkfree+", swapped_pairs=swapped_pairs)  # type: ignore[arg-type]
    plan, _ = plan_recovery(RecoveryCase(2, 3, (witness(1), witness(3)), settings))
    assert (plan.method, donors_of(plan)) == ("checkfree", [1, 3])


# --- CheckFree+: copies of S0 ---


def parts_of(plan: Plan) -> list[tuple[str, int]]:
    return [(source.donation.part, source.donation.step) for source in plan.sources]


def test_s0_comes_back_exactly_from_both_copies() -> None:
    plan = best(0, keeper(1, "embedding", 4, 5), keeper(6, "head", 4, 5))
    assert (plan.method, parts_of(plan)) == ("standby", [("embedding", 5), ("head", 5)])
    assert (plan.coefficients, plan.learning_rate_scale) == ((), 1.0)
    assert plan.reason == "embedding and head as of step 5"


def test_both_parts_of_s0_are_of_one_commit_if_there_is_one() -> None:
    assert parts_of(best(0, keeper(1, "embedding", 4, 5), keeper(6, "head", 3, 4))) == [("embedding", 4), ("head", 4)]


def test_parts_of_different_commits_are_better_than_none_and_say_so() -> None:
    plan = best(0, keeper(1, "embedding", 5), keeper(6, "head", 3))
    assert parts_of(plan) == [("embedding", 5), ("head", 3)]
    assert plan.reason == "the embedding as of step 5 and the head as of step 3"


def test_copies_of_two_drivers_are_not_of_one_commit() -> None:
    """A rebuilt S0 stands at the step of the stages, with weights of a commit before."""
    old = Donation("embedding", 1, 5, None, 8, "of S0/1", 1, is_copy=True)
    new = Donation("head", 6, 5, None, 8, "of S0/2", 2, is_copy=True)
    plan = best(0, GrantedDonations(1, PeerId("peer-1"), 5, (old,)), GrantedDonations(6, PeerId("peer-6"), 5, (new,)))
    assert plan.reason == "the embedding as of step 5 and the head as of step 5"


def test_one_part_is_better_than_none_and_says_so() -> None:
    plan = best(0, keeper(1, "embedding", 4, 5), witness(6))
    assert parts_of(plan) == [("embedding", 5)]
    assert plan.reason.endswith("the rest from the seed because its copy was lost too")


def test_a_rebuilt_s0_stands_at_the_step_of_the_stages() -> None:
    assert best(0, keeper(1, "embedding", 4), GrantedDonations(6, PeerId("peer-6"), 7, ())).step == 7


def test_copies_of_s0_are_for_s0_alone() -> None:
    assert donors_of(best(2, keeper(1, "embedding", 5), witness(3))) == [3]


def test_the_bytes_of_a_plan_are_those_of_all_its_sources() -> None:
    assert best(3, witness(2), witness(4)).payload_bytes == 16


# --- standby copies ---


def copy(step: int, part: Part = "stage", incarnation: int = 1, stage: int = 4, digest: str = "its own") -> Donation:
    return Donation(part, stage, step, None, 8, f"{digest} {part} {step}", incarnation, is_copy=True)


def holder(stage: int, *copies: Donation, step: int = 30) -> GrantedDonations:
    """A stage that is no neighbour of S2, or one whose own weights are not ready, and holds these."""
    return GrantedDonations(stage, PeerId(f"peer-{stage}"), step, copies)


def own(*copies: Donation) -> dict[str, Any]:
    return {"own": tuple(Source(NO_STAGE, PeerId("me"), each) for each in copies)}


def back(*witnesses: GrantedDonations, age_max: int = 20, **known: Any) -> Plan:
    """What S2 comes back from."""
    settings = RecoverySettings(method="checkfree", standby_age_max=age_max)
    return plan_recovery(RecoveryCase(2, BLOCK_STAGES, witnesses, settings, **known))[0]


DONORS = (witness(1, step=30), witness(3, step=30))


def test_a_stage_comes_back_as_it_was_rather_than_as_its_neighbours_are() -> None:
    plan = back(*DONORS, holder(4, copy(17)))
    assert (plan.method, plan.step, plan.learning_rate_scale) == ("standby", 30, 1.0)
    assert (donors_of(plan), plan.coefficients) == ([4], ())
    assert plan.reason == "its own copy as of step 17, 13 steps old"


@pytest.mark.parametrize(
    ("step", "age_max", "method"),
    [
        (10, 20, "standby"),
        (9, 20, "checkfree"),
        (30, 0, "standby"),
        (29, 0, "checkfree"),
        (31, 20, "checkfree"),
    ],
)
def test_a_copy_is_used_within_its_age(step: int, age_max: int, method: str) -> None:
    assert back(*DONORS, holder(4, copy(step)), age_max=age_max).method == method


def test_whoever_has_a_later_copy_stands_later() -> None:
    """It died right after an update that the others are about to do."""
    assert back(*DONORS, **own(copy(31))).step == 31
    assert back(*DONORS, **own(copy(32))).method == "checkfree", "of a history that did not come to be"
    assert back(*DONORS, holder(4, copy(31))).method == "checkfree", "that is only its holder's word"


def test_the_newest_copy_wins_and_then_the_latest_tenure_and_then_ones_own() -> None:
    assert back(holder(4, copy(17)), holder(5, copy(18))).sources[0].peer == "peer-5"
    assert back(holder(4, copy(17)), holder(5, copy(17, incarnation=2))).sources[0].peer == "peer-5"
    plan = back(holder(4, copy(17)), **own(copy(17)))
    assert (plan.sources[0].peer, plan.donors) == ("me", [])
    assert back(holder(4, copy(30)), **own(copy(10))).sources[0].peer == "me"
    assert back(holder(4, copy(30)), age_max=40, **own(copy(9))).sources[0].peer == "peer-4"


@pytest.mark.parametrize(
    ("moments", "taken"),
    [
        (copy(17, "moments"), True),
        (copy(9, "moments"), True),
        (copy(18, "moments"), False),
        (copy(17, "moments", incarnation=2), False),
    ],
)
def test_the_optimizers_state_is_of_the_same_tenure_and_not_newer_than_the_weights(
    moments: Donation, taken: bool
) -> None:
    plan = back(holder(4, copy(17)), holder(5, moments))
    assert [source.donation.part for source in plan.sources] == ["stage", "moments"][: 1 + taken]


def test_weights_of_a_neighbour_are_no_copy_and_a_copy_is_no_neighbours() -> None:
    plan = back(*DONORS, holder(4, copy(5)), age_max=3)
    assert (plan.method, donors_of(plan)) == ("checkfree", [1, 3])
    assert back(holder(4, copy(30)), age_max=20).step == 30


def test_s0_comes_from_ones_own_copies_at_best_and_its_optimizer_too() -> None:
    mine = own(copy(5, "embedding"), copy(5, "head"), copy(3, "moments"))
    case = RecoveryCase(0, 6, (keeper(1, "embedding", 5), keeper(6, "head", 5)), RecoverySettings(), **mine)
    plan = plan_recovery(case)[0]
    assert [(source.peer, source.donation.part) for source in plan.sources][2:] == [("me", "moments")]
    case = replace(case, witnesses=(holder(1, copy(5, "embedding", 1)), holder(6, copy(5, "head", 1))))
    assert {source.peer for source in plan_recovery(case)[0].sources} == {"me"}
