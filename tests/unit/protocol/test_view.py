"""What one node believes of the owners: whose word counts, who is silent, who came back."""

from __future__ import annotations

import pytest

from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.manifest import TimingSettings
from understudy.protocol.membership.placement import STEPS_APART_MAX
from understudy.protocol.membership.seats import Observation, Seat, Status
from understudy.protocol.membership.view import Membership
from understudy.protocol.wire.fields import StageState

TIMING = TimingSettings()
OLD, NEW = PeerId("old"), PeerId("new")
ACCUSER, OTHER = PeerId("accuser"), PeerId("other")


def seat(
    peer: PeerId = OLD, incarnation: int = 1, state: StageState = "serving", step: int = 0, now: float = 0.0
) -> Seat:
    return Seat(2, peer, incarnation, state, step, Status.ALIVE, now)


def proven(view: Membership, known: Seat) -> Seat:
    """Enough votes for this tenure were seen, or one was ours (test_proofs.py)."""
    view.titles.note_proven(known.tenure)
    return known


def claimed_view(*claims: Seat) -> Membership:
    """S2's owner was silent for too long, and somebody claimed its stage, as we recognised."""
    view = view_of(seat())
    view.mark_dead(2, 1, now=0.0)
    for claim in claims or (seat(NEW, 2, "recovering"),):
        view.observe(proven(view, claim), is_direct=True)
    return view


def view_of(*seats: Seat, is_monitored: bool = True) -> Membership:
    """What is known for certain."""
    view = Membership(5, TIMING)
    for known in seats:
        view.observe(proven(view, known), is_direct=True)
    if is_monitored:
        view.monitor({2}, 0.0)
    return view


def pass_time(view: Membership, since: float, until: float) -> list[Status]:
    """Tick as a healthy node does, and report what S2's owner became."""
    changes, now = [], since
    while now <= until:
        changes += [changed.status for changed in view.tick(now)]
        now += TIMING.heartbeat_s / 4
    return changes


# --- whose word counts ---


def test_an_unknown_owner_is_noted() -> None:
    view = Membership(5, TIMING)
    assert view.observe(seat(), is_direct=True) is Observation.NEW_OWNER
    assert view.serving_peer(2) == OLD


def test_the_same_word_again_is_no_news() -> None:
    assert view_of(seat()).observe(seat(step=3), is_direct=True) is Observation.KNOWN


@pytest.mark.parametrize("step", [0, 5])
@pytest.mark.parametrize("is_direct", [True, False])
def test_a_higher_incarnation_takes_the_seat_once_it_is_proven(step: int, is_direct: bool) -> None:
    view = view_of(seat(step=step))
    assert view.observe(seat(NEW, 2, step=step), is_direct=is_direct) is Observation.UNPROVEN
    assert (view.serving_peer(2), view.known_incarnation(2)) == (OLD, 1)
    assert view.observe(proven(view, seat(NEW, 2, step=step)), is_direct=is_direct) is Observation.NEW_OWNER
    assert view.serving_peer(2) == NEW


@pytest.mark.parametrize("is_direct", [True, False])
@pytest.mark.parametrize("state", ["serving", "recovering", "left"])
def test_a_lower_incarnation_changes_nothing(state: StageState, is_direct: bool) -> None:
    view = view_of(seat(NEW, 2))
    assert view.observe(seat(OLD, 1, state, step=STEPS_APART_MAX), is_direct=is_direct) is Observation.OUTDATED
    assert (view.groups[2].first.peer, view.groups[2].first.step) == (NEW, 0)


def test_who_is_behind_does_not_displace_who_is_ahead() -> None:
    """After a split the higher incarnation may be the one that was left behind. One alone may say so falsely."""
    view = view_of(seat(step=67))
    assert view.observe(seat(NEW, 2, step=14), is_direct=True) is Observation.OUTDATED
    assert (view.groups[2].first.peer, view.known_incarnation(2)) == (OLD, 2)
    behind = view_of(seat(step=13), seat(NEW, 2, step=14))
    assert behind.observe(seat(step=67), is_direct=True) is Observation.OUTDATED
    behind.titles.note_ahead(Tenure(3, 1, OTHER), 67, 0.0)
    assert behind.observe(seat(step=67), is_direct=True) is Observation.NEW_OWNER
    assert (behind.serving_peer(2), behind.known_incarnation(2)) == (OLD, 2)


