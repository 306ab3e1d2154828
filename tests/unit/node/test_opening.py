"""How a peer is opened by a guess, and opened again by what its peers found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from understudy.node.dht.config import SwarmConfig
from understudy.node.doctor.network import judge_reach
from understudy.node.reach import opening
from understudy.node.reach.opening import contradicts, correct, expect, listening_ports, open_by_reachability, with_port
from understudy.protocol.reach.verdict import Verdict
from understudy.protocol.wire.contact import Reachability

PEER = "QmQxVxhUUihSfFE2PnQWxQ8Nb3gpxuh8RaQVZ4n2MwaG2W"
SEED = f"/ip4/5.5.5.1/tcp/4000/p2p/{PEER}"
INSIDE = f"/ip4/192.168.1.7/tcp/4001/p2p/{PEER}"
RELAYED = f"{SEED}/p2p-circuit/p2p/{PEER}"
HOME = SwarmConfig(("/ip4/192.168.1.7/tcp/4001",), initial_peers=(SEED,))
PUBLIC = replace(HOME, host_maddrs=("/ip4/5.5.5.20/tcp/4001",))
REACHED = Verdict("public", "2 of 2 peers dialled it", "5.5.5.20:4001", "5.5.5.20")


@dataclass
class FakeNode:
    """What opening needs of a `P2PNode`."""

    config: SwarmConfig
    addresses: tuple[str, ...] = (INSIDE, f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}", RELAYED)
    reachability: Reachability = "unknown"
    served: list[str] = field(default_factory=list)

    async def connections(self) -> dict[str, tuple[str, ...]]:
        return {}

    async def serve_streams(self, protocol: str, callback: Any) -> None:
        self.served.append(protocol)


@dataclass
class World:
    """Every node that was opened, and what its peers find."""

    verdict: Verdict = REACHED
    opened: list[FakeNode] = field(default_factory=list)
    still_open: int = 0
    asked_ports: list[list[int]] = field(default_factory=list)

    @asynccontextmanager
    async def open(self, config: SwarmConfig, identity: Any) -> AsyncIterator[FakeNode]:
        assert self.still_open == 0, "two at a time would share an identity"
        self.opened.append(FakeNode(config))
        self.still_open += 1
        yield self.opened[-1]
        self.still_open -= 1

    async def find(self, p2p: Any, initial: Any, ports: list[int]) -> Verdict:
        self.asked_ports.append(list(ports))
        return self.verdict


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    found = World()
    monkeypatch.setattr(opening.P2PNode, "open", found.open)
    monkeypatch.setattr(opening, "find_reachability", found.find)
    return found


def run(config: SwarmConfig) -> tuple[FakeNode, Verdict]:
    async def main() -> Any:
        async with open_by_reachability(config, None) as (node, lookout):  # type: ignore[arg-type]
            return node, lookout.verdict

    return asyncio.run(main())  # type: ignore[no-any-return]


@pytest.mark.parametrize(("config", "reachability"), [(HOME, "punchable"), (HOME, "relayed"), (PUBLIC, "public")])
def test_a_guess_that_is_confirmed_opens_once(world: World, config: SwarmConfig, reachability: Reachability) -> None:
    world.verdict = Verdict(reachability, "why")
    node, verdict = run(config)
    assert world.opened == [node]
    assert node.config.is_behind_nat is (reachability != "public")
    assert node.reachability == verdict.reachability == reachability
    assert node.served


def test_nobody_told_and_the_guess_stands(world: World) -> None:
    world.verdict = Verdict("unknown", "why")
    node, _ = run(HOME)
    assert len(world.opened) == 1
    assert node.config.is_behind_nat


def test_a_forwarded_port_is_opened_again_as_public(world: World) -> None:
    node, _ = run(HOME)
    first, second = world.opened
    assert first.config.is_behind_nat
    assert node is second
    assert not second.config.is_behind_nat
    assert second.config.announce_maddrs == ("/ip4/5.5.5.20/tcp/4001", "/ip4/192.168.1.7/tcp/4001")
    assert second.served
    assert second.reachability == "public"


def test_a_closed_public_machine_is_opened_again_as_private(world: World) -> None:
    world.verdict = Verdict("punchable", "why", "5.5.5.20:4001")
    run(PUBLIC)
    assert [node.config.is_behind_nat for node in world.opened] == [False, True]
    assert world.opened[1].config.announce_maddrs == ()


def test_it_is_opened_again_once(world: World) -> None:
    run(HOME)
    assert len(world.asked_ports) == 1


def test_on_this_machine_only_nothing_is_asked(world: World) -> None:
    assert run(SwarmConfig(("/ip4/127.0.0.1/tcp/0",), initial_peers=(SEED,)))[1].reachability == "public"
    assert world.asked_ports == []


def test_behind_nat_is_believed_whatever_peers_find(world: World) -> None:
    node, verdict = run(replace(PUBLIC, is_behind_nat=True))
    assert verdict == Verdict("punchable", "--behind-nat says so", "5.5.5.20:4001")
    assert node.config.is_behind_nat
    assert len(world.opened) == 1


def test_behind_nat_peers_tell_which_router_it_is(world: World) -> None:
    world.verdict = Verdict("relayed", "why")
    assert run(replace(PUBLIC, is_behind_nat=True))[1] == world.verdict


def test_an_announced_address_is_believed_and_doubted(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.verdict = Verdict("punchable", "none of 2 peers could dial it", "5.5.5.20:4001")
    node, verdict = run(replace(HOME, announce_maddrs=("/ip4/5.5.5.20/tcp/5001",)))
    assert verdict == Verdict("public", "--announce-maddr says so")
    assert not node.config.is_behind_nat
    assert world.asked_ports == [[5001]], "the port that others are told, which a router may turn into another"
    assert "check that the router forwards this port here" in caplog.text


def test_only_addresses_that_it_listens_on_make_a_machine_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many homes have a public IPv6 address, and a node listens by IPv4 unless it is told otherwise."""
    monkeypatch.setattr(opening, "own_hosts", lambda _: ("192.168.1.5", "2a02::5"))
    assert expect(replace(HOME, host_maddrs=("/ip4/0.0.0.0/tcp/4001",))) == "punchable"
    assert expect(replace(HOME, host_maddrs=("/ip6/::/tcp/4001",))) == "public"


