"""What a node tells people of its ways to the others."""

from __future__ import annotations

from tests.unit.protocol.test_core import Node, names, of, peer
from understudy.protocol.actions import Action, Emit
from understudy.protocol.events import CutOff, LinkChanged, LinkFailed, Started
from understudy.protocol.ids import PeerId
from understudy.protocol.observe.ways import FAILURES_MAX, TOLD_AFTER_S, TOLD_AGAIN_S
from understudy.protocol.wire.messages import Heartbeat
from understudy.protocol.wire.records import StageRecord

REASON = "relay: no place; 5.5.5.7: no answer"


def started() -> Node:
    """A spare that knows of an owner of each stage."""
    node = Node()
    node.do(Started())
    node.read([StageRecord(peer(stage), stage, 1, "serving", 3) for stage in range(5)])
    return node


def unreached(actions: list[Action]) -> list[Emit]:
    return [emit for emit in of(Emit, actions) if emit.name == "peer.unreachable"]


def fail_for(node: Node, seconds: float, whom: PeerId) -> list[Action]:
    actions: list[Action] = []
    for _ in range(int(seconds)):
        actions += node.do(LinkFailed(whom, REASON)) + node.wait(1.0)
    return actions


def test_an_owner_that_no_link_gets_to_is_named_with_what_was_tried() -> None:
    node = started()
    assert unreached(fail_for(node, TOLD_AFTER_S - 1, peer(2))) == []
    (told,) = unreached(fail_for(node, 2, peer(2)))
    assert (told.fields["to"], told.fields["to_stage"], told.fields["reason"]) == (peer(2), 2, REASON)
    assert told.fields["seconds"] >= TOLD_AFTER_S
    assert len(unreached(fail_for(node, TOLD_AGAIN_S + 1, peer(2)))) == 1


def test_one_failure_is_not_told_for_ever() -> None:
    """Some owners are spoken to once: nobody would ever say that they can be reached after all."""
    node = started()
    node.do(LinkFailed(peer(2), REASON))
    assert len(unreached(node.wait(300.0))) <= 1
    assert node.core._ways._failing == {}


def test_whoever_speaks_to_us_is_not_out_of_reach() -> None:
    node = started()
    fail_for(node, 5, peer(2))
    node.hear(peer(2), Heartbeat(2, 1, "serving", 3))
    assert unreached(fail_for(node, TOLD_AFTER_S - 1, peer(2))) == []
    node.do(LinkChanged(peer(2), "direct", "dialled", "/ip4/5.5.5.7/tcp/1"))
    assert unreached(node.wait(2 * TOLD_AFTER_S)) == []


def test_strangers_that_cannot_be_reached_are_nobodys_concern_and_fill_nothing() -> None:
    node = started()
    for number in range(2 * FAILURES_MAX):
        node.do(LinkFailed(PeerId(f"stranger-{number}"), REASON))
    assert len(node.core._ways._failing) == FAILURES_MAX
    assert unreached(node.wait(1.5 * TOLD_AFTER_S)) == []


def test_ways_and_being_cut_off_become_events() -> None:
    node = started()
    actions = node.do(LinkChanged(peer(1), "relayed", "both are behind routers", "/p2p-circuit"))
    assert names(actions) == ["link.relayed"]
    (cut_off,) = of(Emit, node.do(CutOff("no relay", "join with a public address")))
    assert (cut_off.name, cut_off.fields["advice"]) == ("peer.cut_off", "join with a public address")