@pytest.mark.parametrize("incarnation", [1, 2])
def test_a_stranger_gets_no_seat_by_claiming_to_be_ahead(incarnation: int) -> None:
    view = view_of(seat(step=13), seat(PeerId("a"), 2, step=14))
    assert view.observe(seat(PeerId("stranger"), incarnation, step=2**52), is_direct=True) is Observation.OUTDATED


@pytest.mark.parametrize("is_direct", [True, False])
def test_a_claim_takes_no_seat_from_an_owner_that_is_there(is_direct: bool) -> None:
    view = view_of(seat())
    assert view.observe(seat(NEW, 2, "recovering"), is_direct=is_direct) is Observation.PREMATURE
    assert (view.serving_peer(2), view.known_incarnation(2)) == (OLD, 2)
    assert view.observe(seat(NEW, 2), is_direct=is_direct) is Observation.UNPROVEN
    assert view.observe(proven(view, seat(NEW, 2)), is_direct=is_direct) is Observation.NEW_OWNER


def test_an_owner_that_speaks_again_has_its_seat_back_from_a_claim() -> None:
    view = claimed_view()
    assert view.observe(seat(now=1.0), is_direct=False) is Observation.KNOWN, "a record outlives its author"
    assert view.observe(seat(now=1.0), is_direct=True) is Observation.REVIVED
    assert (view.serving_peer(2), view.known_incarnation(2)) == (OLD, 2)


def test_whom_others_do_not_hear_loses_its_seat_to_a_claim() -> None:
    view = claimed_view()
    view.observe(Seat(3, ACCUSER, 1, "serving", 0, Status.ALIVE, 0.0), is_direct=True)
    view.suspect_by(2, 1, ACCUSER, now=1.0)
    assert view.observe(seat(now=1.5), is_direct=True) is Observation.KNOWN
    assert view.groups[2].first.peer == NEW
    assert view.refute(2, 1, now=1.6), "an accusation that is taken back clears who waits behind the claim, too"
    assert view.serving_peer(2) == OLD


def test_once_it_serves_the_owner_of_before_is_outdated() -> None:
    view = claimed_view()
    view.observe(seat(NEW, 2), is_direct=True)
    assert view.observe(seat(now=1.0), is_direct=True) is Observation.OUTDATED


def test_a_dead_tenure_that_was_ahead_keeps_nobody_out() -> None:
    view = view_of(seat(step=67))
    view.mark_dead(2, 1, now=1.0)
    assert view.observe(proven(view, seat(NEW, 2, step=14)), is_direct=True) is Observation.NEW_OWNER


def test_a_void_tenure_does_not_come_back_by_an_older_word_and_keeps_nobody_out() -> None:
    """Announcements travel on another link than tensors: the last word need not come last."""
    view = view_of(seat(step=13), seat(NEW, 2, step=14))
    view.observe(seat(NEW, 2, "withdrawn"), is_direct=True)
    assert view.observe(seat(NEW, 2, step=14, now=1.0), is_direct=True) is Observation.KNOWN
    assert not view.refute(2, 2, now=1.0)
    assert not view.is_present(2)
    assert view.observe(seat(OTHER, 3, step=14, now=1.0), is_direct=True) is Observation.UNPROVEN
    assert view.observe(seat(step=14, now=1.0), is_direct=True) is Observation.NEW_OWNER
    assert view.known_incarnation(2) == 2


def test_the_death_of_a_claimant_says_nothing_of_the_owner_whom_we_hear() -> None:
    view = view_of(seat(now=10.0), Seat(3, ACCUSER, 1, "serving", 0, Status.ALIVE, 10.0))
    assert view.suspect_by(2, 2, ACCUSER, now=10.5) is None
    assert (view.serving_peer(2), view.known_incarnation(2)) == (OLD, 2)


