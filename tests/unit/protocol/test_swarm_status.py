"""What the records of a run say about the swarm."""

from __future__ import annotations

import msgspec
import pytest

from understudy.protocol.manifest import ModelSettings, RunManifest, StepSettings
from understudy.protocol.observe.swarm_status import Posted, SwarmView, keys_of_view, overview
from understudy.protocol.recovery.quorum import too_few
from understudy.protocol.wire.records import AnyRecord, OfferRecord, ProgressRecord, SpareRecord, StageRecord

DIGEST = "0" * 64
RUN = RunManifest(name="seen", model=ModelSettings(block_stages=2), step=StepSettings(total_steps=10))
FRESH_S, OLD_S = 14.0, 4.0


def fresh(record: AnyRecord) -> Posted:
    return Posted(record, FRESH_S)


def old(record: AnyRecord) -> Posted:
    return Posted(record, OLD_S)


VOTES = [(voter, stage, 1, b"key", b"signature") for stage, voter in ((0, "P0"), (3, "P3"))]
"""Of a tenure after the first. Whoever read the record checked them."""


def owner(stage: int, peer: str = "", incarnation: int = 1, state: str = "serving", step: int = 4) -> StageRecord:
    return msgspec.convert(
        {"type": "stage", "peer": peer or f"P{stage}", "stage": stage, "incarnation": incarnation}
        | {"state": state, "step": step, "proof": VOTES if incarnation > 1 else ()},
        StageRecord,
    )


def offer(stage: int, lost_incarnation: int = 1) -> OfferRecord:
    return OfferRecord("P0", stage, lost_incarnation, 0, 4, 1.0, 100, DIGEST)


def progress(step: int, loss: float | None = 2.5, peer: str = "P0") -> ProgressRecord:
    return ProgressRecord(peer, 1, step, loss, step * 100, 50.0)


SERVED = [fresh(owner(0)), fresh(owner(1)), fresh(owner(2))]
FIVE = RunManifest(name="seen", model=ModelSettings(block_stages=4), step=StepSettings(total_steps=10))
"""Two stages may be missing, and a majority is left."""


def states(view: SwarmView) -> list[str]:
    return [stage.state for stage in view.stages]


def test_a_swarm_that_trains_waits_for_nothing() -> None:
    view = overview(RUN, [*SERVED, fresh(progress(5)), fresh(SpareRecord("S", 1.5)), fresh(SpareRecord("T", 2.5))])
    assert (view.state, view.waits_for, view.holes) == ("training", None, ())
    assert (view.step, view.total_steps, view.loss, view.tokens, view.tokens_per_second) == (5, 10, 2.5, 500, 50.0)
    assert [(stage.stage, stage.peer, stage.incarnation, stage.step) for stage in view.stages] == [
        (0, "P0", 1, 4),
        (1, "P1", 1, 4),
        (2, "P2", 1, 4),
    ]
    assert [spare.peer for spare in view.spares] == ["T", "S"]
    assert view.stages[0].record_age_s == RUN.timing.record_lifetime_s - FRESH_S


@pytest.mark.parametrize(
    ("second_stage", "state", "peer"),
    [
        ([owner(1), owner(1, "Q", 2)], "serving", "Q"),
        ([owner(1, "Q", 2), owner(1)], "serving", "Q"),
        ([owner(1), owner(1, "Q", state="recovering")], "serving", "P1"),
        ([owner(1), owner(1, "O")], "serving", "O"),
        ([owner(1), owner(1, "Q", 2, "recovering")], "recovering", "Q"),
        ([owner(1, state="left")], "left", "P1"),
        ([owner(1), owner(1, "Q", state="left")], "serving", "P1"),
        ([], "unowned", None),
    ],
)
def test_of_several_tenures_the_one_that_peers_believe_is_shown(
    second_stage: list[AnyRecord], state: str, peer: str | None
) -> None:
    view = overview(RUN, [SERVED[0], *map(fresh, second_stage), SERVED[2]])
    assert (view.stages[1].state, view.stages[1].peer) == (state, peer)
    assert view.holes == (() if state in ("serving", "recovering") else (1,))


