"""What membership tells the life of a node, and in which order; the life itself is another's subject."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.seals import NamedSeal, vote_of
from tests.sim.simulation import small_manifest
from understudy.protocol.actions import Read
from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.membership.consequences import Consequences
from understudy.protocol.membership.dht_reader import DhtReader
from understudy.protocol.membership.failure_detector import LOOK_UP_S, FailureDetector
from understudy.protocol.membership.gossip import MembershipGossip
from understudy.protocol.membership.seats import Seat, Status
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.wire.messages import Alive, Fenced, Lost
from understudy.protocol.wire.records import PROGRESS_KEY, ProgressRecord, StageRecord, stage_key
from understudy.protocol.wire.votes import Vote

ME, OLD, NEW, WITNESS = PeerId("me"), PeerId("old"), PeerId("new"), PeerId("witness")
MANIFEST = small_manifest(stages=4, steps=10)


class Told:
    """Whatever is said to it, by name and arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: self.calls.append((name, *arguments, *options.values()))


class Node:
    """The owner of S1/1, who knows S2 and S3 to be served under incarnation 1."""

    def __init__(self) -> None:
        membership = Membership(MANIFEST.stage_count, MANIFEST.timing)
        self.state = NodeState(
            NamedSeal(ME), MANIFEST, membership, now=10.0, tenure=Tenure(1, 1, ME), tenure_state="serving"
        )
        for stage, peer in ((1, ME), (2, OLD), (3, WITNESS)):
            membership.observe(Seat(stage, peer, 1, "serving", 0, Status.ALIVE, 10.0), is_direct=True)
        told = Told()
        self.told = told.calls
        detector, consequences = FailureDetector(self.state), cast(Consequences, told)
        self.gossip = MembershipGossip(self.state, detector, consequences)
        self.reader = DhtReader(self.state, detector, consequences, self.gossip)

    def proof(self, claim: Tenure, *voters: Tenure) -> tuple[Vote, ...]:
        return tuple(vote_of(voter, claim, MANIFEST.digest()) for voter in voters)


@pytest.fixture
def node() -> Node:
    return Node()


def test_a_new_owner_of_another_stage(node: Node) -> None:
    successor = Tenure(2, 2, NEW)
    assert node.gossip.hear(successor, "serving", 0, node.proof(successor, Tenure(3, 1, WITNESS)))
    assert node.told == [("owner_changed", 2), ("seat_changed", 2)]


@pytest.mark.parametrize("is_direct", [True, False])
def test_a_word_without_votes_makes_us_look_and_nothing_else(node: Node, is_direct: bool) -> None:
    forged = node.proof(Tenure(2, 2, OLD), Tenure(3, 1, WITNESS))  # votes for another's claim
    if is_direct:
        assert not node.gossip.hear(Tenure(2, 2, NEW), "serving", 0, forged)
        assert node.state.actions == [Read((stage_key(2), stage_key(3)))], "its own stage's key, and the voters'"
    else:
        node.gossip.read(StageRecord(NEW, 2, 2, "serving", 0, proof=forged))
        assert node.state.actions == []
    assert node.told == []
    assert (node.state.membership.serving_peer(2), node.state.membership.known_incarnation(2)) == (OLD, 1)


def test_many_words_without_votes_make_us_look_now_and_then(node: Node) -> None:
    for _ in range(9):
        node.gossip.hear(Tenure(2, 2, NEW), "serving", 0)
        node.state.now += LOOK_UP_S / 4
    assert node.state.actions == [Read((stage_key(2),))] * 3


def test_a_record_with_votes_is_a_new_owner(node: Node) -> None:
    successor = Tenure(2, 2, NEW)
    node.gossip.read(StageRecord(NEW, 2, 2, "serving", 0, proof=node.proof(successor, Tenure(3, 1, WITNESS))))
    assert node.told == [("owner_changed", 2), ("seat_changed", 2)]


