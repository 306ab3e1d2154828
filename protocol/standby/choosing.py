"""Which peers are the holders of our stage, as we see the swarm now."""

from __future__ import annotations

from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.membership.placement import near_holders
from understudy.protocol.node_state import NodeState
from understudy.protocol.standby.holders import choose_holders, keepers_of, spare_for_driver
from understudy.protocol.wire.fields import Part
from understudy.protocol.wire.records import SpareRecord

REFUSAL_S = 60.0
"""A holder that has no room is not asked again for so long."""
IDLENESS_S = 600.0
"""Nor one that does nothing, for so long. Forty such spares cost seconds of each minute's copies, no more."""


class Holders:
    """The peers that are to hold copies of the stage that we own."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._current: tuple[PeerId, ...] = ()
        self._refused_until: dict[PeerId, float] = {}
        self._spares_after = float("-inf")
        """Until then we do without spares: one did nothing, and there may be many like it."""

    def of(self, part: Part) -> tuple[PeerId, ...]:
        """Who is to hold a part of our stage now."""
        if self._state.stage == DRIVER_STAGE:
            return self._of_driver(part)
        state, stage = self._state, self._state.stage
        spares = [PeerId(spare.peer) for spare in self._spares() if spare.can_hold_blocks]
        owners = [state.membership.serving_peer(near) for near in near_holders(stage, state.manifest.last_stage)]
        self._current = choose_holders(
            stage,
            state.manifest.recovery.standby_copies,
            [spare for spare in spares if self._is_willing(spare)],
            [owner for owner in owners if owner is not None and self._is_willing(owner)],
            self._current,
        )
        return self._current

    def _of_driver(self, part: Part) -> tuple[PeerId, ...]:
        """The stages that keep the part, and a spare that may take S0.

        Keepers stay, however slow, or there would be no commit that all of them have: who is dead is replaced.
        """
        serving_peer, manifest = self._state.membership.serving_peer, self._state.manifest
        keepers = [serving_peer(stage) for stage in keepers_of(part, manifest)]
        drivers = [PeerId(spare.peer) for spare in self._spares() if spare.can_drive]
        willing = [spare for spare in drivers if self._is_willing(spare)]
        self._current = spare_for_driver(willing, manifest.model.block_stages, self._current)
        return tuple(dict.fromkeys(peer for peer in (*keepers, *self._current) if peer is not None))

    @property
    def are_there(self) -> bool:
        """Somebody is to hold our copies. On S0 its keepers are, as soon as they serve."""
        return self._state.stage == DRIVER_STAGE or bool(self.of("stage"))

    def stage_of(self, peer: PeerId) -> int | None:
        """The stage that a holder serves; None: it is a spare."""
        seats = self._state.membership.seats()
        return next((seat.stage for seat in seats if seat.peer == peer and seat.is_serving), None)

    def _is_willing(self, peer: PeerId) -> bool:
        return self._refused_until.get(peer, 0.0) <= self._state.now

    def _spares(self) -> tuple[SpareRecord, ...]:
        return self._state.idle_spares if self._spares_after <= self._state.now else ()

    def note_refusal(self, peer: PeerId) -> None:
        """It has no room for us."""
        self._refused_until[peer] = self._state.now + REFUSAL_S

    def pardon(self, peer: PeerId) -> None:
        """It did what it was asked for, though late."""
        self._refused_until.pop(peer, None)

    def note_idle(self, peer: PeerId) -> None:
        """It does nothing about what it is offered. If it is a spare we do without spares for a while."""
        self._refused_until[peer] = self._state.now + IDLENESS_S
        if self.stage_of(peer) is None:
            self._spares_after = self._state.now + REFUSAL_S
