"""Who owns a DHT record: the owner's public key is part of the subkey.

hivemind protects a record whose subkey contains ``[owner:ssh-rsa ...]``: peers store and return it
only with that key's signature over key, subkey, value and expiration. Our subkeys end with that
tag, and the PeerID of a record's owner is computed from it, never read from the value.
"""

from __future__ import annotations

import functools
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from understudy.node.p2p.identity import peer_id_of
from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.ids import PeerId
from understudy.protocol.wire.records import RECORD_LIFETIME_MAX_S, RECORDS_PER_KEY_MAX

LIFETIME_MAX_S = RECORD_LIFETIME_MAX_S + 60.0
"""A record that expires later than this from now is not kept and not believed. Clocks may be apart by seconds."""
SUBKEY_BYTES_MAX = 64
RECORD_VALUE_BYTES_MAX = 32 * 1024
SIGNATURE_BYTES_MAX = 1024
"""A signature, or an owner tag, with its framing."""

_OWNER_TAG = re.compile(rb"\[owner:(ssh-rsa [A-Za-z0-9+/=]+)\]$")
_SALT = secrets.token_bytes(16)
_cached_peer_id_of = functools.lru_cache(maxsize=1024)(peer_id_of)


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """One subkey of a DHT key. The signature was checked; the owner is who signed."""

    owner: PeerId
    subkey: str
    value: bytes
    expiration: float
    """DHT time, in unix seconds."""


def is_owned(subkey: bytes) -> bool:
    """Whether the (encoded) subkey ends with an owner tag, so that a signature is demanded."""
    return _OWNER_TAG.search(subkey) is not None


def owned_records(entries: Mapping[bytes, tuple[bytes, float]], now: float) -> list[StoredRecord]:
    """The usable records among subkey -> (value, expiration): each owner's last word, in order of their owners.

    Of too many owners some are left out, and nobody can know whom that will hit (`_lot`).
    """
    last: dict[PeerId, StoredRecord] = {}
    for subkey, (value, expiration) in entries.items():
        signer = _signer_of(subkey)
        if signer is None or not isinstance(value, bytes) or not now < expiration <= now + LIFETIME_MAX_S:
            continue
        record = StoredRecord(*signer, value, expiration)
        if record.owner not in last or _age(last[record.owner]) < _age(record):
            last[record.owner] = record
    owners = sorted(last) if len(last) <= RECORDS_PER_KEY_MAX else sorted(sorted(last, key=_lot)[:RECORDS_PER_KEY_MAX])
    return [last[owner] for owner in owners]


def _age(record: StoredRecord) -> tuple[float, str]:
    return (record.expiration, record.subkey)


def _lot(owner: PeerId) -> bytes:
    """A place in an order that is this process's own: nobody draws an identity that comes first everywhere."""
    return blake2b(owner.encode(), key=_SALT, digest_size=8).digest()


def owner_of(subkey: object) -> PeerId | None:
    """Who signed what is stored under this subkey; None: nobody can have."""
    signer = _signer_of(subkey)
    return signer and signer[0]


def owner_in_tag(subkey: bytes) -> PeerId | None:
    """Whose record a subkey says to be of, encoded as hivemind sends it or not; None if it is nobody's."""
    tag = _OWNER_TAG.search(subkey)
    try:
        return _cached_peer_id_of(tag[1]) if tag is not None else None
    except RemoteProtocolError:
        return None


def _signer_of(subkey: object) -> tuple[PeerId, str] | None:
    if not isinstance(subkey, bytes):
        return None
    tag = _OWNER_TAG.search(subkey)
    if tag is None or tag.start() > SUBKEY_BYTES_MAX:
        return None
    try:
        return _cached_peer_id_of(tag[1]), subkey[: tag.start()].decode()
    except (RemoteProtocolError, UnicodeDecodeError):
        return None