def test_a_claimant_owns_nothing_yet(node: Node) -> None:
    node.state.membership.mark_dead(2, 1, 9.5)
    assert node.gossip.hear(Tenure(2, 2, NEW), "recovering", 0)
    assert node.told == [("seat_changed", 2)]


def test_an_owner_of_our_stage_after_us(node: Node) -> None:
    assert node.gossip.hear(Tenure(1, 2, NEW), "serving", 0)
    assert node.told == [("lose", "S1 is held by another peer"), ("seat_changed", 1)]


def test_a_fence_of_one_that_is_ahead(node: Node) -> None:
    node.gossip.on_gossip(WITNESS, Fenced(1, 2, NEW, 0))
    assert node.told == [("lose", "S1 is held by another peer under 2")]


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_fence_of_a_trained_stage_makes_us_look_everywhere_and_deposes_nobody(node: Node, is_trained: bool) -> None:
    """The successor's record shows votes, if there is one."""
    node.state.committed = 5 if is_trained else 0
    node.gossip.hear(Tenure(1, 1, OLD), "serving", 0)  # whatever reminds the view of our own step
    node.told.clear()
    node.gossip.on_gossip(WITNESS, Fenced(1, 2, NEW, 5))
    reads = [action for action in node.state.actions if isinstance(action, Read)]
    if is_trained:
        assert node.told == []
        assert reads == [Read(tuple(stage_key(stage) for stage in range(MANIFEST.stage_count)))]
    else:
        assert node.told == [("lose", "S1 is held by another peer under 2")]


def test_a_fence_of_a_stranger_is_ignored(node: Node) -> None:
    node.gossip.on_gossip(PeerId("stranger"), Fenced(1, 2, NEW, 0))
    assert node.told == []


def test_an_owner_that_was_taken_for_dead_is_back(node: Node) -> None:
    node.gossip.on_gossip(WITNESS, Lost(2, 1))
    node.gossip.on_gossip(WITNESS, Alive(2, 1))
    assert node.told == [("seat_changed", 2), ("owner_revived", 2), ("seat_changed", 2)]


def test_a_record_of_ours_from_before(node: Node) -> None:
    record = StageRecord(ME, 3, 1, "serving", 4)
    node.gossip.read(record)
    assert node.told == [("recall", record)]


def test_the_driver_leaves_with_the_last_step_decided(node: Node) -> None:
    """Who is at the last step knows that it was all: nobody else has to say it."""
    node.state.committed = 9
    node.gossip.hear(Tenure(0, 1, OLD), "serving", 10)
    node.told.clear()
    node.gossip.hear(Tenure(0, 1, OLD), "left", 10)
    assert node.told == [("seat_changed", 0), ("end_run",)]


def test_far_from_the_end_the_driver_alone_ends_no_run(node: Node) -> None:
    node.gossip.hear(Tenure(0, 1, OLD), "serving", 10)
    node.told.clear()
    node.gossip.hear(Tenure(0, 1, OLD), "left", 10)
    assert node.told == [("seat_changed", 0)]


def test_far_from_the_end_two_owners_end_the_run(node: Node) -> None:
    node.gossip.hear(Tenure(0, 1, PeerId("driver")), "serving", 10)
    node.gossip.hear(Tenure(3, 1, WITNESS), "serving", 10)
    node.told.clear()
    node.gossip.hear(Tenure(0, 1, PeerId("driver")), "left", 10)
    assert node.told == [("seat_changed", 0), ("end_run",)]


def test_who_stopped_reads_no_further(node: Node) -> None:
    """Two owners left the last word: the first of them ends us, the second is for nobody any more."""
    node.state.is_stopped = True
    ends = tuple(ProgressRecord(peer, 1, 10, None, 0, 0.0) for peer in (OLD, WITNESS))
    node.reader.on_records(PROGRESS_KEY, ends)
    assert node.told == [("note_read", PROGRESS_KEY)]
