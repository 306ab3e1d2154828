"""What a node makes of the addresses that peers say of themselves, hostile ones included."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from understudy.node.dht import p2p_node as module
from understudy.node.dht.config import SwarmConfig
from understudy.node.dht.hivemind_dht import HivemindDHT
from understudy.node.dht.p2p_node import OBSERVERS, P2PNode
from understudy.node.p2p.addresses import told_to_others
from understudy.node.p2p.streams import _is_gone
from understudy.protocol.errors import NetworkError
from understudy.protocol.ids import PeerId
from understudy.protocol.reach.contacts import FORGIVEN_AFTER_S, NOWHERE, Patience
from understudy.protocol.wire.contact import Contact

PEER = PeerId("QmSHdaR334FTG481tmH16va85qsoV7jaf4K5jsiAcL3NVH")
OTHER = PeerId("QmQxVxhUUihSfFE2PnQWxQ8Nb3gpxuh8RaQVZ4n2MwaG2W")
PRIVATE = SwarmConfig(host_maddrs=("/ip4/0.0.0.0/tcp/4001",), is_behind_nat=True)


def node() -> P2PNode:
    identity = SimpleNamespace(peer_id=PeerId("me"), public_key_bytes=b"", private_key=None)
    return P2PNode(identity, SimpleNamespace(control_path=None, fail=None), PRIVATE)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _without_hivemind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HivemindDHT", lambda *_, **__: SimpleNamespace())


@pytest.mark.parametrize(
    "address",
    [
        f"/ip4/5.5.5.1/p2p/{OTHER}/p2p-circuit/p2p/{PEER}",  # a relay without a port
        f"/p2p/{OTHER}/p2p-circuit/p2p/{PEER}",
        f"/unix/socket/p2p/{PEER}",
        f"/ip4/5.5.5.1/tcp/0/p2p/{PEER}",
        f"/ip4/5.5.5.1/tcp/4001/p2p/{OTHER}",  # somebody else
        "/ip4/5.5.5.1/tcp/4001",
        "nonsense",
    ],
)
def test_what_is_no_address_of_the_peer_is_never_dialled(address: str) -> None:
    subject = node()
    subject.note_contact(PEER, Contact((address,), reachability="public"))
    assert subject.contacts.of(PEER) is NOWHERE


def test_a_good_address_beside_a_bad_one_is_kept_and_the_same_word_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject, good = node(), f"/ip4/5.5.5.1/tcp/4001/p2p/{PEER}"
    said = Contact(("nonsense", good), reachability="public")
    subject.note_contact(PEER, said)
    assert subject.contacts.of(PEER).addresses == (good,)
    monkeypatch.setattr(module, "parse_multiaddr", lambda *_, **__: pytest.fail("it was parsed again"))
    subject.note_contact(PEER, said)


def test_a_refusal_at_what_is_no_address_ends_nobody() -> None:
    assert _is_gone({"/ip4/5.5.5.1/p2p/x/p2p-circuit": "connection refused"})


def test_one_that_never_answers_does_not_keep_us_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that spoke last is dead. libp2p punches once four peers or more saw us."""
    subject = node()
    names = [PeerId(f"{number}{PEER[1:]}") for number in range(1, OBSERVERS + 2)]
    for name in names:
        subject.contacts.note(name, Contact((f"/ip4/5.5.5.{name[0]}/tcp/1/p2p/{name}",), reachability="public"))
    met: list[PeerId] = []

    async def connect(peer: PeerId, *_: Any) -> None:
        if peer == names[-1]:
            raise NetworkError("no answer")
        met.append(peer)

    async def found(value: Any) -> Any:
        return value

    monkeypatch.setattr(subject, "connect", connect)
    monkeypatch.setattr(subject, "_dht", SimpleNamespace(addresses=lambda: found(()), connections=lambda: found({})))

    async def main() -> None:
        await subject._stay_reachable()
        await subject._stay_reachable()

    asyncio.run(main())
    assert set(met) == set(names[:-1])


def test_who_failed_is_tried_again_after_a_while() -> None:
    patience = Patience()
    patience.failed(PEER, 10.0)
    assert patience.due([PEER, OTHER], 11.0) == [OTHER]
    assert patience.due([PEER, OTHER], 10.0 + FORGIVEN_AFTER_S) == [PEER, OTHER]


def test_newcomers_are_told_public_addresses_if_there_are_any() -> None:
    public, home, here = "/ip4/5.5.5.7/tcp/1", "/ip4/192.168.1.5/tcp/1", "/ip4/127.0.0.1/tcp/1"
    assert told_to_others([here, home, public]) == (public,)
    assert told_to_others([here, home]) == (home,)
    assert told_to_others([here]) == (here,)


def test_a_peer_with_a_relayed_and_a_direct_connection_has_both() -> None:
    """Whether a link may leave the relay shows by the direct one."""

    async def list_peers() -> list[Any]:
        return [SimpleNamespace(peer_id=PEER, addrs=[address]) for address in ("/direct", "/relayed")]

    async def main() -> None:
        dht = HivemindDHT.__new__(HivemindDHT)
        dht.connection = SimpleNamespace(list_peers=list_peers)
        assert await dht.connections() == {PEER: ("/direct", "/relayed")}

    asyncio.run(main())
