"""What peers said last of where they can be dialled."""

from __future__ import annotations

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

    def relays(self) -> tuple[PeerId, ...]:
        """Who relays for others and can be dialled, the latest to speak first."""
        able = [peer for peer, contact in self._known.items() if contact.relays and contact.reachability == "public"]
        return tuple(reversed(able))

    def public(self) -> tuple[PeerId, ...]:
        """Who can be dialled by everybody, the latest to speak first."""
        return tuple(reversed([peer for peer, contact in self._known.items() if contact.reachability == "public"]))