def test_a_void_tenure_is_over_and_no_other() -> None:
    view = view_of(seat(NEW, 2))
    assert view.observe(seat(OLD, 1, "withdrawn"), is_direct=False) is Observation.KNOWN
    assert view.observe(seat(OLD, 3, "withdrawn"), is_direct=False) is Observation.KNOWN
    assert (view.serving_peer(2), view.known_incarnation(2)) == (NEW, 3)
    assert view.observe(seat(NEW, 2, "withdrawn"), is_direct=False) is Observation.OVER
    assert not view.is_present(2)


def test_a_void_claim_brings_the_owner_of_before_back() -> None:
    view = claimed_view()
    assert view.observe(seat(NEW, 2, "withdrawn"), is_direct=False) is Observation.WITHDRAWN
    assert (view.groups[2].first.peer, view.groups[2].first.status) == (OLD, Status.DEAD)


def test_even_a_dead_owner_is_not_replaced_by_an_older_one() -> None:
    view = view_of(seat(NEW, 2))
    view.mark_dead(2, 2, now=1.0)
    assert view.observe(seat(OLD, 1), is_direct=True) is Observation.OUTDATED


def test_who_serves_beats_who_recovers_under_one_incarnation() -> None:
    view = view_of(seat(PeerId("a"), 2, "recovering"))
    assert view.observe(seat(PeerId("b"), 2), is_direct=True) is Observation.UNPROVEN
    assert view.observe(proven(view, seat(PeerId("b"), 2)), is_direct=True) is Observation.NEW_OWNER


def test_a_claimant_becomes_the_owner() -> None:
    view = claimed_view()
    assert not view.is_serving(2)
    assert view.is_present(2)
    assert view.observe(seat(NEW, 2), is_direct=True) is Observation.SERVING
    assert view.is_serving(2)


def test_an_owner_does_not_go_back_to_recovering() -> None:
    view = view_of(seat(NEW, 2))
    assert view.observe(seat(NEW, 2, "recovering"), is_direct=True) is Observation.KNOWN
    assert view.is_serving(2)


def test_who_left_does_not_come_back_under_the_same_incarnation() -> None:
    view = view_of(seat())
    assert view.observe(seat(state="left"), is_direct=True) is Observation.LEFT
    assert view.observe(seat(), is_direct=True) is Observation.KNOWN
    assert not view.is_present(2)


def test_a_goodbye_is_news_once() -> None:
    view = view_of(seat())
    assert view.observe(seat(state="left"), is_direct=True) is Observation.LEFT
    assert view.observe(seat(state="left"), is_direct=False) is Observation.KNOWN


def test_a_goodbye_of_an_owner_that_we_did_not_know_takes_the_seat_if_it_is_proven() -> None:
    view = view_of(seat())
    assert view.observe(seat(NEW, 2, "left"), is_direct=False) is Observation.UNPROVEN
    assert view.serving_peer(2) == OLD
    assert view.observe(proven(view, seat(NEW, 2, "left")), is_direct=False) is Observation.LEFT
    assert (view.known_incarnation(2), view.is_present(2)) == (2, False)


def test_steps_only_grow() -> None:
    view = view_of(seat(step=5))
    view.observe(seat(step=3), is_direct=True)
    assert view.groups[2].first.step == 5


def test_missing_are_those_that_nobody_serves() -> None:
    view = view_of(seat(NEW, 2, "recovering"))
    assert view.missing(range(1, 4)) == [1, 2, 3]
    view.observe(seat(NEW, 2), is_direct=True)
    assert view.missing(range(1, 4)) == [1, 3]


# --- silence ---


def test_silence_makes_suspect_and_then_dead() -> None:
    view = view_of(seat())
    assert pass_time(view, 0.0, 2.0) == []
    assert pass_time(view, 2.25, 4.0) == [Status.SUSPECT]
    assert pass_time(view, 4.25, 9.0) == [Status.DEAD]


