"""The owner's side of standby copies: copy, offer, let go once it is kept.

After every so many commits the owner has an image of its stage made and lets its holders fetch it, in the background
and one image at a time: where the network is slower than the steps, copies are older, and the steps are not slower.

All parts of a copy are made by one job, so no update falls between them; and the next copy is only made once this one
is kept by all who are to hold it and do something about it. So whenever S0 dies, there is a commit that all keepers of
both of its parts have.
"""

from __future__ import annotations

from dataclasses import dataclass

from understudy.protocol.actions import ReleaseSnapshot
from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.jobs import ImageJob
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.observer import StepObserver
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.standby.choosing import Holders
from understudy.protocol.standby.holders import DRIVER_PARTS
from understudy.protocol.wire.fields import Part
from understudy.protocol.wire.messages import SHARES_MAX, CopyKept, CopyOffer, FetchRequest

RESEND_S = 2.0
"""A copy that its holder has not confirmed is offered again after this long."""
IDLE_S = 20.0
"""A holder that neither fetches what it was offered nor says that it has it is done without, after this long."""
FLOOR_S, SLOWEST_BYTES_PER_S = 60.0, 1e5
"""So is one that takes longer for an image, though it fetches; S0's spare, which its keepers would wait for:"""
DRIVER_FLOOR_S, DRIVER_SLOWEST_BYTES_PER_S = 10.0, 1e6
MOMENTS_EVERY = 10
"""With every tenth copy the state of the optimizer goes along: it is as large as the weights, and ages well."""


@dataclass(frozen=True, slots=True)
class Image:
    """A part of our stage as it was after a commit."""

    step: int
    digest: str
    payload_bytes: int


@dataclass(slots=True)
class Offered:
    """An image on its way to one of its holders."""

    image: Image
    offered_at: float
    sent_at: float
    moved_at: float
    """When its holder last did something about it."""


YOUTH = 4
"""A copy is never older than this part of the run: a stage of step 20 that comes back as of step 1 knows nothing."""


