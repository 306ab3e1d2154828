"""A membership: founder -> invite -> PeerID. Anybody who knows the founder checks it without asking anybody.

What depends on nothing but the run, `check_membership` judges, once for each; what changes, expiry and revocation,
`objection` judges whenever it matters.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from understudy.protocol.admission.invite import (
    NEVER,
    Charter,
    Invite,
    Role,
    decode_bounded,
    has_expired,
    membership_bytes,
)
from understudy.protocol.admission.revocation import RevocationList
from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.ids import PeerId

MEMBERSHIP_BYTES_MAX = 768
MEMBERSHIP_LENGTH = struct.Struct("<H")
INVITE_SIGNATURE_BYTES = 64

Objection = Literal["", "stranger", "another run", "expired", "revoked", "observer"]
"""Why a peer is refused; empty: it is not. It goes over the wire, so it says nothing but what kind of reason it is."""


class Membership(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An invite, and the signature of its private key for one peer. Whose it is, libp2p has authenticated."""

    invite: Invite
    signature: Annotated[bytes, Meta(min_length=INVITE_SIGNATURE_BYTES, max_length=INVITE_SIGNATURE_BYTES)]

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)


def behind_its_length(encoded: bytes) -> bytes:
    """A membership, or none, as it lies in front of something else: of a stream, or of a record."""
    return MEMBERSHIP_LENGTH.pack(len(encoded)) + encoded


@dataclass(frozen=True, slots=True)
class Member:
    """A peer whose membership was verified. The founder is one without an invite."""

    peer: PeerId
    role: Role = "volunteer"
    label: str = ""
    invite_key: bytes = b""
    expires_at: int = NEVER


def check_membership(encoded: bytes, peer: PeerId, charter: Charter) -> Member:
    """Whose membership of this run these bytes are, if ``peer``'s. Raises `RemoteProtocolError`.

    The founder shows none: its PeerID is in everybody's join string.
    """
    if not encoded and peer == charter.founder:
        return Member(peer)
    membership = decode_bounded(encoded, Membership, MEMBERSHIP_BYTES_MAX)
    invite = membership.invite
    if not charter.is_founders(invite.signed_bytes(charter.digest), invite.signature):
        raise RemoteProtocolError(f"the invite of {peer} is not signed by this run's founder")
    if not charter.is_of_key(invite.key, membership_bytes(charter.digest, invite.key, peer), membership.signature):
        raise RemoteProtocolError(f"the invite that {peer} shows was not given to it")
    return Member(peer, invite.role, invite.label, invite.key, invite.expires_at)


def objection(member: Member, revoked: RevocationList, now: float) -> Objection:
    """Why this member is out by now. ``now``: unix seconds."""
    if member.peer in revoked.peers or member.invite_key in revoked.invites:
        return "revoked"
    return "expired" if has_expired(member.expires_at, now) else ""
