"""Copies of S0's weights with its neighbours (CheckFree+): the copying side and the keeping side.

S0 is one of a kind, so nobody can stand in for it; but its weights are small. After every
``edge_copy_every`` commits it lets S1 fetch the embedding and Sn the norm and head, in the background,
one copy at a time: where the network is slower than the steps, copies are rarer, and the steps are not
slower. A keeper holds the last two copies of a part, so that the two parts of a rebuilt S0 can be of the
same commit whenever S0 died.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from understudy.protocol.events import Fetch, Fetched, FetchFailed, Keep, ReleaseSnapshot, SnapshotJob
from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.messages import Donation, EdgeCopy, EdgeCopyKept, FetchRequest, Part
from understudy.protocol.node_state import NodeState
from understudy.protocol.work import WorkQueue

COPIES_KEPT = 2
RESEND_S = 2.0
"""A copy that its keeper has not confirmed is announced again after this long."""


def keeper_of(part: Part, block_stages: int) -> int:
    """The stage that keeps copies of a part of S0."""
    return 1 if part == "embedding" else block_stages


@dataclass(slots=True)
class Offered:
    """A copy on its way to its keeper."""

    step: int
    digest: str
    payload_bytes: int
    offered_at: float
    sent_at: float


class EdgeCopier:
    """S0's side: copy, offer, and let go once it is kept."""

    PARTS: tuple[Part, ...] = ("embedding", "head")

    def __init__(self, state: NodeState, queue: WorkQueue) -> None:
        self._state, self._queue = state, queue
        self._is_due = state.committed > 0 and self._every > 0
        self._pending: set[Part] = set()
        """Parts whose snapshot is ordered."""
        self._offered: dict[Part, Offered] = {}
        self._held: dict[Part, str] = {}

    @property
    def _every(self) -> int:
        return self._state.manifest.recovery.edge_copy_every

    def _keeper(self, part: Part) -> PeerId | None:
        stage = keeper_of(part, self._state.manifest.model.block_stages)
        return self._state.membership.serving_peer(stage)

    def committed(self, step: int) -> None:
        """S0's own update of the step is applied."""
        if self._every and step % self._every == 0:
            self._is_due = True
        self.advance()

    def keeper_changed(self, stage: int) -> None:
        """A new owner of a keeping stage holds no copy."""
        if stage not in {keeper_of(part, self._state.manifest.model.block_stages) for part in self.PARTS}:
            return
        self._offered.clear()
        self._is_due = self._every > 0 and self._state.committed > 0
        self.advance()

    def advance(self) -> None:
        """Order the next copies once the ones before are kept; say again what was not confirmed."""
        for part, offered in self._offered.items():
            if self._state.now - offered.sent_at >= RESEND_S:
                self._send(part, offered)
        if self._is_due and not self._pending and not self._offered and self._are_keepers_there():
            self._is_due = False
            self._pending = set(self.PARTS)
            for part in self.PARTS:
                self._queue.push(SnapshotJob(self._state.committed, part))

    def _are_keepers_there(self) -> bool:
        """A copy that only one of them kept would push out the last that both have."""
        return all(self._keeper(part) is not None for part in self.PARTS)

    def on_snapshot(self, part: Part, payload_bytes: int, digest: str) -> None:
        self._pending.discard(part)
        previous = self._held.get(part)
        self._held[part] = digest
        if previous is not None and previous != digest:
            self._state.act(ReleaseSnapshot(previous))
        now = self._state.now
        self._offered[part] = Offered(self._state.committed, digest, payload_bytes, now, now)
        self._send(part, self._offered[part])

    def _send(self, part: Part, offered: Offered) -> None:
        keeper = self._keeper(part)
        offered.sent_at = self._state.now
        if keeper is not None:
            incarnation = self._state.incarnation
            message = EdgeCopy(part, incarnation, offered.step, offered.payload_bytes, offered.digest)
            self._state.send(keeper, message)

    def on_kept(self, peer: PeerId, message: EdgeCopyKept) -> None:
        """The keeper confirms."""
        offered = self._offered.get(message.part)
        if offered is None or offered.digest != message.digest or peer != self._keeper(message.part):
            return
        del self._offered[message.part]
        self._state.emit(
            "edge.copied",
            part=message.part,
            to_stage=keeper_of(message.part, self._state.manifest.model.block_stages),
            step=offered.step,
            bytes=offered.payload_bytes,
            digest=offered.digest,
            seconds=self._state.now - offered.offered_at,
        )
        self.advance()

    def may_fetch(self, peer: PeerId, request: FetchRequest) -> bool:
        """Whether the peer keeps the part that it asks for."""
        part = next((part for part, digest in self._held.items() if digest == request.digest), None)
        is_current = (request.stage, request.incarnation) == (DRIVER_STAGE, self._state.incarnation)
        return part is not None and is_current and self._keeper(part) == peer


class EdgeKeeper:
    """The side of S1 and Sn: fetch what S0 offers, hold the last copies, donate them."""

    def __init__(self, state: NodeState, on_changed: Callable[[], None]) -> None:
        self._state = state
        self._on_changed = on_changed
        self._copies: dict[Part, list[Donation]] = {}
        self._fetching: dict[str, EdgeCopy] = {}

    def on_offer(self, peer: PeerId, offer: EdgeCopy) -> None:
        """Fetch the copy, unless it is here or on its way."""
        if keeper_of(offer.part, self._state.manifest.model.block_stages) != self._state.stage:
            return
        if any(copy.digest == offer.digest for copy in self._copies.get(offer.part, [])):
            self._confirm(peer, offer)
        elif offer.digest not in self._fetching:
            self._fetching[offer.digest] = offer
            claim = (DRIVER_STAGE, offer.incarnation)
            self._state.act(Fetch(claim, peer, offer.part, offer.digest, offer.payload_bytes))

    def on_fetched(self, event: Fetched) -> None:
        offer = self._fetching.pop(event.digest, None)
        if offer is None:
            return
        self._state.act(Keep(event.digest, event.payload))
        stage, incarnation = self._state.stage, offer.incarnation
        copy = Donation(offer.part, stage, offer.step, None, offer.payload_bytes, offer.digest, incarnation)
        copies = [*self._copies.get(offer.part, []), copy]
        for outdated in copies[:-COPIES_KEPT]:
            self._state.act(ReleaseSnapshot(outdated.digest))
        self._copies[offer.part] = copies[-COPIES_KEPT:]
        self._confirm(event.donor, offer)
        self._on_changed()

    def on_fetch_failed(self, event: FetchFailed) -> None:
        """The driver will offer again."""
        self._fetching.pop(event.digest, None)

    def _confirm(self, peer: PeerId, offer: EdgeCopy) -> None:
        self._state.send(peer, EdgeCopyKept(offer.part, offer.step, offer.digest))

    def donations(self) -> tuple[Donation, ...]:
        """What we can give to whoever takes S0."""
        return tuple(copy for part in sorted(self._copies) for copy in self._copies[part])
