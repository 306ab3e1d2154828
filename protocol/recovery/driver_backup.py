"""Copies of S0's weights with its neighbours (CheckFree+): their source, S0, and their holders.

S0 is one of a kind, so nobody can stand in for it; but its weights are small. After every
``edge_copy_every`` commits it lets some block stages fetch the embedding, and some the norm and head, in the
background, one pair of copies at a time: where the network is slower than the steps, copies are rarer, and the
steps are not slower.

Both parts of a pair are copied by one job, so no update falls between them. A holder has two copies of a part,
the last and the last before it that makes a pair, and the next pair is only made once this one is kept by all: so
whenever S0 dies, there is a commit that all holders of both parts have. ``edge_keepers`` stages hold each part,
the nearest to S0 first: with two, S0 may be lost together with one of its neighbours, with three with both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from understudy.protocol.actions import CancelFetches, Fetch, Keep, ReleaseSnapshot
from understudy.protocol.events import Fetched, FetchFailed
from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.jobs import SnapshotJob
from understudy.protocol.manifest import RunManifest
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.observer import StepObserver
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.wire.fields import Part
from understudy.protocol.wire.messages import Donation, EdgeCopy, EdgeCopyKept, FetchRequest

COPIES_KEPT = 2
RESEND_S = 2.0
"""A copy that its holder has not confirmed is announced again after this long."""


PARTS: tuple[Part, ...] = ("embedding", "head")


def holders_of(part: Part, manifest: RunManifest) -> tuple[int, ...]:
    """The stages that hold copies of a part of S0, in order of their distance from where it is used."""
    upwards = range(1, manifest.model.block_stages + 1)
    near, far = (upwards, upwards[::-1]) if part == "embedding" else (upwards[::-1], upwards)
    alternating = (stage for pair in zip(near, far, strict=True) for stage in pair)
    return tuple(dict.fromkeys(alternating))[: manifest.recovery.edge_keepers]


def holding_stages(manifest: RunManifest) -> frozenset[int]:
    """The stages that hold copies of a part of S0."""
    return frozenset().union(*(holders_of(part, manifest) for part in PARTS if manifest.recovery.edge_copy_every))


@dataclass(frozen=True, slots=True)
class Copy:
    """A part of S0 as it was after a commit."""

    step: int
    digest: str
    payload_bytes: int


@dataclass(slots=True)
class Offered:
    """A copy on its way to one of its holders."""

    copy: Copy
    offered_at: float
    sent_at: float


class DriverBackupSource(StepObserver):
    """S0's side: copy, offer, and let go once it is kept."""

    def __init__(self, state: NodeState, queue: WorkQueue) -> None:
        self._state, self._queue = state, queue
        self._is_due = state.committed > 0 and self._every > 0
        self._is_ordered = False
        """The next pair is about to be copied."""
        self._held: dict[Part, Copy] = {}
        """The last pair, which its holders may fetch."""
        self._offered: dict[tuple[Part, int], Offered] = {}
        """What is not yet kept of it: by part and holding stage."""

    @property
    def _every(self) -> int:
        return self._state.manifest.recovery.edge_copy_every

    def _holders(self, part: Part) -> tuple[int, ...]:
        return holders_of(part, self._state.manifest)

    def applied(self, step: int) -> None:
        """S0's own update of the step is applied."""
        if self._every and step % self._every == 0:
            self._is_due = True
        self.advance()

    def owner_changed(self, stage: int) -> None:
        """A new owner of a holding stage has no copy: it gets the last pair, which all others have or are getting."""
        for part, copy in self._held.items():
            if stage in self._holders(part):
                self._offer(part, stage, copy)

    def on_tick(self) -> None:
        """Say again what was not confirmed."""
        self.advance()

    def advance(self) -> None:
        """Order the next pair once the one before is kept; say again what was not confirmed."""
        for (part, stage), offered in self._offered.items():
            if self._state.now - offered.sent_at >= RESEND_S:
                self._send(part, stage, offered)
        if self._is_due and not self._is_ordered and not self._offered:
            self._is_due, self._is_ordered = False, True
            self._queue.push(SnapshotJob(self._state.committed, PARTS))

    def on_snapshots(self, parts: tuple[Part, ...], copied: tuple[tuple[int, str], ...]) -> None:
        """The compute thread copied both parts as they are after the last commit."""
        self._is_ordered = False
        outdated = {copy.digest for copy in self._held.values()} - {digest for _, digest in copied}
        for digest in sorted(outdated):
            self._state.act(ReleaseSnapshot(digest))
        for part, (payload_bytes, digest) in zip(parts, copied, strict=True):
            self._held[part] = Copy(self._state.committed, digest, payload_bytes)
            for stage in self._holders(part):
                self._offer(part, stage, self._held[part])

    def _offer(self, part: Part, stage: int, copy: Copy) -> None:
        now = self._state.now
        self._offered[part, stage] = Offered(copy, now, now)
        self._send(part, stage, self._offered[part, stage])

    def _send(self, part: Part, stage: int, offered: Offered) -> None:
        offered.sent_at = self._state.now
        holder, copy = self._state.membership.serving_peer(stage), offered.copy
        if holder is not None:
            message = EdgeCopy(part, self._state.incarnation, copy.step, copy.payload_bytes, copy.digest)
            self._state.send(holder, message)

    def on_kept(self, peer: PeerId, message: EdgeCopyKept) -> None:
        """A holder confirms."""
        for stage in self._holders(message.part):
            offered = self._offered.get((message.part, stage))
            is_its_holder = peer == self._state.membership.serving_peer(stage)
            if offered is not None and offered.copy.digest == message.digest and is_its_holder:
                del self._offered[message.part, stage]
                self._report(message.part, stage, offered)
        self.advance()

    def _report(self, part: Part, stage: int, offered: Offered) -> None:
        self._state.emit(
            "edge.copied",
            part=part,
            to_stage=stage,
            step=offered.copy.step,
            bytes=offered.copy.payload_bytes,
            digest=offered.copy.digest,
            seconds=self._state.now - offered.offered_at,
        )

    def may_fetch(self, peer: PeerId, request: FetchRequest) -> bool:
        """Whether the peer is to hold the part that it asks for."""
        if (request.stage, request.incarnation) != (DRIVER_STAGE, self._state.incarnation):
            return False
        parts = [part for part, copy in self._held.items() if copy.digest == request.digest]
        serving_peer = self._state.membership.serving_peer
        return any(serving_peer(stage) == peer for part in parts for stage in self._holders(part))


