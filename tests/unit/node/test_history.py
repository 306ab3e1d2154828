"""What a node remembers between two looks at itself."""

from __future__ import annotations

import pytest

from understudy.node.links.metering import Counters
from understudy.node.ui.history import RATE_OVER_S, History, duration
from understudy.protocol.ids import PeerId
from understudy.protocol.observe.node_status import Hearing, Neighbour, SelfView

RECOVERED = {"stage": 2, "method": "checkfree", "donors": [1, 3], "seconds": 1.44}


def view(*neighbours: Neighbour) -> SelfView:
    return SelfView(PeerId("me"), "seen-0123456789ab", "owner", 2, 1, "", 5, 9, 2.5, neighbours, ())


def neighbour(hearing: Hearing, incarnation: int = 1) -> Neighbour:
    return Neighbour(3, hearing, PeerId("QmLongPeerIdXYZ"), incarnation, 0.0)


def test_it_knows_why_the_node_does_what_it_does() -> None:
    history = History()
    assert history.sample(view(), Counters(), 0.0).why == "looking around"
    for name, fields, why in (
        ("peer.spare", {}, "nothing needs an owner"),
        ("stage.claimed", {"why": "S2 was lost"}, "S2 was lost"),
        ("peer.serving", {"why": "S2 was never owned"}, "S2 was never owned"),
        ("peer.retired", {"reason": "S2 is held by another peer"}, "S2 is held by another peer"),
        ("step.committed", {"loss": 2.5}, "S2 is held by another peer"),
    ):
        history.note(name, fields, 0.0)
        assert history.sample(view(), Counters(), 0.0).why == why


def test_a_recovery_of_ours_is_told_with_its_age() -> None:
    history = History()
    assert history.sample(view(), Counters(), 0.0).last_recovery == ""
    history.note("stage.recovered", RECOVERED, 100.0)
    told = history.sample(view(), Counters(), 112.0).last_recovery
    assert told == "S2 here by checkfree from S1 and S3, 1.4 s (12 s ago)"
    history.note("stage.recovered", {**RECOVERED, "method": "seed", "donors": []}, 100.0)
    assert history.sample(view(), Counters(), 400.0).last_recovery == "S2 here by seed, 1.4 s (5 min ago)"


@pytest.mark.parametrize(
    ("incarnation", "told"),
    [(2, "S3 was lost, ..eerIdXYZ took it over after 4 s"), (1, "S3 was lost, its owner came back after 4 s")],
)
def test_a_neighbour_that_was_lost_is_told_once_it_is_back(incarnation: int, told: str) -> None:
    history = History()
    history.note("peer.dead", {"stage": 3, "incarnation": 1}, 100.0)
    for now, hearing in ((101.0, "dead"), (102.0, "nobody"), (103.0, "recovering")):
        silent = view(neighbour(hearing, incarnation))  # type: ignore[arg-type]
        assert history.sample(silent, Counters(), now).last_recovery == ""
    assert (
        history.sample(view(neighbour("answers", incarnation)), Counters(), 104.0).last_recovery == f"{told} (0 s ago)"
    )
    assert (
        history.sample(view(neighbour("answers", incarnation)), Counters(), 110.0).last_recovery == f"{told} (6 s ago)"
    )


def test_neighbours_that_were_never_lost_are_no_recovery() -> None:
    history = History()
    assert history.sample(view(neighbour("silent")), Counters(), 1.0).last_recovery == ""
    assert history.sample(view(neighbour("answers", 7)), Counters(), 2.0).last_recovery == ""


def test_microbatches_are_counted_over_the_last_minute() -> None:
    history, counters = History(), Counters()
    assert history.sample(view(), counters, 0.0).microbatches_per_minute is None
    for second in range(1, 121):
        counters.microbatches += 2 if second <= 60 else 1
        rate = history.sample(view(), counters, float(second)).microbatches_per_minute
        assert rate == pytest.approx(120 if second <= 60 else 120 - (second - 60), abs=1e-9)
    assert len(history._counts) <= RATE_OVER_S + 2


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0, "0 s"), (89.0, "89 s"), (90.0, "2 min"), (5399.0, "90 min"), (7200.0, "2 h")]
)
def test_durations_are_said_as_people_do(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_a_stage_that_came_back_as_it_was_says_how_old_it_is() -> None:
    history = History()
    known = {"stage": 2, "method": "standby", "donors": [], "seconds": 0.21, "reason": "its own copy as of step 18"}
    history.note("stage.recovered", known, 10.0)
    assert (
        history.sample(view(), Counters(), 12.0).last_recovery
        == "S2 here from its own copy as of step 18, 0.2 s (2 s ago)"
    )
