"""Who keeps a microbatch, by what the stages say of themselves; and how long nothing may move."""

from __future__ import annotations

import pytest

from tests.sim.simulation import small_manifest
from understudy.protocol.ids import Attempt, Microbatch
from understudy.protocol.pipeline.standstill import (
    BEGINNING_FACTOR,
    DISPUTED_ATTEMPTS_MIN,
    FACTOR,
    NEWCOMER_FACTOR,
    Asked,
    Finding,
    Standstill,
    find_stuck,
)
from understudy.protocol.wire.watching import Place

RUN = small_manifest(stages=5)
ROUTE = (1, 2, 3, 4)
FIRST, SECOND, THIRD = (Attempt(1, counter) for counter in range(3))
TICK_S = 0.25
FLOOR_S = 8.0
SENT, HAS, NOTHING = "forwarded", "forward due", "unknown"


@pytest.mark.parametrize(
    ("places", "is_gradient", "expected"),
    [
        ({1: SENT, 2: HAS, 3: NOTHING, 4: NOTHING}, False, Finding(2)),
        ({1: HAS, 2: NOTHING, 3: NOTHING, 4: NOTHING}, False, Finding(1)),
        ({1: SENT, 3: NOTHING, 4: NOTHING}, False, Finding(2)),  # S2 says nothing
        ({1: SENT, 2: NOTHING, 3: NOTHING, 4: NOTHING}, False, Finding(2, 1)),
        ({1: NOTHING, 2: NOTHING, 3: NOTHING, 4: NOTHING}, False, Finding(1, 0)),
        ({1: SENT, 2: SENT, 3: SENT, 4: SENT}, False, Finding(4, 0)),
        ({2: SENT, 3: HAS}, False, Finding(3)),  # that S1 says nothing does not matter: S2 has it
        ({}, False, Finding(1)),
        ({1: SENT, 2: SENT, 3: "backward due", 4: "finished"}, True, Finding(3)),
        ({1: SENT, 2: SENT, 3: SENT, 4: "finished"}, True, Finding(3, 4)),
        ({1: SENT, 2: SENT, 3: SENT, 4: SENT}, True, Finding(4, 0)),
        ({1: SENT, 2: "finished", 3: "finished", 4: "finished"}, True, Finding(1, 2)),
        ({1: "finished", 2: "finished", 3: "finished", 4: "finished"}, True, Finding(1, 0)),
        ({1: SENT, 2: SENT, 3: SENT}, True, Finding(4)),
    ],
)
def test_one_stage_keeps_it_or_two_contradict_each_other(
    places: dict[int, Place], is_gradient: bool, expected: Finding
) -> None:
    assert find_stuck(ROUTE, places, is_gradient=is_gradient) == expected


def test_whoever_lies_can_only_bring_blame_upon_itself_and_those_beside_it() -> None:
    """Whatever S3 says, honest others having S1's word of a microbatch that is stuck at the liar."""
    honest: dict[int, Place] = {1: SENT, 2: SENT, 4: NOTHING}
    for lie in ("unknown", "forward due", "forwarded", "backward due", "finished"):
        found = find_stuck(ROUTE, {**honest, 3: lie}, is_gradient=False)  # type: ignore[dict-item]
        assert 3 in (found.stage, found.contradicts)
        assert {found.stage, found.contradicts} <= {2, 3, 4, None}


class Watch:
    """A standstill, and time that passes in ticks."""

    def __init__(self, way_s: float | None = 0.1) -> None:
        self.now = 100.0
        self.standstill = Standstill(RUN, self.now)
        self.asked = Asked(Microbatch(1, 0), FIRST, ROUTE, is_gradient=False)
        self.questions = 0
        if way_s is not None:
            for index in range(5):
                self.standstill.issued(index, self.now)
                self.now += way_s
                self.standstill.came_home(index, ROUTE, self.now)
            self.standstill.moved(self.now)
            self.standstill.look(None, self.now)
            self.standstill.moved(self.now)

    def wait(self, seconds: float, places: dict[int, Place]) -> bool:
        """Whether somebody is proven to keep the microbatch by then; everybody asked answers at once."""
        until = self.now + seconds
        while self.now < until:
            self.now += TICK_S
            finding = self.standstill.look(self.asked, self.now)
            if self.standstill.is_time_to_ask(self.now):
                self.questions += 1
                for stage, place in places.items():
                    self.standstill.note_answer(stage, self.asked.attempt, place, self.now)
            if finding is not None and self.standstill.is_proven(finding):
                return True
            if finding is not None and self.standstill.is_worth_another_try(finding, self.asked.attempt):
                attempt = Attempt(1, self.asked.attempt.counter + 1)
                self.asked = Asked(self.asked.microbatch, attempt, ROUTE, is_gradient=False)
        return False