def test_a_suspect_still_serves() -> None:
    view = view_of(seat())
    pass_time(view, 0.0, 3.0)
    assert view.groups[2].first.status is Status.SUSPECT
    assert view.serving_peer(2) == OLD


def test_a_word_ends_the_suspicion() -> None:
    view = view_of(seat())
    pass_time(view, 0.0, 3.0)
    assert view.observe(seat(now=3.0), is_direct=True) is Observation.KNOWN
    assert view.groups[2].first.status is Status.ALIVE
    assert pass_time(view, 3.25, 5.0) == []


def test_a_record_is_no_sign_of_life() -> None:
    view = view_of(seat())
    for now in (1.0, 2.0, 3.0, 4.0):
        view.observe(seat(now=now), is_direct=False)
    assert pass_time(view, 0.0, 5.0) == [Status.SUSPECT, Status.DEAD]


def test_whom_we_do_not_listen_to_is_not_judged() -> None:
    assert pass_time(view_of(seat(), is_monitored=False), 0.0, 60.0) == []


def test_listening_begins_now() -> None:
    view = view_of(seat(), is_monitored=False)
    pass_time(view, 0.0, 60.0)
    view.monitor({2}, 60.0)
    assert pass_time(view, 60.25, 61.75) == []
    assert pass_time(view, 62.25, 63.0) == [Status.SUSPECT]


def test_a_node_that_stalled_accuses_nobody() -> None:
    view = view_of(seat())
    view.tick(0.25)
    assert view.tick(30.0) == [], "thirty seconds in which we did not run are nobody's silence"
    assert pass_time(view, 30.25, 31.5) == []
    assert pass_time(view, 31.75, 34.5) == [Status.SUSPECT, Status.DEAD]


def test_a_word_heard_on_waking_up_is_not_forgiven_into_the_future() -> None:
    view = view_of(seat())
    view.tick(0.25)
    view.observe(seat(now=600.0), is_direct=True)
    assert view.tick(600.0) == []
    assert pass_time(view, 600.25, 604.5) == [Status.SUSPECT, Status.DEAD]


def test_a_slow_tick_is_no_stall() -> None:
    view = view_of(seat())
    for now in (1.0, 2.0):
        assert view.tick(now) == []
    assert [changed.status for changed in view.tick(3.0)] == [Status.SUSPECT]


# --- death and what follows ---


def test_a_death_is_news_once() -> None:
    view = view_of(seat())
    assert view.mark_dead(2, 1, now=1.0) is view.groups[2].first
    assert view.mark_dead(2, 1, now=1.0) is None
    assert not view.is_present(2)


def test_the_death_of_an_older_owner_is_no_news() -> None:
    view = view_of(seat(NEW, 2))
    assert view.mark_dead(2, 1, now=1.0) is None
    assert view.is_serving(2)


def test_a_death_spends_the_incarnation_even_of_an_unknown_owner() -> None:
    view = Membership(5, TIMING)
    assert view.mark_dead(2, 7, now=1.0) is None
    assert view.known_incarnation(2) == 7


def test_the_dead_speak_and_live_again() -> None:
    view = view_of(seat())
    view.mark_dead(2, 1, now=1.0)
    assert view.observe(seat(now=2.0), is_direct=True) is Observation.REVIVED
    assert view.is_serving(2)


def test_a_record_does_not_revive_whom_we_should_hear() -> None:
    view = view_of(seat())
    view.mark_dead(2, 1, now=1.0)
    assert view.observe(seat(now=60.0), is_direct=False) is Observation.KNOWN


def test_a_record_that_outlived_the_death_revives_for_those_who_do_not_listen() -> None:
    view = view_of(seat(), is_monitored=False)
    view.mark_dead(2, 1, now=1.0)
    assert view.observe(seat(now=1.0 + TIMING.record_lifetime_s), is_direct=False) is Observation.KNOWN
    assert view.observe(seat(now=1.1 + TIMING.record_lifetime_s), is_direct=False) is Observation.REVIVED


