"""What membership tells the life of a node, and in which order; the life itself is another's subject."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.seals import NamedSeal
from tests.sim.simulation import small_manifest
from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.membership.consequences import Consequences
from understudy.protocol.membership.dht_reader import DhtReader
from understudy.protocol.membership.failure_detector import FailureDetector
from understudy.protocol.membership.gossip import MembershipGossip
from understudy.protocol.membership.seats import Seat, Status
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.wire.messages import Alive, Fenced, Lost
from understudy.protocol.wire.records import PROGRESS_KEY, ProgressRecord, StageRecord

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


@pytest.fixture
def node() -> Node:
    return Node()


def test_a_new_owner_of_another_stage(node: Node) -> None:
    assert node.gossip.hear(Tenure(2, 2, NEW), "serving", 0)
    assert node.told == [("owner_changed", 2), ("seat_changed", 2)]


def test_a_claimant_owns_nothing_yet(node: Node) -> None:
    node.state.membership.mark_dead(2, 1, 10.0)
    assert node.gossip.hear(Tenure(2, 2, NEW), "recovering", 0)
    assert node.told == [("seat_changed", 2)]


def test_an_owner_of_our_stage_after_us(node: Node) -> None:
    assert node.gossip.hear(Tenure(1, 2, NEW), "serving", 0)
    assert node.told == [("lose", "S1 is held by another peer"), ("seat_changed", 1)]


def test_a_fence_of_one_that_is_ahead(node: Node) -> None:
    node.gossip.on_gossip(WITNESS, Fenced(1, 2, NEW, 0))
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
    node.gossip.hear(Tenure(0, 1, OLD), "serving", 10)
    node.told.clear()
    node.gossip.hear(Tenure(0, 1, OLD), "left", 10)
    assert node.told == [("seat_changed", 0), ("end_run",)]


def test_who_stopped_reads_no_further(node: Node) -> None:
    """Two owners left the last word: the first of them ends us, the second is for nobody any more."""
    node.state.is_stopped = True
    ends = tuple(ProgressRecord(peer, 1, 10, None, 0, 0.0) for peer in (OLD, WITNESS))
    node.reader.on_records(PROGRESS_KEY, ends)
    assert node.told == [("note_read", PROGRESS_KEY)]