STUCK: dict[int, Place] = {1: SENT, 2: HAS, 3: NOTHING, 4: NOTHING}
LOST: dict[int, Place] = {1: SENT, 2: NOTHING, 3: NOTHING, 4: NOTHING}


def test_a_stage_that_keeps_it_is_proven_after_the_floor_and_not_before() -> None:
    watch = Watch()
    assert not watch.wait(FLOOR_S / 2 - TICK_S, STUCK)
    assert watch.questions == 0
    assert not watch.wait(FLOOR_S / 2 - TICK_S, STUCK)
    assert watch.questions > 0
    assert watch.wait(2.0, STUCK)


@pytest.mark.parametrize("way_s", [2.0, 30.0])
def test_a_slow_swarm_gives_more_time(way_s: float) -> None:
    watch = Watch(way_s)
    assert not watch.wait(FACTOR * way_s - 1.0, STUCK)
    assert watch.wait(3.0, STUCK)


def test_a_new_owner_may_be_slower_than_all_others_together() -> None:
    watch = Watch(1.0)
    watch.standstill.owner_changed(2, watch.now)
    assert not watch.wait(NEWCOMER_FACTOR - 1.0, STUCK)
    assert watch.wait(3.0, STUCK)


def test_a_new_owner_elsewhere_gives_nobody_more_time() -> None:
    watch = Watch(1.0)
    watch.standstill.owner_changed(4, watch.now)
    assert watch.wait(FLOOR_S + 2.0, STUCK)


def test_before_the_first_way_only_the_founders_word_counts() -> None:
    watch = Watch(None)
    limit_s = BEGINNING_FACTOR * RUN.step.microbatch_timeout_s
    assert not watch.wait(limit_s - 1.0, STUCK)
    assert watch.wait(3.0, STUCK)


def test_what_moves_starts_the_clock_again() -> None:
    watch = Watch()
    for _ in range(5):
        assert not watch.wait(FLOOR_S - 1.0, STUCK)
        watch.standstill.moved(watch.now)


def test_time_in_which_we_ourselves_work_or_do_not_run_is_nobodys() -> None:
    watch = Watch()
    for _ in range(100):
        watch.now += TICK_S
        assert watch.standstill.look(None, watch.now) is None
    watch.now += 60.0
    assert watch.standstill.look(watch.asked, watch.now) is None
    assert not watch.wait(FLOOR_S - 1.0, STUCK)
    assert watch.wait(2.0, STUCK)


def test_two_who_contradict_each_other_get_three_attempts() -> None:
    watch = Watch()
    assert watch.wait(3 * FLOOR_S, LOST)
    assert watch.asked.attempt.counter + 1 >= DISPUTED_ATTEMPTS_MIN


def test_a_microbatch_that_creeps_along_proves_nothing() -> None:
    watch = Watch()
    watch.wait(FLOOR_S / 2, {})
    for position, stage in enumerate(ROUTE):
        places: dict[int, Place] = dict.fromkeys(ROUTE[:position], SENT)
        assert not watch.wait(1.25, {**places, stage: HAS})


def test_answers_of_an_older_attempt_are_no_answers() -> None:
    watch = Watch()
    watch.wait(FLOOR_S / 2 + 3.0, LOST)
    watch.standstill.note_answer(2, Attempt(1, 77), HAS, watch.now)
    assert watch.standstill.look(watch.asked, watch.now + TICK_S) is None
