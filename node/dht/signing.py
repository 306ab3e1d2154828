"""Who owns a DHT record: the owner's public key is part of the subkey.

hivemind protects a record whose subkey contains ``[owner:ssh-rsa ...]``: peers store and return it
only with that key's signature over key, subkey, value and expiration. Our subkeys end with that
tag, and the PeerID of a record's owner is computed from it, never read from the value.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from understudy.node.p2p.identity import peer_id_of
from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.ids import PeerId

SUBKEYS_READ_MAX = 256
SUBKEY_BYTES_MAX = 64
RECORD_VALUE_BYTES_MAX = 32 * 1024
SIGNATURE_BYTES_MAX = 1024
"""A signature, or an owner tag, with its framing."""

_OWNER_TAG = re.compile(rb"\[owner:(ssh-rsa [A-Za-z0-9+/=]+)\]$")
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
    """The usable records among subkey -> (value, expiration), in order of owner and subkey."""
    records = []
    for subkey, (value, expiration) in entries.items():
        owner = _owner_of(subkey)
        if owner is not None and isinstance(value, bytes) and now < expiration:
            records.append(StoredRecord(*owner, value, expiration))
    records.sort(key=lambda record: (record.owner, record.subkey))
    return records[:SUBKEYS_READ_MAX]


def owner_of(subkey: bytes) -> PeerId | None:
    """Whose record this subkey is of, encoded or not; None if it is nobody's."""
    tag = _OWNER_TAG.search(subkey)
    try:
        return _cached_peer_id_of(tag[1]) if tag is not None else None
    except RemoteProtocolError:
        return None


def _owner_of(subkey: object) -> tuple[PeerId, str] | None:
    if not isinstance(subkey, bytes):
        return None
    tag = _OWNER_TAG.search(subkey)
    if tag is None or tag.start() > SUBKEY_BYTES_MAX:
        return None
    try:
        return _cached_peer_id_of(tag[1]), subkey[: tag.start()].decode()
    except (RemoteProtocolError, UnicodeDecodeError):
        return None
