"""How a relayed link becomes a direct one: what is tried, when, and when no more.

libp2p punches by itself when a relayed connection begins, once: if one of the two sides did not know its own outside
address yet, nothing comes of it. So the connection is made anew after a while, and streams that were opened on the
relay are opened again when there is a direct way, for libp2p leaves them where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from understudy.protocol.events import LinkChanged
from understudy.protocol.ids import PeerId
from understudy.protocol.reach.addresses import is_relayed
from understudy.protocol.reach.contacts import Contacts
from understudy.protocol.wire.contact import Contact, Reachability, is_private

FIRST_TRY_S = 4.0
"""How long libp2p has to punch by itself: it took 10 ms where both sides were ready."""
TRY_AGAIN_S = (8.0, 15.0, 60.0, 300.0, 1800.0)
"""From one try to the next: each breaks the link for a moment, so they become rarer; the last for ever."""

REMEMBERED_S = 3600.0
"""How often was tried stays known so long after the last link: links end when they idle, and begin again."""


@dataclass(frozen=True, slots=True)
class Reopen:
    """Open the streams to this peer again: there is a better connection than the one that they are on."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Redial:
    """End the connection to this peer and make it anew."""

    peer: PeerId


Step = Reopen | Redial | LinkChanged


@dataclass(slots=True)
class _Rope:
    """What is remembered of one peer."""

    told: Literal["direct", "relayed"] | None = None
    tries: int = 0
    try_at: float = 0.0
    seen_at: float = 0.0
    is_on_relay: bool = False
    """Streams may have been opened on a relayed connection."""


class Climber:
    """Watches the connections to the peers that we have links to."""

    def __init__(self, me: PeerId, reachability: Reachability) -> None:
        self._me, self.reachability = me, reachability
        self._ropes: dict[PeerId, _Rope] = {}

    def look(
        self, now: float, linked: Iterable[PeerId], connections: Mapping[PeerId, tuple[str, ...]], contacts: Contacts
    ) -> list[Step]:
        """What to do, given whom we have links to and at which addresses libp2p is connected to whom."""
        steps: list[Step] = []
        self._ropes = {peer: rope for peer, rope in self._ropes.items() if now - rope.seen_at < REMEMBERED_S}
        for peer in sorted(set(linked)):
            addresses = connections.get(peer, ())
            direct = [address for address in addresses if not is_relayed(address)]
            rope = self._ropes.setdefault(peer, _Rope())
            rope.seen_at = now
            if direct:
                steps += self._on_direct(peer, rope, direct[0])
            elif addresses:
                steps += self._on_relayed(peer, rope, addresses[0], contacts.of(peer), now)
        return steps

    @staticmethod
    def _on_direct(peer: PeerId, rope: _Rope, address: str) -> list[Step]:
        steps: list[Step] = []
        if rope.told != "direct":
            reason = "dialled" if rope.told is None else "the relay is needed no more"
            steps.append(LinkChanged(peer, "direct", reason, address))
        if rope.is_on_relay:
            steps.append(Reopen(peer))
        rope.told, rope.is_on_relay, rope.tries = "direct", False, 0
        return steps

    def _on_relayed(self, peer: PeerId, rope: _Rope, address: str, contact: Contact, now: float) -> list[Step]:
        steps: list[Step] = []
        if rope.told != "relayed":
            reason = why_relayed(self.reachability, contact.reachability)
            steps.append(LinkChanged(peer, "relayed", reason, address))
            rope.try_at = now + FIRST_TRY_S
        rope.told, rope.is_on_relay = "relayed", True
        if now >= rope.try_at and self._is_ours_to_try(peer, contact.reachability):
            rope.try_at = now + TRY_AGAIN_S[min(rope.tries, len(TRY_AGAIN_S) - 1)]
            rope.tries += 1
            steps.append(Redial(peer))
        return steps

    def _is_ours_to_try(self, peer: PeerId, other: Reachability) -> bool:
        """One side makes the connection anew: who can dial the other; of two who cannot, the lower peer id."""
        if other == "public":
            return True
        if not is_private(self.reachability) or other == "unknown":
            return False  # it can dial us, and we perhaps not it
        return "relayed" not in (self.reachability, other) and self._me < peer


def why_relayed(mine: Reachability, other: Reachability) -> str:
    """For a person."""
    if other == "public":
        return "it was reached through a relay first; we dial it directly now"
    if other == "unknown":
        return "it does not say how it can be dialled"
    if not is_private(mine):
        return "we cannot dial it; it dials us"
    if "relayed" in (mine, other):
        whose = "our router" if mine == "relayed" else "its router"
        return f"{whose} gives each connection another port (symmetric NAT), so nobody can punch through"
    return "both are behind routers; punching through is tried"
