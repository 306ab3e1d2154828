"""What peers show each other with every call of the DHT: that they belong here, and how new their list is.

So a list of what was revoked needs no place in the DHT that others could fill, and nobody who refreshes it: whoever
speaks with somebody that knows a newer one has it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from understudy.protocol.admission.invite import decode_bounded
from understudy.protocol.admission.membership import MEMBERSHIP_BYTES_MAX, Objection
from understudy.protocol.admission.revocation import REVOCATIONS_BYTES_MAX, Version

PRESENCE_BYTES_MAX = MEMBERSHIP_BYTES_MAX + REVOCATIONS_BYTES_MAX + 256


class Presence(msgspec.Struct, frozen=True, array_like=True):
    """Goes with every call of the DHT, and with every answer."""

    run: Annotated[str, Meta(max_length=64)]
    """The run's digest."""
    membership: Annotated[bytes, Meta(max_length=MEMBERSHIP_BYTES_MAX)] = b""
    version: Version = 0
    """Of the newest list of what was revoked that it knows."""
    revocations: Annotated[bytes, Meta(max_length=REVOCATIONS_BYTES_MAX)] = b""
    """That list, for whoever knows an older one."""
    refusal: Objection = ""
    """Of an answer: why there is none."""

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)


def decode_presence(encoded: bytes) -> Presence:
    """Raises `RemoteProtocolError`."""
    return decode_bounded(encoded, Presence, PRESENCE_BYTES_MAX)
