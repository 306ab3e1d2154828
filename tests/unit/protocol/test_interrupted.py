"""One node, fed by hand: what it does when it, or an owner next to it, was away for a while."""

from __future__ import annotations

import pytest

from tests.unit.protocol.test_core import (
    ME,
    OTHER,
    Node,
    claimant,
    donation,
    jobs,
    names,
    of,
    owner,
    peer,
    said,
    served,
    spare,
    votes,
)
from understudy.protocol.actions import Fetch, Send, Store
from understudy.protocol.events import JobDone, RecordsRead
from understudy.protocol.jobs import SnapshotJob
from understudy.protocol.wire.messages import Announce, Claim, Donation, Grant, Heartbeat, Lost, Refusal, Withdraw
from understudy.protocol.wire.records import OfferRecord, StageRecord, stage_key


def stage_records(actions: list) -> list[StageRecord]:  # type: ignore[type-arg]
    return [store.record for store in of(Store, actions) if isinstance(store.record, StageRecord)]


# --- a process that starts again ---


def restarted(step: int = 5) -> tuple[Node, list]:  # type: ignore[type-arg]
    """A node that reads what it itself stored before it was killed."""
    node = spare()
    return node, node.read([*served(0, 1, 3, 4), StageRecord(ME, 2, 3, "serving", step)])


def test_who_starts_again_says_that_its_old_tenure_is_over_and_claims_under_the_next() -> None:
    _, actions = restarted()
    assert stage_records(actions) == [StageRecord(ME, 2, 3, "withdrawn", 5)]
    assert set(said(Announce, actions)) == {Announce(2, 3, "withdrawn", 5)}
    assert {claim.incarnation for claim in said(Claim, actions)} == {4}


def test_a_witness_recognises_no_claim_under_the_incarnation_that_its_claimant_served() -> None:
    """It was granted, its fetches were refused, and the stage began anew from the seed."""
    node = owner()
    node.hear(peer(1), Lost(3, 1))
    actions = node.hear(peer(3), Claim(3, 1, (2, 4)))
    assert said(Refusal, actions) == [Refusal(3, 1, 1, "superseded")]


def test_an_owner_that_claims_its_own_stage_again_has_lost_it() -> None:
    node = owner()
    actions = node.hear(peer(3), Claim(3, 2, (2, 4)))
    assert "peer.dead" in names(actions)
    assert said(Refusal, actions) == []


def test_a_late_claim_of_before_it_served_costs_an_owner_nothing() -> None:
    node = owner()
    actions = node.hear(peer(3), Claim(3, 1, (2, 4)))
    assert said(Refusal, actions) == [Refusal(3, 1, 1, "owner alive")]
    assert node.core.state.membership.is_serving(3)


def test_a_record_that_is_current_is_no_memory() -> None:
    node = owner()
    actions = node.do(RecordsRead(stage_key(2), (StageRecord(ME, 2, 2, "serving", 5),)))
    assert stage_records(actions) == []


# --- an owner that speaks again ---


def test_the_word_of_an_owner_ends_a_claim_on_its_stage() -> None:
    node = owner()
    node.hear(peer(1), Lost(3, 1))
    node.hear(OTHER, Claim(3, 2, (2, 4)))
    assert node.core.state.membership.groups[3].first.peer == OTHER
    node.wait(2.5)  # until nobody's accusation holds any more
    actions = node.hear(peer(3), Heartbeat(3, 1, "serving", 5))
    assert [refusal.reason for refusal in said(Refusal, actions)] == ["owner alive"]
    assert node.core.state.membership.serving_peer(3) == peer(3)


def test_a_claim_ends_when_a_witness_that_granted_it_takes_that_back() -> None:
    node, _ = claimant()
    node.hear(peer(1), Grant(2, 2, 5, (donation(1),)))
    node.hear(peer(4), Grant(2, 2, 5, ()))
    assert "claim.withdrawn" not in names(node.hear(peer(1), Refusal(2, 2, 2, "owner alive")))
    assert "claim.withdrawn" not in names(node.hear(peer(4), Refusal(2, 2, 2, "owner alive")))
    actions = node.hear(peer(3), Refusal(2, 2, 2, "owner alive"))  # the other that is next to the stage
    assert "claim.withdrawn" in names(actions)
    assert of(Send, actions) == [Send(peer(0), Withdraw(2, 2))]


