"""Invites, memberships and what was revoked, with signatures that are made up: a hash of who signs and what."""

from __future__ import annotations

import contextlib
import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.protocol.admission.invite import (
    LABEL_CHARS_MAX,
    SIGNATURE_BYTES_MAX,
    TICKET_CHARS_MAX,
    Charter,
    Invite,
    Ticket,
    decode_ticket,
    membership_bytes,
    revocation_bytes,
)
from understudy.protocol.admission.membership import (
    MEMBERSHIP_BYTES_MAX,
    Member,
    Membership,
    check_membership,
    objection,
)
from understudy.protocol.admission.presence import PRESENCE_BYTES_MAX, Presence, decode_presence
from understudy.protocol.admission.revocation import (
    REVOCATIONS_BYTES_MAX,
    REVOKED_MAX,
    RevocationList,
    decode_revocations,
    newer,
)
from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.ids import PeerId

FOUNDER, ALICE, BOB = PeerId("QmFounder"), PeerId("QmAlice"), PeerId("QmBob")
DIGEST, OTHER_RUN = "ab" * 32, "cd" * 32
KEY, OTHER_KEY = b"k" * 32, b"o" * 32


def sign(who: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, key=who[:32], digest_size=64).digest()


CHARTER = Charter(
    DIGEST,
    FOUNDER,
    lambda data, signature: signature == sign(FOUNDER.encode(), data),
    lambda key, data, signature: signature == sign(key, data),
)


def invited(role: str = "volunteer", expires_at: int = 0, digest: str = DIGEST, key: bytes = KEY) -> Invite:
    invite = Invite(key, "alice", role, expires_at)  # type: ignore[arg-type]
    return msgspec.structs.replace(invite, signature=sign(FOUNDER.encode(), invite.signed_bytes(digest)))


def shown(invite: Invite, peer: PeerId = ALICE, digest: str = DIGEST, key: bytes = KEY) -> bytes:
    return Membership(invite, sign(key, membership_bytes(digest, invite.key, peer))).encode()


def revocations(version: int, invites: tuple[bytes, ...] = (), peers: tuple[PeerId, ...] = ()) -> RevocationList:
    signature = sign(FOUNDER.encode(), revocation_bytes(DIGEST, version, invites, peers))
    return RevocationList(version, invites, peers, signature)


def is_member(encoded: bytes, peer: PeerId = ALICE) -> bool:
    try:
        check_membership(encoded, peer, CHARTER)
    except RemoteProtocolError:
        return False
    return True


# --- memberships ---------------------------------------------------------------------------------


def test_an_invited_peer_is_a_member_and_so_is_the_founder() -> None:
    member = check_membership(shown(invited("observer", 99)), ALICE, CHARTER)
    assert member == Member(ALICE, "observer", "alice", KEY, 99)
    assert check_membership(b"", FOUNDER, CHARTER) == Member(FOUNDER)


def test_who_shows_nothing_is_a_stranger() -> None:
    assert not is_member(b"")


def test_a_membership_is_of_one_peer() -> None:
    assert not is_member(shown(invited(), BOB), ALICE)


def test_a_membership_is_of_one_run() -> None:
    assert not is_member(shown(invited(digest=OTHER_RUN), digest=OTHER_RUN))
    assert not is_member(shown(invited(), digest=OTHER_RUN))


def test_only_the_founder_invites_and_only_the_invites_key_uses_it() -> None:
    unsigned = msgspec.structs.replace(invited(), signature=sign(ALICE.encode(), invited().signed_bytes(DIGEST)))
    assert not is_member(shown(unsigned))
    assert not is_member(shown(invited(), key=OTHER_KEY))


@pytest.mark.parametrize("change", [{"role": "volunteer"}, {"expires_at": 0}, {"label": "mallory"}, {"key": OTHER_KEY}])
def test_what_an_invite_says_is_signed(change: dict[str, object]) -> None:
    forged = msgspec.structs.replace(invited("observer", 99), **change)
    assert not is_member(shown(forged, key=forged.key))


def test_no_signature_is_one_of_another_kind() -> None:
    """Whatever somebody gets signed as one thing is not the beginning of another."""
    made = [
        invited().signed_bytes(DIGEST),
        membership_bytes(DIGEST, KEY, ALICE),
        revocation_bytes(DIGEST, 1, (KEY,), (ALICE,)),
    ]
    assert all(DIGEST in data.hex() and b"understudy " in data for data in made)
    assert len({data[:24] for data in made}) == len(made)