class DriverBackupHolder:
    """The side of the stages near S0: fetch what S0 offers, hold the last copies, donate them."""

    def __init__(self, state: NodeState, on_changed: Callable[[], None]) -> None:
        self._state = state
        self._on_changed = on_changed
        self._copies: dict[Part, list[Donation]] = {}
        self._fetching: dict[Part, EdgeCopy] = {}
        """One copy of each part at a time: who offers a next one before this is here offers it again."""

    def on_offer(self, peer: PeerId, offer: EdgeCopy) -> None:
        """Fetch the copy, unless it is here or on its way."""
        if self._state.stage not in holders_of(offer.part, self._state.manifest):
            return
        if any(copy.digest == offer.digest for copy in self._copies.get(offer.part, [])):
            self._note(offer)
            self._confirm(peer, offer)
        elif self._may_fetch(offer):
            self._fetching[offer.part] = offer
            claim = (DRIVER_STAGE, offer.incarnation)
            self._state.act(Fetch(claim, peer, offer.part, offer.digest, offer.payload_bytes))

    def _may_fetch(self, offer: EdgeCopy) -> bool:
        """A new S0 need not wait for what its predecessor does not deliver any more."""
        before = self._fetching.get(offer.part)
        if before is not None and before.incarnation < offer.incarnation:
            self._state.act(CancelFetches((DRIVER_STAGE, before.incarnation)))
            return True
        return before is None

    def _ended(self, event: Fetched | FetchFailed) -> EdgeCopy | None:
        """The copy that is not on its way any more."""
        for part, offer in self._fetching.items():
            if (offer.digest, DRIVER_STAGE, offer.incarnation) == (event.digest, *event.claim):
                return self._fetching.pop(part)
        return None

    def on_fetched(self, event: Fetched) -> None:
        offer = self._ended(event)
        if offer is None:
            return
        self._state.act(Keep(event.digest, event.payload))
        self._note(offer)
        self._confirm(event.donor, offer)
        self._on_changed()

    def _note(self, offer: EdgeCopy) -> None:
        """We hold these weights; they may be those of an earlier commit too, if no update moved them since."""
        copy = Donation(
            offer.part, self._state.stage, offer.step, None, offer.payload_bytes, offer.digest, offer.incarnation
        )
        known = {_commit(held): held for held in self._copies.get(offer.part, [])} | {_commit(copy): copy}
        self._copies[offer.part] = self._worth_keeping(offer.part, [known[commit] for commit in sorted(known)])
        kept = {held.digest for held in self._copies[offer.part]}
        for digest in sorted({held.digest for held in known.values()} - kept):
            self._state.act(ReleaseSnapshot(digest))

    def _worth_keeping(self, part: Part, copies: list[Donation]) -> list[Donation]:
        """The newest, and the newest before it that makes a pair with our copy of the other part, if there is one."""
        others = {_commit(held) for other, held_copies in self._copies.items() if other != part for held in held_copies}
        before = copies[:-1]
        paired = [held for held in before if _commit(held) in others] or before
        return [*paired[1 - COPIES_KEPT :], copies[-1]]

    def on_fetch_failed(self, event: FetchFailed) -> None:
        """The driver will offer again."""
        self._ended(event)

    def _confirm(self, peer: PeerId, offer: EdgeCopy) -> None:
        self._state.send(peer, EdgeCopyKept(offer.part, offer.step, offer.digest))

    def donations(self) -> tuple[Donation, ...]:
        """What we can give to whoever takes S0."""
        return tuple(copy for part in sorted(self._copies) for copy in self._copies[part])


def _commit(copy: Donation) -> tuple[int, int]:
    """What a copy is as of; of two incarnations of S0 each has its own weights at a step."""
    return (copy.incarnation, copy.step)
