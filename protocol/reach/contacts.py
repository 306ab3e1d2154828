"""What peers said last of where they can be dialled."""

from __future__ import annotations

from collections.abc import Iterable

from understudy.protocol.ids import PeerId
from understudy.protocol.wire.contact import Contact

CONTACTS_MAX = 1024
"""Peers whose contact is remembered; whoever spoke longest ago is forgotten first."""
NOWHERE = Contact()


class Contacts:
    """The last word of each peer. Bounded, whoever speaks."""

    def __init__(self) -> None:
        self._known: dict[PeerId, Contact] = {}

    def note(self, peer: PeerId, contact: Contact) -> None:
        """The peer said this of itself. One that says nothing takes nothing back."""
        if not contact.addresses:
            return
        self._known.pop(peer, None)
        self._known[peer] = contact
        if len(self._known) > CONTACTS_MAX:
            del self._known[next(iter(self._known))]

    def of(self, peer: PeerId) -> Contact:
        """What it said; `NOWHERE` if nothing."""
        return self._known.get(peer, NOWHERE)

    def public(self) -> tuple[PeerId, ...]:
        """Who can be dialled by everybody, the latest to speak first."""
        return tuple(reversed([peer for peer, contact in self._known.items() if contact.reachability == "public"]))


FORGIVEN_AFTER_S = 120.0
"""A peer that could not be dialled is left alone for so long."""


class Patience:
    """Whom not to dial again yet: one that never answers must not keep us from those who would."""

    def __init__(self) -> None:
        self._failed_at: dict[PeerId, float] = {}

    def failed(self, peer: PeerId, now: float) -> None:
        """It could not be dialled."""
        self._failed_at[peer] = now
        if len(self._failed_at) > CONTACTS_MAX:
            del self._failed_at[next(iter(self._failed_at))]

    def due(self, peers: Iterable[PeerId], now: float) -> list[PeerId]:
        """Those of them that did not fail of late."""
        return [peer for peer in peers if now - self._failed_at.get(peer, float("-inf")) >= FORGIVEN_AFTER_S]
