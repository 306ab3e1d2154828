"""How a relayed link becomes a direct one, and what is said of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.protocol.events import LinkChanged
from understudy.protocol.ids import PeerId
from understudy.protocol.reach.climb import (
    FIRST_TRY_S,
    TRY_AGAIN_S,
    Climber,
    Redial,
    Reopen,
    Step,
    why_relayed,
)
from understudy.protocol.reach.contacts import Contacts
from understudy.protocol.reach.isolation import TOLD_AFTER_S, TOLD_AGAIN_S, Isolation
from understudy.protocol.wire.contact import Contact, Reachability

ME, PEER = PeerId("a"), PeerId("b")
DIRECT = "/ip4/5.5.5.7/tcp/4001"
RELAYED = "/ip4/5.5.5.1/tcp/4001/p2p/R/p2p-circuit"


class Rope:
    """A climber with one peer, and a clock."""

    def __init__(self, mine: Reachability, other: Reachability, me: PeerId = ME) -> None:
        self.climber, self.contacts, self.now = Climber(me, mine), Contacts(), 0.0
        self.contacts.note(PEER, Contact((RELAYED,), reachability=other))

    def look(self, *addresses: str, after_s: float = 0.0) -> list[Step]:
        self.now += after_s
        return self.climber.look(self.now, [PEER], {PEER: addresses}, self.contacts)

    def redials(self, seconds: int) -> list[float]:
        """When the connection is made anew while it stays relayed."""
        return [self.now for _ in range(seconds) if Redial(PEER) in self.look(RELAYED, after_s=1.0)]


def test_a_direct_link_is_told_once_and_left_alone() -> None:
    rope = Rope("public", "public")
    assert rope.look(DIRECT) == [LinkChanged(PEER, "direct", "dialled", DIRECT)]
    assert rope.look(DIRECT, after_s=60.0) == []


def test_streams_leave_the_relay_as_soon_as_there_is_a_direct_connection() -> None:
    """The relayed connection may live on beside it."""
    rope = Rope("punchable", "punchable")
    (told,) = rope.look(RELAYED)
    assert isinstance(told, LinkChanged)
    assert (told.way, told.address) == ("relayed", RELAYED)
    steps = rope.look(RELAYED, DIRECT, after_s=1.0)
    assert steps[1:] == [Reopen(PEER)]
    assert isinstance(steps[0], LinkChanged)
    assert (steps[0].way, steps[0].address) == ("direct", DIRECT)
    assert rope.look(RELAYED, DIRECT, after_s=1.0) == []


def test_who_can_dial_the_other_makes_the_connection_anew() -> None:
    assert Rope("punchable", "public").redials(10)
    assert Rope("relayed", "public").redials(10)
    assert not Rope("public", "punchable").redials(100)


def test_of_two_that_punch_the_lower_peer_id_tries() -> None:
    """Each try breaks the link: two that try by themselves break each other's."""
    assert Rope("punchable", "punchable", me=PeerId("a")).redials(10)
    assert not Rope("punchable", "punchable", me=PeerId("c")).redials(100)


@pytest.mark.parametrize(
    ("mine", "other"), [("relayed", "punchable"), ("punchable", "relayed"), ("relayed", "relayed")]
)
def test_through_a_symmetric_nat_nothing_is_tried(mine: Reachability, other: Reachability) -> None:
    assert Rope(mine, other).redials(100) == []
    assert "symmetric" in why_relayed(mine, other)


def test_tries_become_rarer_and_never_end() -> None:
    rope = Rope("punchable", "punchable")
    rope.look(RELAYED)
    times = rope.redials(4000)
    assert times[0] == FIRST_TRY_S
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[:5] == list(TRY_AGAIN_S)
    assert set(gaps[5:]) <= {TRY_AGAIN_S[-1]}


def test_a_link_that_falls_back_to_the_relay_is_told_and_climbs_again() -> None:
    rope = Rope("punchable", "punchable")
    rope.redials(30)
    rope.look(DIRECT)
    (told,) = rope.look(RELAYED, after_s=100.0)
    assert isinstance(told, LinkChanged)
    assert told.way == "relayed"
    assert rope.redials(10) == [130.0 + FIRST_TRY_S]


def test_without_a_connection_or_a_link_there_is_nothing_to_climb() -> None:
    rope = Rope("punchable", "punchable")
    assert rope.look() == []
    rope.look(RELAYED)
    assert rope.climber.look(50.0, [], {PEER: (RELAYED,)}, rope.contacts) == []
    assert rope.look(RELAYED, after_s=0.5) == []  # a link that idled out and began again is no news


def test_tries_stay_rare_though_links_idle_out_between_them() -> None:
    rope = Rope("punchable", "punchable")
    tries = 0
    for second in range(400):
        linked = [PEER] if second % 10 else []
        tries += Redial(PEER) in rope.climber.look(float(second), linked, {PEER: (RELAYED,)}, rope.contacts)
    assert tries <= len(TRY_AGAIN_S)


def test_a_peer_that_says_nothing_of_itself_is_left_alone() -> None:
    """An exporter's links carry whole stages: to break them helps nobody."""
    assert not Rope("punchable", "unknown").redials(100)


WAYS = st.lists(st.sampled_from([(), (RELAYED,), (DIRECT,), (RELAYED, DIRECT)]), max_size=60)
KINDS = st.sampled_from(["unknown", "public", "punchable", "relayed"])


@given(WAYS, KINDS, KINDS)
def test_a_link_is_never_broken_while_it_is_direct(
    ways: list[tuple[str, ...]], mine: Reachability, other: Reachability
) -> None:
    rope = Rope(mine, other)
    for way in ways:
        steps = rope.look(*way, after_s=3.0)
        assert Redial(PEER) not in steps or way == (RELAYED,)
        assert Reopen(PEER) not in steps or DIRECT in way


# --- nobody can get to us ---


def test_a_private_node_without_a_relay_says_so_after_a_while_and_again() -> None:
    isolation = Isolation()
    said = [t for t in range(200) if isolation.look(float(t), is_private=True, has_relay=False)]
    assert said == [TOLD_AFTER_S, TOLD_AFTER_S + TOLD_AGAIN_S, TOLD_AFTER_S + 2 * TOLD_AGAIN_S, *said[3:]]


def test_a_relay_that_comes_back_in_time_is_not_spoken_of() -> None:
    isolation = Isolation()
    assert not any(isolation.look(float(t), is_private=True, has_relay=t % 7 == 0) for t in range(100))
    assert not any(isolation.look(float(t), is_private=False, has_relay=False) for t in range(100))
