"""How this node gets to the others, told to people: over which way, and whom it does not get to. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.protocol.events import CutOff, LinkChanged, LinkFailed, ReachabilityFound
from understudy.protocol.ids import PeerId
from understudy.protocol.node_state import NodeState

TOLD_AFTER_S = 10.0
"""An owner that no link gets to for so long is spoken of: a restart or a punch takes less."""
FORGOTTEN_AFTER_S = 20.0
"""Nobody tried to get to it for so long: whether it can be reached is not known any more."""
TOLD_AGAIN_S = 60.0
FAILURES_MAX = 64
"""Peers that are remembered as not reached; who failed longest ago is forgotten first."""


@dataclass(slots=True)
class _Failing:
    """A peer that no link gets to."""

    since: float
    reason: str
    last_at: float
    told_at: float | None = None


class Ways:
    """What the shell says of links, made into events."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._failing: dict[PeerId, _Failing] = {}

    def on_event(self, event: ReachabilityFound | LinkChanged | LinkFailed | CutOff) -> None:
        """What the shell saw."""
        match event:
            case ReachabilityFound(reachability, reason, seen_at):
                self._state.reachability = reachability
                self._state.emit("peer.reachable", reachability=reachability, reason=reason, seen_at=seen_at)
            case LinkChanged():
                self._on_changed(event)
            case LinkFailed():
                self._on_failed(event)
            case CutOff(reason, advice):
                self._state.emit("peer.cut_off", reason=reason, advice=advice)

    def _on_changed(self, event: LinkChanged) -> None:
        self._failing.pop(event.peer, None)
        if event.way == "direct":
            self._state.emit("link.direct", to=event.peer, reason=event.reason, address=event.address)
        else:
            self._state.emit("link.relayed", to=event.peer, reason=event.reason, address=event.address)

    def _on_failed(self, event: LinkFailed) -> None:
        failing = self._failing.setdefault(event.peer, _Failing(self._state.now, event.reason, self._state.now))
        failing.reason, failing.last_at = event.reason, self._state.now
        if len(self._failing) > FAILURES_MAX:
            del self._failing[next(iter(self._failing))]

    def unreached(self) -> tuple[tuple[int, str], ...]:
        """The stages whose owners no link gets to, each with what was tried, as far as that was told."""
        told = {peer: failing for peer, failing in self._failing.items() if failing.told_at is not None}
        seats = [seat for seat in self._state.membership.seats() if seat.peer in told]
        return tuple((seat.stage, told[seat.peer].reason) for seat in seats)

    def on_heard(self, peer: PeerId) -> None:
        """Whoever speaks to us can be answered on the same connection."""
        self._failing.pop(peer, None)

    def on_tick(self) -> None:
        """Speak of owners that no link gets to, whether or not they count as alive."""
        if not self._failing:
            return
        now = self._state.now
        self._failing = {peer: f for peer, f in self._failing.items() if now - f.last_at < FORGOTTEN_AFTER_S}
        for seat in self._state.membership.seats():
            failing = self._failing.get(seat.peer)
            if failing is None or now - failing.since < TOLD_AFTER_S:
                continue
            if failing.told_at is None or now - failing.told_at >= TOLD_AGAIN_S:
                failing.told_at = now
                self._state.emit(
                    "peer.unreachable",
                    to=seat.peer,
                    to_stage=seat.stage,
                    reason=failing.reason,
                    seconds=now - failing.since,
                )
