"""Which peers a microbatch visits, and who takes the place of one that is gone."""

from __future__ import annotations

import msgspec
import pytest

from tests.sim.faults import Kill, Moment, Trigger
from tests.sim.simulation import Simulation, build, small_manifest
from understudy.protocol.actions import Send
from understudy.protocol.ids import Attempt, PeerId
from understudy.protocol.pipeline.paths import Path, choose_path, joined, peer_at
from understudy.protocol.wire.messages import Backward, DataMessage, Forward

ROUTE = (2, 1, 3)
GROUPS = {1: ("a1", "b1"), 2: ("a2", "b2"), 3: ("a3",)}
ME = PeerId("me")


def peers(*names: str) -> Path:
    return tuple(PeerId(name) for name in names)


def members(groups: dict[int, tuple[str, ...]], stage: int) -> Path:
    return peers(*groups.get(stage, ()))


@pytest.mark.parametrize(
    ("before", "gone", "path"),
    [
        ((), {}, ("me", "a2", "a1", "a3")),
        (("me", "b2", "b1", "a3"), {}, ("me", "b2", "b1", "a3")),
        (("me", "b2", "b1", "a3"), {1: ("a1",)}, ("me", "b2", "a1", "a3")),
        (("me", "b2", "x1", "x3"), {}, ("me", "b2", "a1", "a3")),
        (("me", "b2"), {}, ("me", "b2", "a1", "a3")),
        (("me", "b2", "b1", "a3"), {3: ()}, ()),
    ],
)
def test_a_reissue_keeps_its_path_but_for_members_that_are_gone(
    before: tuple[str, ...], gone: dict[int, tuple[str, ...]], path: tuple[str, ...]
) -> None:
    chosen = choose_path(ME, ROUTE, lambda stage: members({**GROUPS, **gone}, stage), peers(*before))
    assert chosen == peers(*path)


def test_a_path_is_read_along_its_route() -> None:
    path = peers("me", "a2", "a1", "a3")
    assert [peer_at(path, ROUTE, stage) for stage in (0, 1, 2, 3)] == ["me", "a1", "a2", "a3"]
    assert [peer_at((), ROUTE, stage) for stage in (0, 3)] == [None, None]


def test_whoever_takes_a_microbatch_over_enters_itself() -> None:
    assert joined(peers("me", "a2", "a1", "a3"), ROUTE, 1, PeerId("new")) == peers("me", "a2", "new", "a3")
    assert joined((), ROUTE, 1, PeerId("new")) == ()


def test_a_message_without_a_path_is_read_and_one_with_a_path_by_whoever_knows_none() -> None:
    """Append-only: the field has a default, and a reader of before leaves it alone."""

    class Before(msgspec.Struct, frozen=True, array_like=True, tag="forward"):
        step: int
        index: int
        attempt: Attempt
        stage: int
        incarnation: int

    old = Before(1, 0, Attempt(1, 0), 0, 1)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=Forward).path == ()
    new = Forward(1, 0, Attempt(1, 0), 0, 1, peers("me", "a1"))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(new), type=Before) == old


class Watched(Simulation):
    """Keeps every data message and who sent it to whom."""

    sent: list[tuple[PeerId, PeerId, DataMessage]]

    def _perform(self, node, action) -> None:  # type: ignore[no-untyped-def]
        if isinstance(action, Send) and isinstance(action.message, Forward | Backward):
            self.sent.append((node.peer, action.peer, action.message))
        super()._perform(node, action)


def test_every_message_goes_along_the_path_that_it_names() -> None:
    simulation = build(1, [], manifest=small_manifest(stages=5, steps=3, method="checkfree+"), spares=0, kind=Watched)
    simulation.sent = []
    simulation.run(60.0)
    assert {type(message) for _, _, message in simulation.sent} == {Forward, Backward}
    for source, target, message in simulation.sent:
        assert len(message.path) == 5
        here, there = message.path.index(source), message.path.index(target)
        forward = isinstance(message, Forward)
        assert (there - here) % 5 == (1 if forward else 4), message


@pytest.mark.parametrize(("method", "seed", "moment"), [("checkfree", 6, "forward"), ("checkfree+", 5, "apply")])
def test_a_gradient_returns_to_the_peers_that_saved_its_activations(method: str, seed: int, moment: Moment) -> None:
    """Also where somebody takes over an activation that waited for an owner: it enters itself."""
    kill = Kill(Trigger(3, 2, moment, 0.002))
    manifest = small_manifest(stages=5, steps=4, microbatches=4, method=method)
    simulation = build(seed, [kill], manifest=manifest, spares=1, kind=Watched)
    simulation.sent = []
    simulation.run(60.0)
    saved: set[tuple[int, int, Attempt, PeerId]] = set()
    for source, target, message in simulation.sent:
        assert source in message.path
        work = (message.step, message.index, message.attempt)
        if isinstance(message, Forward):
            saved |= {(*work, source), (*work, target)}
        else:
            assert (*work, target) in saved, message
    assert len({message.path for _, _, message in simulation.sent}) > 1