def test_an_expired_record_is_a_death_for_those_who_do_not_listen() -> None:
    view = view_of(seat(), is_monitored=False)
    assert view.record_missing(2, now=TIMING.record_lifetime_s) is None, "it was heard not so long ago"
    assert view.record_missing(2, now=TIMING.record_lifetime_s + 0.1) is view.groups[2].first
    assert view.record_missing(2, now=60.0) is None


def test_an_expired_record_is_no_death_for_those_who_listen() -> None:
    assert view_of(seat()).record_missing(2, now=60.0) is None


# --- accusations ---


def judged_view(*seats: Seat) -> Membership:
    """Owners of S2, and of S3 and S4, who speak of it."""
    speakers = (Seat(stage, peer, 1, "serving", 0, Status.ALIVE, 0.0) for stage, peer in ((3, ACCUSER), (4, OTHER)))
    return view_of(*seats, *speakers)


def test_an_accused_owner_is_not_revived_by_its_own_word_while_the_accuser_means_it() -> None:
    view = judged_view(seat())
    assert view.suspect_by(2, 1, ACCUSER, now=10.0) is view.groups[2].first
    assert view.observe(seat(now=11.0), is_direct=True) is Observation.KNOWN
    assert not view.is_present(2)
    assert view.observe(seat(now=10.0 + TIMING.suspect_after_s), is_direct=True) is Observation.REVIVED


def test_an_accusation_repeated_holds_longer() -> None:
    view = judged_view(seat())
    view.suspect_by(2, 1, ACCUSER, now=10.0)
    assert view.suspect_by(2, 1, ACCUSER, now=11.0) is None
    assert view.observe(seat(now=12.5), is_direct=True) is Observation.KNOWN


def test_an_accusation_of_an_older_owner_changes_nothing() -> None:
    view = judged_view(seat(NEW, 2))
    assert view.suspect_by(2, 1, ACCUSER, now=1.0) is None
    assert view.is_serving(2)


def test_who_others_take_for_dead_is_not_believed() -> None:
    """It hears nobody: it is the one that was cut off."""
    view = judged_view(seat())
    view.suspect_by(3, 1, OTHER, now=10.0)
    assert view.suspect_by(2, 1, ACCUSER, now=10.5) is None
    assert view.is_serving(2)
    view.refute(3, 1, now=11.0)
    assert view.suspect_by(2, 1, ACCUSER, now=11.5) is view.groups[2].first


def test_who_we_ourselves_found_dead_is_not_believed() -> None:
    view = judged_view(seat())
    view.mark_dead(3, 1, now=10.0)
    assert view.suspect_by(2, 1, ACCUSER, now=10.5) is None


def test_two_who_only_cannot_hear_each_other_are_both_believed() -> None:
    """Else those who heard of one first and those who heard of the other would never agree on whom to replace."""
    view = judged_view(seat())
    view.suspect_by(3, 1, OLD, now=10.0)
    assert view.suspect_by(2, 1, ACCUSER, now=10.5) is view.groups[2].first


def test_an_accuser_takes_it_back() -> None:
    view = judged_view(seat(now=9.0))
    view.suspect_by(2, 1, ACCUSER, now=10.0)
    assert view.refute(2, 1, now=11.0)
    assert view.is_serving(2)
    assert pass_time(view, 11.0, 12.75) == [], "its silence begins anew"


def test_of_whom_we_should_hear_ourselves_and_do_not_nobody_says_that_it_lives() -> None:
    view = judged_view(seat(now=9.0))
    view.suspect_by(2, 1, ACCUSER, now=10.0)
    assert not view.refute(2, 1, now=9.1 + TIMING.dead_after_s)
    view.monitor((), 10.0)
    assert view.refute(2, 1, now=9.1 + TIMING.dead_after_s), "others hear it, whom we do not listen to"


def test_nobody_is_absolved_for_another() -> None:
    view = judged_view(seat(NEW, 2))
    view.mark_dead(2, 2, now=1.0)
    assert not view.refute(2, 1, now=2.0)
    assert not view.refute(3, 1, now=2.0)
    assert not view.is_present(2)


# --- claims ---