def test_an_offer_is_taken_back_when_the_owner_is_there_again() -> None:
    node = owner()
    (snapshot,) = jobs(SnapshotJob, node.hear(peer(1), Lost(3, 1)))
    node.do(JobDone(snapshot, (8, "digest")))
    node.wait(2.5)
    actions = node.hear(peer(3), Heartbeat(3, 1, "serving", 5))
    offers = [store.record for store in of(Store, actions) if isinstance(store.record, OfferRecord)]
    assert [(offer.for_stage, offer.lost_incarnation, offer.is_taken_back) for offer in offers] == [(3, 1, True)]


# --- who was left behind ---


def test_an_owner_that_cannot_catch_up_gives_its_stage_up() -> None:
    node = owner()
    node.hear(peer(1), Heartbeat(1, 1, "serving", 7))
    assert "peer.retired" not in names(node.wait(0.25)), "one alone may be wrong"
    node.hear(peer(3), Heartbeat(3, 1, "serving", 7))
    actions = node.wait(0.25)
    assert "peer.retired" in names(actions)
    assert stage_records(actions) == [StageRecord(ME, 2, 2, "withdrawn", 5, proof=votes())]
    assert set(said(Announce, actions)) == {Announce(2, 2, "withdrawn", 5, votes())}
    assert node.core.state.membership.known_incarnation(2) == 2


@pytest.mark.parametrize(("stage", "step"), [(1, 6), (0, 7)])
def test_one_step_ahead_is_no_other_world_and_neither_is_s0(stage: int, step: int) -> None:
    """A commit may be on its way; and a stage cannot be rebuilt from S0."""
    node = owner()
    node.hear(peer(stage), Heartbeat(stage, 1, "serving", step))
    node.hear(peer(3), Heartbeat(3, 1, "serving", 6))
    node.wait(0.5)
    assert node.core.state.is_serving


def test_a_witness_that_is_a_step_behind_is_waited_for() -> None:
    node, _ = claimant()
    node.hear(peer(4), Grant(2, 2, 5, ()))
    node.hear(peer(1), Grant(2, 2, 5, (donation(1),)))
    late = Donation("stage", 3, 4, 1.0, 8, "weights of S3 before")
    actions = node.hear(peer(3), Grant(2, 2, 4, (late,)))
    assert of(Fetch, actions) == []
    assert said(Claim, node.wait(0.5)) == [Claim(2, 2, (1, 3)), Claim(2, 2, (1, 3))]  # to the one, with every tick
    actions = node.hear(peer(3), Grant(2, 2, 5, (donation(3),)))
    assert {fetch.digest for fetch in of(Fetch, actions)} == {"weights of S1", "weights of S3"}


def test_a_witness_that_stays_a_step_behind_donates_nothing() -> None:
    node, _ = claimant()
    node.hear(peer(4), Grant(2, 2, 5, ()))
    node.hear(peer(1), Grant(2, 2, 5, (donation(1),)))
    node.hear(peer(3), Grant(2, 2, 4, (Donation("stage", 3, 4, 1.0, 8, "weights of S3 before"),)))
    assert {fetch.digest for fetch in of(Fetch, node.wait(6.0))} == {"weights of S1"}


# --- nobody to vouch ---


def test_a_spare_says_each_time_that_nobody_can_vouch_for_it() -> None:
    node = spare()
    node.core.state.can_drive = False
    gone = [StageRecord(peer(stage), stage, 1, "left", 5) for stage in range(5)]
    assert names(node.read(gone)).count("swarm.waiting") == 1
    assert names(node.wait(3.0)).count("swarm.waiting") == 0
    node.read([StageRecord(OTHER, 1, 2, "serving", 5)])
    node.wait(2.0)
    actions = node.read([StageRecord(OTHER, 1, 2, "left", 5)]) + node.wait(5.0)
    assert names(actions).count("swarm.waiting") == 1
