"""Where a peer can be dialled, in its own words: part of its signed records and of the first message of its links.

What a peer says of itself is taken as it says it. A wrong address costs a dial: libp2p checks who answers.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from understudy.protocol.wire.fields import VISIBLE

ADDRESSES_MAX = 8
ADDRESS_CHARS_MAX = 256
Address = Annotated[str, Meta(min_length=1, max_length=ADDRESS_CHARS_MAX, pattern=VISIBLE)]
"""A multiaddr. That it is one is checked where it is dialled."""

Reachability = Literal["unknown", "public", "punchable", "relayed"]
"""``public``: whoever has its address can dial it. ``punchable``: its router lets others in whom it dials at the same
moment. ``relayed``: nothing reaches it but through a peer that relays. ``unknown``: it was not found out."""


def is_private(reachability: Reachability) -> bool:
    """Nobody can dial it without help."""
    return reachability in ("punchable", "relayed")


class Contact(msgspec.Struct, frozen=True, array_like=True):
    """How others get to a peer."""

    addresses: Annotated[tuple[Address, ...], Meta(max_length=ADDRESSES_MAX)] = ()
    """Multiaddrs, each with /p2p/<PeerID>; those through a relay with /p2p-circuit. Empty: none are said."""
    relays: bool = False
    """It relays for peers that cannot be dialled."""
    reachability: Reachability = "unknown"
