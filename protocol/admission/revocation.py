"""What the founder took back: invites, with all who came in by them, and single peers. One list a run, only growing.

A list replaces those of a lower version. So nobody is let in again by an old one, and it is enough to know the newest.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from understudy.protocol.admission.invite import Charter, FounderSignature, Key, decode_bounded, revocation_bytes
from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.ids import PeerId
from understudy.protocol.wire.fields import NamedPeer

REVOKED_MAX = 256
"""Invites, and peers, on one list. A list is at most `REVOCATIONS_BYTES_MAX` then."""
REVOCATIONS_BYTES_MAX = 48 * 1024
VERSION_MAX = 2**32

Version = Annotated[int, Meta(ge=0, le=VERSION_MAX)]


class RevocationList(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Signed by the founder; version 0 is the empty list that nobody signs."""

    version: Version = 0
    invites: Annotated[tuple[Key, ...], Meta(max_length=REVOKED_MAX)] = ()
    peers: Annotated[tuple[NamedPeer, ...], Meta(max_length=REVOKED_MAX)] = ()
    signature: FounderSignature = b""

    def signed_bytes(self, digest: str) -> bytes:
        """What the founder signs."""
        return revocation_bytes(digest, self.version, self.invites, self.peers)

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    def with_more(self, invites: tuple[bytes, ...], peers: tuple[PeerId, ...]) -> RevocationList:
        """The next version, not signed yet."""
        return RevocationList(
            self.version + 1,
            tuple(dict.fromkeys((*self.invites, *invites))),
            tuple(dict.fromkeys((*self.peers, *peers))),
        )


def decode_revocations(encoded: bytes, charter: Charter) -> RevocationList:
    """The list, if this run's founder signed it. Raises `RemoteProtocolError`."""
    revoked = decode_bounded(encoded, RevocationList, REVOCATIONS_BYTES_MAX)
    if not charter.is_founders(revoked.signed_bytes(charter.digest), revoked.signature):
        raise RemoteProtocolError("a list of what was revoked that the founder did not sign")
    return revoked


def newer(known: RevocationList, said: RevocationList) -> RevocationList:
    """The one that counts."""
    return said if said.version > known.version else known
