"""An invite: a key pair of its own that the founder signed. Whoever holds its private key may come in under any PeerID.

What is signed begins with what it is, so no signature can be taken for another kind's, and with the run's digest, so
none is worth anything in another run.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.ids import PeerId

LABEL_CHARS_MAX = 32
LABEL = r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z"
KEY_BYTES = 32
"""Of an Ed25519 key, public or private."""
SIGNATURE_BYTES_MAX = 512
"""Of the founder's RSA key: 256 with the 2048 bits that we make, 512 with the 4096 that we read."""
FOUNDER_KEY_BYTES_MAX = 1024
TICKET_BYTES_MAX = 2048
TICKET_CHARS_MAX = 4 * TICKET_BYTES_MAX // 3
EXPIRY_MAX_S = 2**40
"""In unix seconds; beyond it nobody's calendar goes."""
NEVER = 0

Role = Literal["volunteer", "observer"]
"""An observer reads the run's records and exports its weights; it holds no stage, and stores nothing."""
Key = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Label = Annotated[str, Meta(min_length=1, max_length=LABEL_CHARS_MAX, pattern=LABEL)]
Expiry = Annotated[int, Meta(ge=NEVER, le=EXPIRY_MAX_S)]
FounderSignature = Annotated[bytes, Meta(max_length=SIGNATURE_BYTES_MAX)]


def has_expired(expires_at: int, now: float) -> bool:
    """Both in unix seconds; `NEVER` never comes."""
    return expires_at != NEVER and expires_at <= now


_INVITE, _MEMBERSHIP, _REVOCATIONS = b"understudy invite 1", b"understudy membership 1", b"understudy revocations 1"


@dataclass(frozen=True, slots=True)
class Charter:
    """What everything here is checked against: the run, its founder, and how signatures are verified."""

    digest: str
    """Of the manifest: 64 hexadecimal digits."""
    founder: PeerId
    is_founders: Callable[[bytes, bytes], bool]
    """Whether the founder signed (data, signature)."""
    is_of_key: Callable[[bytes, bytes, bytes], bool]
    """Whether an Ed25519 key signed: (public key, data, signature)."""


class Invite(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The founder lets in whoever holds the private half of ``key``."""

    key: Key
    label: Label
    role: Role
    expires_at: Expiry
    """Unix seconds; 0: never."""
    signature: FounderSignature = b""

    def signed_bytes(self, digest: str) -> bytes:
        """What the founder signs."""
        return _bytes_to_sign(_INVITE, digest, (self.key, self.label, self.role, self.expires_at))


class Ticket(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a join string carries: the invite, its private key, and the founder's key, which signed it."""

    invite: Invite
    private_key: Key
    founder_key: Annotated[bytes, Meta(max_length=FOUNDER_KEY_BYTES_MAX)]
    """As in a manifest's record; it hashes to the founder's PeerID."""

    def encode(self) -> str:
        """Characters that any shell and any address leaves alone."""
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).rstrip(b"=").decode()


def decode_ticket(text: str) -> Ticket:
    """The inverse of `Ticket.encode`. Raises `RemoteProtocolError`."""
    if len(text) > TICKET_CHARS_MAX:
        raise RemoteProtocolError(f"an invite of {len(text)} characters; at most {TICKET_CHARS_MAX} are allowed")
    try:
        encoded = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise RemoteProtocolError("an invite with characters that an invite never has") from error
    return decode_bounded(encoded, Ticket, TICKET_BYTES_MAX)


Decoded = TypeVar("Decoded", bound=msgspec.Struct)


def decode_bounded(encoded: bytes, kind: type[Decoded], bytes_max: int) -> Decoded:
    """Decode what came from elsewhere. Raises `RemoteProtocolError`."""
    if len(encoded) > bytes_max:
        raise RemoteProtocolError(f"{kind.__name__} of {len(encoded)} bytes; at most {bytes_max} are allowed")
    try:
        return msgspec.msgpack.decode(encoded, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"a malformed {kind.__name__}: {error}") from error


def membership_bytes(digest: str, invite_key: bytes, peer: PeerId) -> bytes:
    """What an invite's private key signs for the peer that comes in with it."""
    return _bytes_to_sign(_MEMBERSHIP, digest, (invite_key, peer))


def revocation_bytes(digest: str, version: int, invites: tuple[bytes, ...], peers: tuple[PeerId, ...]) -> bytes:
    """What the founder signs of a list of what was taken back."""
    return _bytes_to_sign(_REVOCATIONS, digest, (version, invites, peers))


def _bytes_to_sign(kind: bytes, digest: str, fields: tuple[object, ...]) -> bytes:
    return msgspec.msgpack.encode((kind, bytes.fromhex(digest), *fields))