def test_an_invite_ends_and_is_taken_back() -> None:
    member = check_membership(shown(invited(expires_at=100)), ALICE, CHARTER)
    nothing = RevocationList()
    assert [objection(member, nothing, now) for now in (99.0, 100.0)] == ["", "expired"]
    assert objection(Member(ALICE, invite_key=KEY), nothing, 1e12) == ""
    assert objection(member, revocations(1, (KEY,)), 0.0) == "revoked"
    assert objection(member, revocations(1, (), (ALICE,)), 0.0) == "revoked"
    assert objection(member, revocations(1, (OTHER_KEY,), (BOB,)), 0.0) == ""


# --- lists ---------------------------------------------------------------------------------------


def test_a_list_is_the_founders() -> None:
    said = revocations(3, (KEY,), (BOB,))
    assert decode_revocations(said.encode(), CHARTER) == said
    for forged in (
        msgspec.structs.replace(said, version=4),
        msgspec.structs.replace(said, peers=()),
        msgspec.structs.replace(said, invites=()),
        RevocationList(1, (KEY,), (), sign(ALICE.encode(), revocation_bytes(DIGEST, 1, (KEY,), ()))),
    ):
        with pytest.raises(RemoteProtocolError):
            decode_revocations(forged.encode(), CHARTER)


@given(st.lists(st.integers(0, 9), max_size=8))
def test_a_list_is_never_rolled_back(versions: list[int]) -> None:
    known = RevocationList()
    for version in versions:
        before, known = known, newer(known, revocations(version))
        assert known.version >= before.version
    assert known.version == max([0, *versions])


def test_the_next_list_keeps_what_was_revoked() -> None:
    first = RevocationList().with_more((KEY,), ())
    second = first.with_more((KEY,), (BOB,))
    assert (second.version, second.invites, second.peers) == (2, (KEY,), (BOB,))


# --- bounds --------------------------------------------------------------------------------------


def test_the_largest_of_each_kind_fits() -> None:
    peer = PeerId("Q" * 128)
    invite = Invite(KEY, "l" * LABEL_CHARS_MAX, "volunteer", 2**40, bytes(SIGNATURE_BYTES_MAX))
    membership = Membership(invite, bytes(64)).encode()
    assert len(membership) <= MEMBERSHIP_BYTES_MAX
    keys = tuple(number.to_bytes(32, "big") for number in range(REVOKED_MAX))
    listed = RevocationList(2**32, keys, (peer,) * REVOKED_MAX, bytes(SIGNATURE_BYTES_MAX)).encode()
    assert len(listed) <= REVOCATIONS_BYTES_MAX
    presence = Presence(DIGEST, membership, 2**32, listed, "another run")
    assert len(presence.encode()) <= PRESENCE_BYTES_MAX
    assert decode_presence(presence.encode()) == presence
    ticket = Ticket(invite, KEY, bytes(1024))
    assert len(ticket.encode()) <= TICKET_CHARS_MAX
    assert decode_ticket(ticket.encode()) == ticket


@given(st.text(max_size=64) | st.binary(max_size=96).map(lambda data: data.hex()))
def test_whatever_stands_where_an_invite_should_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode_ticket(text)


GARBAGE = st.recursive(
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=70) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=12,
)


@given(st.binary(max_size=200) | GARBAGE.map(msgspec.msgpack.encode))
def test_garbage_is_no_membership_no_list_and_no_presence(encoded: bytes) -> None:
    assert not is_member(encoded)
    with pytest.raises(RemoteProtocolError):
        decode_revocations(encoded, CHARTER)
    with contextlib.suppress(RemoteProtocolError):
        decode_presence(encoded)


@given(st.data())
def test_a_flipped_bit_makes_a_stranger(data: st.DataObject) -> None:
    encoded = bytearray(shown(invited(expires_at=12345)))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert not is_member(bytes(encoded))


@pytest.mark.parametrize("decode", [decode_presence, lambda data: decode_revocations(data, CHARTER)])
def test_what_is_too_long_is_not_decoded(decode: object) -> None:
    with pytest.raises(RemoteProtocolError, match="at most"):
        decode(bytes(PRESENCE_BYTES_MAX + 1))  # type: ignore[operator]
