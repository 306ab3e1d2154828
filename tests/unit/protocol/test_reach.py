"""Addresses that peers say of themselves: which are told, which are dialled, and how many are remembered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.protocol.ids import PeerId
from understudy.protocol.reach.addresses import ip_of, is_public, to_say, worth_dialling
from understudy.protocol.reach.contacts import CONTACTS_MAX, NOWHERE, Contacts
from understudy.protocol.wire.contact import ADDRESS_CHARS_MAX, ADDRESSES_MAX, Contact

PUBLIC = "/ip4/5.5.5.7/tcp/4001/p2p/Q"
CIRCUIT = "/ip4/5.5.5.1/tcp/4001/p2p/R/p2p-circuit/p2p/Q"
HOME = "/ip4/192.168.1.10/tcp/4001/p2p/Q"
OFFICE = "/ip4/10.1.2.3/tcp/4001/p2p/Q"
LOOPBACK = "/ip4/127.0.0.1/tcp/4001/p2p/Q"
NAME = "/dns4/node.example/tcp/4001/p2p/Q"


@pytest.mark.parametrize("address", [PUBLIC, CIRCUIT, NAME, "/ip6/2a00::1/tcp/4001"])
def test_what_means_the_same_everywhere_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        HOME,
        OFFICE,
        LOOPBACK,
        "/ip4/100.64.3.4/tcp/1",
        "/ip6/fd00::1/tcp/1",
        "/ip6/fe80::1/tcp/1",
        "/ip6/::1/tcp/1",
        "/ip4/0.0.0.0/tcp/1",
        "/ip4/169.254.1.1/tcp/1",
        "/ip4/224.0.0.1/tcp/1",
        "/ip4/5.5.5/tcp/1",
        "/unix/socket",
        "",
    ],
)
def test_what_means_something_else_elsewhere_is_not(address: str) -> None:
    assert not is_public(address)


def test_a_direct_way_is_dialled_before_a_relay_and_a_strangers_network_never() -> None:
    """In another household the same private address is another machine."""
    said = (CIRCUIT, HOME, PUBLIC, LOOPBACK, NAME, PUBLIC)
    assert worth_dialling(said, ["/ip4/5.5.5.9/tcp/4001"]) == (PUBLIC, NAME, CIRCUIT)
    assert worth_dialling(said, ["/ip4/192.168.1.11/tcp/4001", LOOPBACK]) == (HOME, PUBLIC, NAME, CIRCUIT)
    assert worth_dialling((OFFICE, HOME), [OFFICE]) == (OFFICE,)
    assert worth_dialling((PUBLIC, OFFICE), [OFFICE, "/ip4/5.5.5.9/tcp/1"]) == (PUBLIC,)
    assert worth_dialling((PUBLIC, OFFICE), [OFFICE, "/ip4/5.5.5.7/tcp/2"]) == (PUBLIC, OFFICE)
    assert worth_dialling(said, [LOOPBACK]) == (PUBLIC, LOOPBACK, NAME, CIRCUIT)
    assert worth_dialling((HOME,), ["/ip4/192.168.1.1/tcp/1/p2p/R/p2p-circuit/p2p/Q"]) == ()


def test_public_addresses_are_said_first_and_this_machines_own_only_if_there_is_nothing_else() -> None:
    assert to_say([LOOPBACK, HOME, CIRCUIT, PUBLIC, PUBLIC]) == (PUBLIC, CIRCUIT, HOME)
    assert to_say([LOOPBACK]) == (LOOPBACK,)
    assert len(to_say(f"/ip4/5.5.5.{n}/tcp/1" for n in range(20))) == ADDRESSES_MAX
    assert to_say(["/dns4/" + "x" * ADDRESS_CHARS_MAX]) == ()


@given(
    st.lists(st.text(max_size=40) | st.sampled_from([PUBLIC, HOME, CIRCUIT, LOOPBACK])), st.lists(st.text(max_size=40))
)
def test_no_address_that_a_peer_says_makes_us_fail(said: list[str], own: list[str]) -> None:
    assert set(worth_dialling(said, own)) <= set(said)
    assert all(ip_of(address) is None or address.startswith("/ip") for address in said)


def test_the_last_word_counts_and_silence_takes_nothing_back() -> None:
    contacts, peer = Contacts(), PeerId("peer")
    assert contacts.of(peer) is NOWHERE
    contacts.note(peer, Contact((HOME,)))
    contacts.note(peer, Contact((PUBLIC,), True, "public"))
    contacts.note(peer, Contact())
    assert contacts.of(peer) == Contact((PUBLIC,), True, "public")
    assert contacts.public() == (peer,)


def test_whoever_spoke_longest_ago_is_forgotten_first() -> None:
    contacts = Contacts()
    for number in range(CONTACTS_MAX):
        contacts.note(PeerId(f"peer-{number}"), Contact((PUBLIC,)))
    contacts.note(PeerId("peer-0"), Contact((HOME,)))
    contacts.note(PeerId("another"), Contact((PUBLIC,)))
    assert contacts.of(PeerId("peer-0")) == Contact((HOME,))
    assert contacts.of(PeerId("peer-1")) is NOWHERE