@pytest.mark.parametrize("is_silent", [True, False])
def test_a_claimant_that_dies_before_it_served_gives_the_seat_back(is_silent: bool) -> None:
    view = claimed_view()
    if is_silent:
        assert pass_time(view, 0.0, 5.0) == [Status.SUSPECT, Status.DEAD]
    else:
        assert view.mark_dead(2, 2, now=1.0) is not None
    assert view.groups[2].first.peer == OLD, "a withdrawal that got lost must not fence the owner"
    assert view.known_incarnation(2) == 2
    assert view.observe(seat(now=5.0), is_direct=True) is Observation.REVIVED


def test_an_owner_that_dies_gives_nothing_back() -> None:
    view = claimed_view()
    view.observe(seat(NEW, 2), is_direct=True)
    view.mark_dead(2, 2, now=1.0)
    assert (view.groups[2].first.peer, view.is_present(2)) == (NEW, False)


@pytest.mark.parametrize(("peer", "holds"), [(OLD, False), (NEW, True), (PeerId("nobody"), False)])
def test_who_serves_or_recovers_holds_a_seat(peer: PeerId, holds: bool) -> None:
    view = claimed_view()
    assert view.holds_a_seat(peer) is holds
    view.mark_dead(2, 2, now=1.0)
    assert not view.holds_a_seat(NEW)


def test_a_withdrawn_claim_brings_the_owner_of_before_back() -> None:
    view = view_of(seat())
    view.mark_dead(2, 1, now=1.0)
    view.observe(seat(NEW, 2, "recovering", now=1.5), is_direct=True)
    assert view.withdraw(2, NEW, 2)
    assert (view.groups[2].first.peer, view.groups[2].first.status) == (OLD, Status.DEAD)
    assert view.observe(seat(now=2.0), is_direct=True) is Observation.REVIVED


def test_a_withdrawn_incarnation_is_spent() -> None:
    view = view_of(seat())
    view.observe(seat(NEW, 2, "recovering"), is_direct=True)
    view.withdraw(2, NEW, 2)
    assert view.known_incarnation(2) == 2


def test_of_two_claims_withdrawn_the_owner_comes_back_all_the_same() -> None:
    view = claimed_view(seat(NEW, 2, "recovering"), seat(PeerId("third"), 3, "recovering"))
    assert view.withdraw(2, PeerId("third"), 3)
    assert view.groups[2].first.peer == OLD


def test_who_served_does_not_withdraw() -> None:
    view = view_of(seat(), seat(NEW, 2))
    assert not view.withdraw(2, NEW, 2)
    assert view.serving_peer(2) == NEW


@pytest.mark.parametrize(("peer", "incarnation"), [(OLD, 2), (NEW, 1), (NEW, 3)])
def test_nobody_withdraws_for_another(peer: PeerId, incarnation: int) -> None:
    view = claimed_view()
    assert not view.withdraw(2, peer, incarnation)
    assert view.groups[2].first.peer == NEW


def test_a_claim_without_a_predecessor_leaves_an_empty_seat() -> None:
    view = view_of(seat(NEW, 1, "recovering"))
    assert view.withdraw(2, NEW, 1)
    assert 2 not in view.groups


def test_after_an_isolation_deaths_are_forgotten_and_incarnations_are_not() -> None:
    view = view_of(seat(NEW, 4))
    view.mark_dead(2, 4, now=1.0)
    view.forget_deaths()
    assert 2 not in view.groups
    assert view.known_incarnation(2) == 4


def test_after_an_isolation_the_living_stay() -> None:
    view = view_of(seat())
    view.forget_deaths()
    assert view.is_serving(2)


def test_an_owner_that_gave_its_tenure_up_does_not_come_back_from_behind_a_claim() -> None:
    """A late heartbeat of before it said so."""
    view = view_of(seat(OLD, 1))
    view.observe(seat(OLD, 1, "withdrawn"), is_direct=True)
    view.observe(seat(NEW, 2, "recovering", now=0.5), is_direct=True)
    assert view.observe(seat(OLD, 1), is_direct=True) is Observation.KNOWN
    assert view.groups[2].first.peer == NEW
