"""Multiaddrs and join strings: what is accepted, and what each kind of damage is called."""

from __future__ import annotations

import dataclasses
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.node.p2p.addresses import (
    JOIN_ADDRESSES_MAX,
    Endpoint,
    JoinString,
    check_listen_port,
    endpoint_of,
    is_loopback,
    parse_join,
    parse_multiaddr,
    peer_id_in,
)
from understudy.protocol.errors import NetworkError, SettingsError
from understudy.protocol.ids import PeerId

PEER = PeerId("QmaLSUhx7EAB8DTShrFLU3fv8HDCR5ZSx822Urrcje2CjC")
ADDRESS = f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}"
JOIN = JoinString(
    "tiny-0123456789ab", "0123456789ab" + "f" * 52, PEER, (ADDRESS, f"/ip6/2001:db8::1/tcp/4001/p2p/{PEER}")
)


@pytest.mark.parametrize(
    "text",
    [
        ADDRESS,
        f"/dns4/seed.example.org/tcp/4001/p2p/{PEER}",
        f"/ip4/192.0.2.7/udp/4001/quic-v1/p2p/{PEER}",
        f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
    ],
)
def test_an_address_to_dial(text: str) -> None:
    assert parse_multiaddr(text, needs_peer_id=True) == text
    assert peer_id_in(text) == PEER


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not an address"),
        ("//", "is not an address"),
        ("192.0.2.7:4001", "is not an address"),
        ("/ip4/192.0.2.999/tcp/4001", "is not an address"),
        ("/ip4/192.0.2.7/tcp/99999", "is not an address"),
        ("/ip4/192.0.2.7/tcp/4001/p2p/junk", "is not an address"),
        ("/ip4/192.0.2.7\n/tcp/4001", "is not an address"),
        ("/ip4/" + "1" * 9000, "is not an address"),
        ("/ip4/192.0.2.7/tcp/4001", "must end with /p2p/"),
        (f"/ip4/192.0.2.7/p2p/{PEER}", "has no port"),
        (f"/ip4/192.0.2.7/udp/4001/p2p/{PEER}", "without /quic-v1"),
        (f"/ip4/192.0.2.7/tcp/0/p2p/{PEER}", "has port 0"),
        (f"/tcp/4001/p2p/{PEER}", "must begin with"),
    ],
)
def test_what_cannot_be_dialled_is_explained(text: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as raised:
        parse_multiaddr(text, needs_peer_id=True)
    assert "\n" not in str(raised.value)


def test_a_listen_address_may_leave_the_port_open_but_an_announced_one_may_not() -> None:
    text = "/ip4/0.0.0.0/tcp/0"
    assert parse_multiaddr(text, needs_peer_id=False, accepts_port_zero=True) == text
    with pytest.raises(SettingsError, match="port 0"):
        parse_multiaddr(text, needs_peer_id=False)


def test_ones_own_address_has_no_peer_id() -> None:
    with pytest.raises(SettingsError, match="must not contain /p2p/"):
        parse_multiaddr(ADDRESS, needs_peer_id=False)


def test_where_an_address_points() -> None:
    assert endpoint_of(ADDRESS) == Endpoint("192.0.2.7", "ip4", "tcp", 4001)
    assert endpoint_of("/dns6/a.example/udp/1/quic-v1") == Endpoint("a.example", "dns6", "udp", 1)


@pytest.mark.parametrize(
    "text", ["/ip4/127.0.0.1/tcp/1", "/ip4/127.9.9.9/tcp/1", "/ip6/::1/tcp/1", "/dns4/localhost/tcp/1"]
)
def test_loopback(text: str) -> None:
    assert is_loopback(text)
    assert not is_loopback(ADDRESS)


def test_a_join_string_is_one_printable_word_and_comes_back() -> None:
    text = str(JOIN)
    assert text.isprintable()
    assert len(text.split()) == 1
    assert parse_join(f"  {text}\n") == JOIN


@given(st.integers(min_value=0, max_value=len(str(JOIN)) - 1))
def test_a_join_string_cut_short_is_refused_or_lacks_only_whole_addresses(length: int) -> None:
    kept = str(JOIN)[:length]
    if kept == str(dataclasses.replace(JOIN, addresses=JOIN.addresses[:1])):
        assert parse_join(kept).addresses == JOIN.addresses[:1]
        return
    with pytest.raises(SettingsError) as raised:
        parse_join(kept)
    assert "\n" not in str(raised.value)


@given(st.text(max_size=300))
def test_any_text_is_a_join_string_or_a_settings_error(text: str) -> None:
    for candidate in (text, f"understudy:{text}", f"understudy:1:{text}", f"understudy:2:{text}"):
        with pytest.raises(SettingsError):
            parse_join(candidate)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("understudy:", "", "not a join string"),
        (":1:", ":3:", "version '3'"),
        (":1:", ":2:", "its invite cannot be read|ends too early"),
        ("f" * 52, "f" * 51, "digest must be 64"),
        ("0123456789ab" + "f" * 52, "0123456789AB" + "F" * 52, "digest must be 64"),
        ("tiny-0123456789ab", "tiny 0123456789ab", "run id"),
        ("tiny-0123456789ab", "tiny-0123456789ac", "run id and its digest do not belong together"),
        (f":{PEER}:", ":0OIl:", "PeerID"),
        (f"/p2p/{PEER},", ",", "must end with /p2p/"),
        (str(JOIN)[-20:], "", "not an address"),
        ("/ip4/192.0.2.7", "/ip4/192.0.2", "not an address"),
    ],
)
def test_each_kind_of_damage_has_its_name(old: str, new: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        parse_join(str(JOIN).replace(old, new))


def test_a_join_string_has_bounds() -> None:
    with pytest.raises(SettingsError, match="at most"):
        parse_join(str(dataclasses.replace(JOIN, addresses=(ADDRESS,) * (JOIN_ADDRESSES_MAX + 1))))
    with pytest.raises(SettingsError, match="at most"):
        parse_join(str(dataclasses.replace(JOIN, addresses=(ADDRESS,) * 200)))
    with pytest.raises(SettingsError, match="no address"):
        parse_join(str(dataclasses.replace(JOIN, addresses=())))


def test_a_port_in_use_is_noticed_and_a_free_one_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(NetworkError, match=f"port {port} is in use"):
            check_listen_port(f"/ip4/127.0.0.1/tcp/{port}")
    check_listen_port(f"/ip4/127.0.0.1/tcp/{port}")
    check_listen_port("/ip4/127.0.0.1/tcp/0")


def test_a_port_shared_by_another_daemon_is_in_use() -> None:
    """libp2p listens with SO_REUSEPORT, so a second daemon would start without complaint."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        with pytest.raises(NetworkError, match="in use"):
            check_listen_port(f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}")


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(SettingsError, match="no address 192"):
        check_listen_port("/ip4/192.0.2.7/tcp/4001")