@pytest.mark.parametrize(
    ("posted", "state"),
    [
        ([old(owner(1)), fresh(offer(1))], "lost"),
        ([fresh(owner(1)), old(offer(1))], "serving"),  # it has spoken since
        ([old(owner(1, incarnation=2)), fresh(offer(1))], "serving"),  # the offer was for its predecessor
        ([old(owner(1)), fresh(offer(2))], "serving"),
        ([old(owner(1, state="left")), fresh(offer(1))], "left"),
        ([old(owner(1, state="recovering")), fresh(offer(1))], "lost"),
        ([fresh(offer(1, lost_incarnation=3))], "lost"),
    ],
)
def test_an_owner_whose_neighbours_mourn_it_is_lost_until_it_speaks_again(posted: list[Posted], state: str) -> None:
    assert states(overview(RUN, [SERVED[0], *posted, SERVED[2]])) == ["serving", state, "serving"]


def test_a_stage_without_a_record_keeps_the_incarnation_of_its_offers() -> None:
    view = overview(RUN, [fresh(offer(1, 3)), fresh(offer(1, 2))])
    assert (view.stages[1].incarnation, view.stages[1].peer) == (3, None)


@pytest.mark.parametrize(
    ("missing", "spares", "waits_for"),
    [
        ([1], 0, "an owner of S1 (start 1 more node)"),
        ([1], 1, "an owner of S1 (a spare takes it)"),
        ([0], 1, "an owner of S0 (a spare that has the run's text takes it)"),
        ([1, 2], 0, "owners of S1, S2 (start 2 more nodes)"),
        ([1, 2], 1, "owners of S1, S2 (start 1 more node)"),
        ([0, 1], 2, "owners of S0, S1 (spares take them)"),
    ],
)
def test_what_it_waits_for_is_said_with_what_to_do(missing: list[int], spares: int, waits_for: str) -> None:
    present = [fresh(owner(stage)) for stage in range(5) if stage not in missing]
    view = overview(FIVE, [*present, *(fresh(SpareRecord(f"S{number}", 1.0)) for number in range(spares))])
    assert (view.state, view.waits_for, view.holes) == ("waiting", waits_for, tuple(missing))


def test_a_recovery_under_way_is_waited_for() -> None:
    recovering = fresh(owner(1, "Q", 2, "recovering"))
    assert overview(RUN, [SERVED[0], recovering, SERVED[2]]).waits_for == "S1 to be recovered"
    waits_for = overview(FIVE, [SERVED[0], recovering, fresh(owner(3)), fresh(owner(4))]).waits_for
    assert waits_for == "S1 to be recovered and an owner of S2 (start 1 more node)"


def test_a_majority_that_is_missing_is_said_with_what_would_help() -> None:
    waits_for = overview(RUN, [SERVED[0], fresh(SpareRecord("S", 1.0))]).waits_for
    assert waits_for == too_few(1, 3, RUN.recovery.without_majority_after_s)


def test_a_peer_that_took_a_stage_or_left_is_no_spare() -> None:
    spares = [SpareRecord("P1", 9.0), SpareRecord("S", 1.0), SpareRecord("T", 2.0, "left")]
    assert [spare.peer for spare in overview(RUN, [*SERVED, *map(fresh, spares)]).spares] == ["S"]
    left = fresh(owner(1, state="left"))
    assert [spare.peer for spare in overview(RUN, [left, *map(fresh, spares)]).spares] == ["P1", "S"]


def test_the_furthest_word_on_the_progress_counts() -> None:
    view = overview(RUN, [*SERVED, fresh(progress(7, None, "P1")), fresh(progress(7)), fresh(progress(6, 9.0))])
    assert (view.step, view.loss) == (7, 2.5)
    view = overview(RUN, SERVED)
    assert (view.step, view.loss, view.tokens, view.tokens_per_second) == (4, None, None, None)


def test_a_run_whose_last_step_is_committed_is_done() -> None:
    view = overview(RUN, [fresh(progress(10))])
    assert (view.state, view.waits_for) == ("done", None)
    endless = msgspec.structs.replace(RUN, step=StepSettings())
    assert overview(endless, [*SERVED, fresh(progress(10))]).state == "training"


def test_without_any_record_it_is_silent() -> None:
    view = overview(RUN, [])
    assert (view.state, view.holes) == ("silent", (0, 1, 2))
    assert view.waits_for is not None
    assert "no peer of the run publishes anything" in view.waits_for


def test_every_key_that_a_picture_needs_is_read_once() -> None:
    keys = keys_of_view(RUN)
    assert sorted(keys) == sorted(
        [*(f"stage/{s}" for s in range(3)), *(f"weights/{s}" for s in range(3)), "spares", "progress"]
    )
