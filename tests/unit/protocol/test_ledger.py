"""The accounts of a step: each gradient counted at most once, nothing old changes anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.ids import Attempt
from understudy.protocol.pipeline.ledger import EdgeLedger, EdgePhase, StageLedger, StepLedger

FIRST, SECOND = Attempt(1, 0), Attempt(1, 1)
NEXT_DRIVER = Attempt(2, 0)

ATTEMPTS = st.builds(Attempt, st.integers(1, 3), st.integers(0, 3))
INDEXES = st.integers(0, 3)


def forwarded(ledger: StageLedger, index: int, attempt: Attempt) -> None:
    assert ledger.accept_forward(index, attempt)
    assert ledger.finish_forward(index, attempt)


def test_attempts_are_ordered_by_driver_first() -> None:
    assert FIRST < SECOND < Attempt(1, 99) < NEXT_DRIVER


# --- a block stage ---


def test_a_microbatch_goes_through_its_phases_once() -> None:
    ledger = StageLedger(1, 2)
    steps = (ledger.accept_forward, ledger.finish_forward, ledger.accept_backward, ledger.finish_backward)
    assert [step(0, FIRST) for step in steps] == [True] * 4
    assert [step(0, FIRST) for step in steps] == [False] * 4


def test_no_phase_is_skipped() -> None:
    ledger = StageLedger(1, 2)
    ledger.accept_forward(0, FIRST)
    assert not ledger.accept_backward(0, FIRST)
    assert not ledger.finish_backward(0, FIRST)


def test_a_newer_attempt_ends_the_older() -> None:
    ledger = StageLedger(1, 2)
    forwarded(ledger, 0, FIRST)
    assert ledger.accept_forward(0, SECOND)
    assert not ledger.accept_backward(0, FIRST)
    assert not ledger.is_current(0, FIRST)
    assert ledger.is_current(0, SECOND)


def test_an_older_attempt_changes_nothing() -> None:
    ledger = StageLedger(1, 2)
    assert ledger.accept_forward(0, SECOND)
    assert not ledger.finish_forward(0, FIRST)
    assert ledger.finish_forward(0, SECOND)
    assert not ledger.accept_forward(0, FIRST)
    assert not ledger.accept_backward(0, FIRST)
    assert ledger.accept_backward(0, SECOND)
    assert not ledger.finish_backward(0, FIRST)
    assert ledger.finish_backward(0, SECOND)


def test_a_new_driver_outdates_every_attempt_of_the_one_before() -> None:
    ledger = StageLedger(1, 3)
    forwarded(ledger, 0, SECOND)
    forwarded(ledger, 1, FIRST)
    assert ledger.outdated_by(2, NEXT_DRIVER) == [(0, SECOND), (1, FIRST)]
    assert ledger.accept_forward(2, NEXT_DRIVER)
    assert not ledger.accept_backward(0, SECOND)
    assert not ledger.accept_forward(0, Attempt(1, 99))


def test_one_attempt_outdates_only_its_own_microbatch() -> None:
    ledger = StageLedger(1, 3)
    forwarded(ledger, 0, FIRST)
    forwarded(ledger, 1, FIRST)
    assert ledger.outdated_by(0, SECOND) == [(0, FIRST)]


def test_a_gradient_is_counted_once_whatever_the_attempt() -> None:
    ledger = StageLedger(1, 2)
    assert ledger.count(0)
    assert not ledger.count(0)
    assert not ledger.is_full
    assert ledger.count(1)
    assert ledger.is_full


def test_the_next_step_begins_empty() -> None:
    ledger = StageLedger(1, 2)
    forwarded(ledger, 0, FIRST)
    ledger.count(0)
    assert ledger.advance() == 1
    assert ledger.step == 2
    assert ledger.attempt_of(0) is None
    assert ledger.count(0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["forward", "forwarded", "backward", "done", "advance"]), INDEXES, ATTEMPTS),
        max_size=60,
    )
)
def test_no_interleaving_counts_twice(calls: list[tuple[str, int, Attempt]]) -> None:
    ledger = StageLedger(1, 4)
    counts: dict[int, int] = {}
    newest: dict[int, Attempt] = {}
    for name, index, attempt in calls:
        if name == "forward" and ledger.accept_forward(index, attempt):
            assert attempt > newest.get(index, Attempt(0, 0)), "an accepted attempt is newer than all before"
            newest[index] = attempt
        elif name == "forwarded":
            ledger.finish_forward(index, attempt)
        elif name == "backward" and ledger.accept_backward(index, attempt):
            assert attempt == newest[index]
            counts[index] = counts.get(index, 0) + ledger.count(index)
        elif name == "done":
            ledger.finish_backward(index, attempt)
        elif name == "advance":
            assert ledger.advance() == sum(counts.values()), "what is divided by is what was summed"
            counts, newest = {}, {}
        assert all(times == 1 for times in counts.values())


# --- the driver ---

PHASES = [phase for phase in EdgePhase if phase is not EdgePhase.DONE]


def bring_home(ledger: EdgeLedger, index: int) -> None:
    for phase in PHASES:
        assert ledger.move(index, ledger.attempt_of(index), phase)


def issue(ledger: EdgeLedger, index: int, now: float = 0.0) -> Attempt:
    return ledger.issue(index, now, timeout_s=10.0)


def test_the_first_attempt_is_of_this_drivers_incarnation() -> None:
    ledger = EdgeLedger(1, incarnation=3)
    assert [issue(ledger, 0), issue(ledger, 1)] == [Attempt(3, 0), Attempt(3, 0)]
    assert not ledger.has_reissued
    assert issue(ledger, 0) == Attempt(3, 1)
    assert ledger.has_reissued


def test_a_reissued_microbatch_is_a_newer_attempt() -> None:
    ledger = EdgeLedger(1, incarnation=1)
    first, second = issue(ledger, 0), issue(ledger, 0)
    assert first < second
    assert not ledger.move(0, first, EdgePhase.EMBED_DUE)
    assert ledger.move(0, second, EdgePhase.EMBED_DUE)


def test_what_is_done_is_not_issued_again() -> None:
    ledger = EdgeLedger(1, incarnation=1)
    issue(ledger, 0)
    bring_home(ledger, 0)
    with pytest.raises(LocalProtocolError, match="nothing to re-issue"):
        issue(ledger, 0)


@pytest.mark.parametrize("skipped", PHASES[1:])
def test_the_driver_skips_no_phase(skipped: EdgePhase) -> None:
    ledger = EdgeLedger(1, incarnation=1)
    attempt = issue(ledger, 0)
    assert not ledger.move(0, attempt, skipped)


def test_what_was_never_issued_does_not_move() -> None:
    assert not EdgeLedger(1, incarnation=1).move(0, FIRST, EdgePhase.EMBED_DUE)


def test_only_what_is_in_flight_is_overdue() -> None:
    ledger = EdgeLedger(1, incarnation=1)
    for index, now in ((0, 0.0), (1, 0.0), (2, 5.0)):
        issue(ledger, index, now)
    bring_home(ledger, 1)
    assert ledger.overdue(9.9) == []
    assert ledger.overdue(10.0) == [0]
    assert ledger.overdue(15.0) == [0, 2]


@pytest.mark.parametrize(
    ("lateness", "deadline"), [(0, 10.0), (1, 20.0), (2, 20.0), (3, 40.0), (4, 40.0), (11, 640.0), (30, 640.0)]
)
def test_a_late_microbatch_is_given_more_time_within_reason(lateness: int, deadline: float) -> None:
    ledger = EdgeLedger(1, incarnation=1)
    issue(ledger, 0)
    for _ in range(lateness):
        ledger.issue(0, 0.0, timeout_s=10.0, is_late=True)
    assert ledger.overdue(deadline - 0.1) == []
    assert ledger.overdue(deadline) == [0]


def test_a_lost_stage_does_not_make_a_microbatch_late() -> None:
    ledger = EdgeLedger(1, incarnation=1)
    for _ in range(9):
        issue(ledger, 0)
    assert ledger.overdue(10.0) == [0]


def test_a_driver_knows_what_is_over() -> None:
    ledger = StageLedger(3, 2)
    ledger.accept_forward(0, NEXT_DRIVER)
    assert ledger.is_outdated(1)
    assert not ledger.is_outdated(2)
    ledger.advance()
    assert ledger.is_outdated(1), "the next step is that driver's too"


@given(
    st.lists(
        st.tuples(st.sampled_from(["issue", "move", "stale"]), INDEXES, st.sampled_from(PHASES), ATTEMPTS), max_size=80
    )
)
def test_the_drivers_sums_count_once(calls: list[tuple[str, int, EdgePhase, Attempt]]) -> None:
    ledger = EdgeLedger(1, incarnation=2)
    head, embedding = dict.fromkeys(range(4), 0), dict.fromkeys(range(4), 0)
    issued = 0
    for name, index, phase, attempt in calls:
        is_issued = index < issued
        if name == "issue" and (index in ledger.in_flight or index == issued):
            issued = max(issued, index + 1)
            issue(ledger, index)
        elif name == "stale" and is_issued and attempt < ledger.attempt_of(index):
            assert not ledger.move(index, attempt, phase)
        elif name == "move" and is_issued and ledger.move(index, ledger.attempt_of(index), phase):
            if phase is EdgePhase.OUTBOUND:
                head[index] += ledger.count_head(index)
            elif phase is EdgePhase.RETURNING:
                embedding[index] += ledger.count_embedding(index)
        assert max(*head.values(), *embedding.values()) <= 1
        assert len(ledger.in_flight) <= issued
    assert (ledger.counted, ledger.head_counted) == (sum(embedding.values()), sum(head.values()))


# --- the coordinator ---


def test_every_microbatch_is_given_out_once_in_order() -> None:
    ledger = StepLedger(1, 2)
    assert [ledger.give_out(), ledger.give_out(), ledger.give_out()] == [0, 1, None]
    assert ledger.in_flight_count == 2


def test_a_step_is_complete_when_every_microbatch_came_home() -> None:
    ledger = StepLedger(1, 2)
    ledger.give_out()
    ledger.came_home(0, 1.0)
    assert (ledger.is_complete, ledger.in_flight_count) == (False, 0), "one was never issued"
    ledger.give_out()
    assert not ledger.is_complete, "one is under way"
    ledger.came_home(1, 2.0)
    assert ledger.is_complete
    assert ledger.mean_loss == 1.5


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_there_is_no_mean_of_losses_that_are_not_finite(loss: float) -> None:
    ledger = StepLedger(1, 3)
    for index, known in enumerate((1.0, loss, 2.0)):
        ledger.came_home(index, known)
    assert ledger.mean_loss is None
    assert ledger.not_finite == [1]
