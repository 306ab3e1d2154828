"""Who may take a stage from its owner, as one node knows, and how far words alone drive incarnations."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.protocol.test_core import (
    ME,
    OTHER,
    Node,
    claimant,
    claims,
    lose_a_neighbour,
    owner,
    peer,
    said,
    served,
    spare,
)
from understudy.protocol.events import RecordsRead
from understudy.protocol.ids import INCARNATION_LEAP_MAX, INCARNATION_MAX, PeerId, Tenure
from understudy.protocol.manifest import TimingSettings
from understudy.protocol.membership.groups import WORD_LEAP_MAX
from understudy.protocol.membership.seats import Observation, Seat, Status
from understudy.protocol.membership.titles import TENURES_REMEMBERED, Titles
from understudy.protocol.membership.view import Membership
from understudy.protocol.wire.fields import StageState
from understudy.protocol.wire.messages import (
    Alive,
    Announce,
    Claim,
    Fenced,
    Grant,
    Heartbeat,
    Lost,
    Refusal,
    Withdraw,
)
from understudy.protocol.wire.records import OfferRecord, StageRecord, stage_key, weights_key

TIMING = TimingSettings()
OLD, NEW = PeerId("old"), PeerId("new")
FIRST, SECOND = Tenure(2, 1, OLD), Tenure(2, 2, NEW)
LIFETIME_S = TIMING.record_lifetime_s


# --- what is remembered ---


def test_who_served_or_was_proven_may_have_the_seat() -> None:
    titles = Titles()
    assert not titles.is_proven(FIRST)
    titles.note_served(FIRST)
    titles.note_proven(SECOND)
    assert titles.is_proven(FIRST)
    assert titles.is_proven(SECOND)
    assert (titles.has_served(FIRST), titles.has_served(SECOND)) == (True, False)
    assert (titles.is_owners(OLD), titles.is_owners(NEW)) == (True, False)
    assert (titles.is_known(2), titles.is_known(3)) == (True, False)


@pytest.mark.parametrize("other", [Tenure(2, 3, NEW), Tenure(2, 2, OLD), Tenure(3, 2, NEW)])
def test_a_title_is_of_one_stage_incarnation_and_peer(other: Tenure) -> None:
    titles = Titles()
    titles.note_proven(SECOND)
    titles.note_served(FIRST)
    assert not titles.is_proven(other)
    assert not titles.has_served(other)


def test_a_few_tenures_of_each_stage_are_remembered() -> None:
    titles = Titles()
    titles.note_served(Tenure(3, 1, OLD))
    for incarnation in range(1, 100):
        titles.note_served(Tenure(2, incarnation, OLD))
        titles.note_served(Tenure(2, 99, OLD))  # as it is with every word of its
        titles.note_proven(Tenure(2, incarnation, NEW))
    remembered = [titles.has_served(Tenure(2, incarnation, OLD)) for incarnation in range(1, 100)]
    assert sum(remembered) == sum(titles.is_proven(Tenure(2, i, NEW)) for i in range(1, 100)) == TENURES_REMEMBERED
    assert titles.has_served(Tenure(3, 1, OLD)), "each stage has a memory of its own"


def test_a_stage_that_was_trained_makes_the_run_trained_and_no_other_stage() -> None:
    titles = Titles()
    assert not titles.is_run_trained
    titles.note_trained(2)
    assert titles.is_run_trained
    assert (titles.is_trained(2), titles.is_trained(3)) == (True, False)


# --- who is entitled ---


def seat(
    peer: PeerId, incarnation: int, step: int = 0, now: float = 0.0, stage: int = 2, state: StageState = "serving"
) -> Seat:
    return Seat(stage, peer, incarnation, state, step, Status.ALIVE, now)


def view_of(*seats: Seat) -> Membership:
    view = Membership(5, TIMING)
    for known in seats:
        view.titles.note_proven(known.tenure)
        view.observe(known, is_direct=True)
    return view


def is_entitled(view: Membership, now: float, tenure: Tenure = SECOND) -> bool:
    return view.is_entitled(tenure, now, LIFETIME_S)


def test_the_first_that_we_hear_of_is_believed() -> None:
    assert is_entitled(view_of(), 0.0)
    assert is_entitled(view_of(seat(OLD, 1, 5, stage=3)), 0.0), "of this stage, however trained the others are"


def test_nobody_is_the_first_of_a_stage_whose_owner_we_forgot() -> None:
    """Cut off, we forget the dead, and remember that they were."""
    view = view_of(seat(OLD, 1, 5))
    view.mark_dead(2, 1, now=1.0)
    view.forget_deaths()
    assert 2 not in view.groups
    assert not is_entitled(view, 1000.0)
    assert is_entitled(view, 1.0, FIRST)


def test_of_a_stage_that_nobody_trained_the_next_is_believed_when_its_owner_is_gone() -> None:
    view = view_of(seat(OLD, 1))
    assert not is_entitled(view, 1000.0)
    view.mark_dead(2, 1, now=1000.0)
    assert is_entitled(view, 1000.1)


def test_of_a_run_that_was_trained_it_has_to_be_gone_for_longer_than_a_record_lives() -> None:
    view = view_of(seat(OLD, 1), seat(PeerId("another"), 1, 1, stage=3))
    view.mark_dead(2, 1, now=10.0)
    assert not is_entitled(view, 10.0 + LIFETIME_S)
    assert is_entitled(view, 10.1 + LIFETIME_S)


@pytest.mark.parametrize("is_gone", [False, True])
def test_of_a_stage_that_was_trained_nobody_is_believed_however_long_it_is_vacant(is_gone: bool) -> None:
    view = view_of(seat(OLD, 1, 1))
    if is_gone:
        view.mark_dead(2, 1, now=10.0)
    assert not is_entitled(view, 1e6)
    assert view.observe(seat(NEW, 2, 2**53, now=1e6), is_direct=True) is Observation.UNPROVEN
    view.titles.note_proven(SECOND)
    assert is_entitled(view, 10.0)
    assert view.observe(seat(NEW, 2, 1, now=10.0), is_direct=True) is Observation.NEW_OWNER


def test_who_served_before_us_is_believed_of_a_stage_that_was_trained() -> None:
    view = view_of(seat(OLD, 1, 5), seat(NEW, 2, 5))
    assert is_entitled(view, 0.0, FIRST)


def test_our_own_stage_we_yield_before_its_first_step_and_not_after() -> None:
    """Two claimed it when nobody could vouch for either: one of them has to give in."""
    for step in (0, 1):
        view = view_of(seat(OLD, 1, step))
        view.me = OLD
        assert is_entitled(view, 0.0) is (step == 0)


@pytest.mark.parametrize("state", ["recovering", "left", "withdrawn"])
def test_who_does_not_serve_has_trained_nothing(state: StageState) -> None:
    """A claimant says at which step it is, and could say anything."""
    view = view_of(seat(OLD, 1, 7, state=state))
    assert not view.titles.is_run_trained


def test_what_an_owner_says_of_something_else_tells_that_it_trained_its_stage() -> None:
    view = view_of(seat(OLD, 1))
    view.note_step(NEW, 2, 3)
    view.note_step(OLD, 3, 3)
    assert not view.titles.is_run_trained
    view.note_step(OLD, 2, 3)
    assert view.titles.is_trained(2)
    assert view.groups[2].step == 3


# --- how far a word drives an incarnation ---

HUGE = INCARNATION_MAX
WORDS: list[Any] = [
    Heartbeat(3, HUGE, "serving", 5),
    Heartbeat(3, HUGE, "serving", 0),
    Heartbeat(3, HUGE, "recovering", 0),
    Announce(3, HUGE, "left", 5),
    Announce(3, HUGE, "withdrawn", 5),
    Withdraw(3, HUGE),
    Claim(3, HUGE, (2, 4)),
    Lost(3, HUGE),
    Alive(3, HUGE),
    Fenced(3, HUGE, OTHER, 5),
    Refusal(3, HUGE, HUGE, "superseded"),
    StageRecord(OTHER, 3, HUGE, "serving", 5),
    StageRecord(OTHER, 3, HUGE, "serving", 0),
    StageRecord(OTHER, 3, HUGE, "recovering", 0),
    StageRecord(OTHER, 3, HUGE, "left", 5),
    StageRecord(OTHER, 3, HUGE, "withdrawn", 5),
]


def say(node: Node, word: Any) -> None:
    """By somebody who owns another stage, for whom more counts than for a stranger."""
    if isinstance(word, StageRecord):
        node.do(RecordsRead(stage_key(word.stage), (word, *served(3))))
    else:
        node.hear(peer(4), word)


@pytest.mark.parametrize("word", WORDS, ids=repr)
def test_no_word_uses_the_incarnations_of_a_stage_up(word: Any) -> None:
    """Whoever heard it and whoever did not grant the next claim, whether its maker heard it or not."""
    lied_to, other = owner(), owner()
    for _ in range(3):
        say(lied_to, word)
    known = lied_to.core.state.membership.known_incarnation(3)
    assert 1 <= known <= 1 + WORD_LEAP_MAX
    for node in (lied_to, other):
        lose_a_neighbour(node)
        assert said(Grant, node.hear(PeerId("third"), Claim(3, known + 1, (2, 4))))
    assert WORD_LEAP_MAX < INCARNATION_LEAP_MAX, "else who heard it would claim what nobody else grants"


def test_some_words_are_remembered() -> None:
    """Else the test before this one would show nothing."""
    node = owner()
    say(node, Lost(3, HUGE))
    assert node.core.state.membership.known_incarnation(3) == 1 + WORD_LEAP_MAX


def test_no_offer_uses_the_incarnations_of_a_stage_up() -> None:
    """A witness says which incarnation it takes for lost."""
    node = spare()
    node.read(served(0, 1, 2, 3, 4))
    for _ in range(3):
        node.do(RecordsRead(weights_key(2), (OfferRecord(peer(4), 2, HUGE, 4, 5, None, 0, ""),)))
        assert node.core.state.membership.known_incarnation(2) == 1 + WORD_LEAP_MAX


def test_false_offers_and_claims_that_come_to_nothing_do_not_use_them_up_together() -> None:
    """Each offer drives a claim, which the others refuse; the liar says nothing to it."""
    node = spare()
    for _ in range(4):
        node.read(served(0, 1, 2, 3, 4))
        lie = (OfferRecord(peer(4), 2, HUGE, 4, 5, None, 0, ""),)
        for claim in claims([*node.do(RecordsRead(weights_key(2), lie)), *node.wait(3.0)]):
            for stage in (0, 1, 3):
                node.hear(peer(stage), Refusal(2, claim.incarnation, 1, "owner alive"))
        node.wait(6.0)
        for stage in range(5):
            node.hear(peer(stage), Heartbeat(stage, 1, "serving", 5))
    node.read([*served(0, 1, 3, 4), StageRecord(peer(2), 2, 1, "left", 5)])
    asked = {claim.incarnation for claim in claims(node.wait(10.0))}
    assert asked, "it is lost now"
    assert min(asked) <= 1 + INCARNATION_LEAP_MAX, "whoever heard none of the lies would grant no more"


def test_a_claimant_that_is_refused_with_a_huge_incarnation_claims_one_that_is_granted() -> None:
    node, _ = claimant()
    for stage in (1, 0):
        node.hear(peer(stage), Refusal(2, 2, HUGE, "superseded"))
    (again,) = {claim.incarnation for claim in claims(node.wait(2.5))}
    assert again <= 2 + WORD_LEAP_MAX + 1


def test_what_was_claimed_for_all_to_see_counts_and_the_next_word_counts_from_there() -> None:
    view = view_of(seat(OLD, 7))
    view.raise_incarnation(2, HUGE)
    assert view.known_incarnation(2) == 7 + WORD_LEAP_MAX
    view.raise_incarnation(2, HUGE)
    assert view.known_incarnation(2) == 7 + WORD_LEAP_MAX, "many words count as one"
    view.spend_incarnation(2, 40)
    view.raise_incarnation(2, HUGE)
    assert view.known_incarnation(2) == 40 + WORD_LEAP_MAX


def test_our_own_claim_counts_whoever_answered_it() -> None:
    node, _ = claimant()
    assert node.core.state.membership.titles.is_proven(Tenure(2, 2, ME)) is False
    node.hear(peer(1), Grant(2, 2, 5, ()))
    assert node.core.state.membership.titles.is_proven(Tenure(2, 2, ME)) is True