def copies_apart(step: int, every: int) -> int:
    """Commits from one copy to the next at a step of the run, if the line is fast enough."""
    return min(every, max(1, step // YOUTH))


class CopySource(StepObserver):
    """What an owner does for its own understudies."""

    def __init__(self, state: NodeState, queue: WorkQueue) -> None:
        self._state, self._queue = state, queue
        recovery = state.manifest.recovery
        is_driver = state.stage == DRIVER_STAGE
        self._parts: tuple[Part, ...] = DRIVER_PARTS if is_driver else ("stage",)
        self._every = recovery.edge_copy_every if is_driver else recovery.standby_every
        self._holders = Holders(state)
        self._is_due = state.committed > 0 and self._every > 0
        self._is_ordered = False
        """The next copy is about to be made."""
        self._made = 0
        self._copied_at = 0
        """The step of the last copy."""
        self._held: dict[Part, Image] = {}
        """The last copy, which its holders may fetch."""
        self._offered: dict[tuple[Part, PeerId], Offered] = {}
        """What is not yet kept of it."""
        self._kept: dict[tuple[Part, PeerId], str] = {}
        """The digest that each holder last confirmed."""

    # --- steps and time ---

    def applied(self, step: int) -> None:
        """Our own update of the step is applied."""
        self._is_due |= self._every > 0 and step - self._copied_at >= copies_apart(step, self._every)
        self.advance()

    def owner_changed(self, stage: int) -> None:
        """A new owner has no copy, though it be a peer that had one before it started again."""
        owner = self._state.membership.serving_peer(stage)
        self._kept = {key: digest for key, digest in self._kept.items() if key[1] != owner}
        self.advance()

    def advance(self) -> None:
        """Offer what somebody lacks, again if it was not confirmed; order the next copy once this one is kept."""
        self._pass_over_the_slow()
        self._offer_to_holders()
        now = self._state.now
        for (part, holder), offered in self._offered.items():
            if now - offered.sent_at >= RESEND_S:
                self._send(part, holder, offered)
        if self._is_due and not self._is_ordered and not self._offered and self._holders.are_there:
            self._order()

    def _pass_over_the_slow(self) -> None:
        """Of S0's keepers it changes nothing (`Holders.of`)."""
        for holder in {holder for (_, holder), offered in self._offered.items() if self._is_too_slow(offered)}:
            self._holders.note_idle(holder)

    def _is_too_slow(self, offered: Offered) -> bool:
        now, is_driver = self._state.now, self._state.stage == DRIVER_STAGE
        floor_s, slowest = (DRIVER_FLOOR_S, DRIVER_SLOWEST_BYTES_PER_S) if is_driver else (FLOOR_S, SLOWEST_BYTES_PER_S)
        limit_s = floor_s + len(self._offered) * offered.image.payload_bytes / slowest
        return now - offered.moved_at >= IDLE_S or now - offered.offered_at >= limit_s

    def _order(self) -> None:
        self._is_due, self._is_ordered, self._copied_at = False, True, self._state.committed
        has_moments = self._made % MOMENTS_EVERY == 0 and self._state.manifest.recovery.standby_every > 0
        parts = (*self._parts, "moments") if has_moments else self._parts
        self._made += 1
        self._queue.push(ImageJob(self._state.committed, parts))

    # --- copies ---

    def on_images(self, parts: tuple[Part, ...], images: tuple[tuple[int, str], ...]) -> None:
        """The compute thread made images of these parts, as they are after the last commit."""
        self._is_ordered = False
        before = {part: self._held[part].digest for part in parts if part in self._held}
        for part, (payload_bytes, digest) in zip(parts, images, strict=True):
            self._held[part] = Image(self._state.committed, digest, payload_bytes)
        held = {image.digest for image in self._held.values()}
        for digest in sorted({*before.values()} - held):
            self._state.act(ReleaseSnapshot(digest))
        self._offered = {key: offered for key, offered in self._offered.items() if key[0] not in parts}
        self._kept = {key: digest for key, digest in self._kept.items() if key[0] not in parts}
        self._offer_to_holders()

    def _offer_to_holders(self) -> None:
        """Whoever is to hold a part and does not have our last image of it is offered that."""
        now = self._state.now
        wanted = {(part, holder): image for part, image in self._held.items() for holder in self._holders.of(part)}
        self._offered = {key: offered for key, offered in self._offered.items() if key in wanted}
        lacking = [key for key in sorted(wanted.keys() - self._offered) if self._kept.get(key) != wanted[key].digest]
        self._offered |= {key: Offered(wanted[key], now, now, now) for key in lacking}
        for part, holder in lacking:
            self._send(part, holder, self._offered[part, holder])

    def _send(self, part: Part, holder: PeerId, offered: Offered) -> None:
        offered.sent_at, image = self._state.now, offered.image
        tenure = (self._state.stage, self._state.incarnation)
        share = min(max(1, len(self._offered)), SHARES_MAX)
        self._state.send(holder, CopyOffer(*tenure, part, image.step, image.payload_bytes, image.digest, share))

    def on_kept(self, peer: PeerId, message: CopyKept) -> None:
        """A holder confirms, or has no room."""
        key, image = (message.part, peer), self._held.get(message.part)
        if image is None or image.digest != message.digest:
            return
        offered = self._offered.pop(key, None)
        if not message.is_full:
            self._kept[key] = message.digest
            self._holders.pardon(peer)  # perhaps it is only later than we waited
        if offered is not None and message.is_full:
            self._holders.note_refusal(peer)
        elif offered is not None:
            self._note(message.part, peer, offered)
        self.advance()

    def _note(self, part: Part, holder: PeerId, offered: Offered) -> None:
        state, image = self._state, offered.image
        if part != "moments":
            state.copied = max(state.copied, image.step)
        state.emit(
            "standby.copied",
            part=part,
            holder=holder,
            to_stage=self._holders.stage_of(holder),
            copied_step=image.step,
            bytes=image.payload_bytes,
            digest=image.digest,
            seconds=state.now - offered.offered_at,
        )

    def may_fetch(self, peer: PeerId, request: FetchRequest) -> bool:
        """Whether the peer is to hold the part that it asks for, piece by piece. Who asks is at work."""
        if (request.stage, request.incarnation) != (self._state.stage, self._state.incarnation):
            return False
        wanted = [o for (_, holder), o in self._offered.items() if (holder, o.image.digest) == (peer, request.digest)]
        for offered in wanted:
            offered.moved_at = self._state.now
        return bool(wanted) and request.piece_bytes > 0