def test_what_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "own_hosts", lambda _: ("192.168.1.5",))
    assert expect(HOME) == "punchable"
    assert expect(PUBLIC) == "public"
    assert expect(replace(HOME, initial_peers=(INSIDE,))) == "public"
    assert expect(replace(HOME, announce_maddrs=(RELAYED,))) == "punchable", "a relay's address is no own one"
    assert expect(SwarmConfig(initial_peers=(f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}",))) == "public"


@pytest.mark.parametrize(
    ("expected", "found", "is_contradicted"),
    [
        ("public", "public", False),
        ("public", "punchable", True),
        ("public", "unknown", False),
        ("punchable", "relayed", False),
        ("punchable", "public", True),
        ("punchable", "unknown", False),
    ],
)
def test_what_contradicts(expected: Reachability, found: Reachability, is_contradicted: bool) -> None:
    assert contradicts(expected, Verdict(found, "why")) is is_contradicted


def test_the_port_left_to_chance_stays_what_it_was() -> None:
    any_port = ("/ip4/0.0.0.0/tcp/0",)
    ports = listening_ports(any_port, (INSIDE, RELAYED))
    assert ports == [4001]
    assert with_port(any_port, ports) == ("/ip4/0.0.0.0/tcp/4001",)
    assert with_port(any_port, []) == any_port
    assert with_port(("/ip4/0.0.0.0/tcp/7",), [7]) == ("/ip4/0.0.0.0/tcp/7",)
    assert listening_ports(("/ip4/0.0.0.0/tcp/7", "/ip4/0.0.0.0/udp/8/quic-v1"), ()) == [7]
    assert correct(replace(HOME, host_maddrs=any_port), REACHED, ports, ()).host_maddrs == ("/ip4/0.0.0.0/tcp/4001",)


@pytest.mark.parametrize(
    ("reachability", "verdict", "text"),
    [
        ("public", "ok", "others can dial this machine at port 4001: why"),
        ("punchable", "note", "forward TCP port 4001 to this machine and it becomes direct (why)"),
        ("unknown", "note", "whether others can dial this machine is not known: why"),
    ],
)
def test_what_the_doctor_makes_of_it(reachability: Reachability, verdict: str, text: str) -> None:
    finding = judge_reach(Verdict(reachability, "why"), 4001)
    assert finding.verdict == verdict
    assert finding.text.endswith(text)
