"""The holder's side of standby copies: fetch what owners offer, hold the last ones, give them to who takes the stage.

A node keeps its shelf for as long as it lives, whatever it is: a spare that takes a stage goes on holding what it has.
Of S0, whose two parts must be of one commit, there are two copies of a part, the last and the last before it that
makes a pair; of everything else there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from understudy.protocol.actions import CancelFetches, Fetch, Keep, ReleaseCopy
from understudy.protocol.events import Fetched, FetchFailed
from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.jobs import Payload
from understudy.protocol.node_state import NodeState
from understudy.protocol.standby.holders import DRIVER_PARTS, keepers_of
from understudy.protocol.wire.fields import Part
from understudy.protocol.wire.messages import CopyKept, CopyOffer, Donation

PAIRED_MAX = 2
STAGES_MAX = 2
"""Block stages of others that one node holds copies of at most."""
IDLE_S = 600.0
"""A copy that its owner said nothing of for so long makes room for another stage's: it speaks every so many commits."""


@dataclass(frozen=True, slots=True)
class KeptCopy:
    """A part of another's stage that lies here, verified."""

    offer: CopyOffer
    payload: Payload

    @property
    def commit(self) -> tuple[int, int]:
        """What it is as of; of two incarnations of S0 each has its own weights at a step."""
        return (self.offer.incarnation, self.offer.step)


class Shelf:
    """What we hold of other stages."""

    def __init__(self, state: NodeState, on_changed: Callable[[], None]) -> None:
        self._state = state
        self._on_changed = on_changed
        self._copies: dict[tuple[int, Part], list[KeptCopy]] = {}
        self._fetching: dict[tuple[int, Part], CopyOffer] = {}
        """One copy of each part at a time: who offers a next one before this is here offers it again."""
        self._offered_at: dict[int, float] = {}
        """Per stage: when its owner last spoke of a copy."""

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages that we could bring back: their weights are here."""
        return tuple(sorted({stage for stage, part in self._copies if part != "moments"}))

    # --- offers ---

    def on_offer(self, peer: PeerId, offer: CopyOffer) -> None:
        """Fetch the copy, unless it is here or on its way, or there is no room."""
        if not self._is_for_us(offer):
            return
        if not self._has_room(offer.stage):
            answer = CopyKept(offer.stage, offer.incarnation, offer.part, offer.step, offer.digest, is_full=True)
            self._state.send(peer, answer)
            return
        self._offered_at[offer.stage] = self._state.now
        known = next((c for c in self._of(offer.stage, offer.part) if c.offer.digest == offer.digest), None)
        if known is not None:
            self._note(KeptCopy(offer, known.payload))
            self._confirm(peer, offer)
        elif self._may_fetch(offer):
            self._fetch(peer, offer)

    def _is_for_us(self, offer: CopyOffer) -> bool:
        """Of S0, a stage holds the parts that the run says; nobody needs a copy of what it has."""
        tenure = self._state.tenure
        if tenure is not None and tenure.stage == offer.stage:
            return False
        if offer.part not in (*(DRIVER_PARTS if offer.stage == DRIVER_STAGE else ("stage",)), "moments"):
            return False
        if offer.stage == DRIVER_STAGE and tenure is not None:
            return tenure.stage in keepers_of(offer.part, self._state.manifest)
        return True

    def _has_room(self, stage: int) -> bool:
        """For one more stage. What its owner does not speak of any more goes first."""
        held = {other for other, _ in (*self._copies, *self._fetching)} - {DRIVER_STAGE}
        if stage in held or stage == DRIVER_STAGE:
            return True
        if len(held) < STAGES_MAX:
            return True
        silent = [other for other in held if self._state.now - self._offered_at.get(other, 0.0) >= IDLE_S]
        # Of a stage that is lost nobody speaks, and its copy is what it is to come back from.
        dispensable = [other for other in silent if self._state.membership.is_serving(other)]
        if dispensable:
            self.forget(min(dispensable, key=lambda other: (self._offered_at.get(other, 0.0), other)))
        return bool(dispensable)

    def forget(self, stage: int) -> None:
        """Let go of all that we hold of a stage."""
        for key in [key for key in self._fetching if key[0] == stage]:
            self._state.act(CancelFetches((stage, self._fetching.pop(key).incarnation)))
        gone = [copy for key in [key for key in self._copies if key[0] == stage] for copy in self._copies.pop(key)]
        self._release({copy.offer.digest for copy in gone})
        self._offered_at.pop(stage, None)

    def _may_fetch(self, offer: CopyOffer) -> bool:
        """A new owner need not wait for what its predecessor does not deliver any more."""
        before = self._fetching.get((offer.stage, offer.part))
        if before is not None and before.incarnation < offer.incarnation:
            self._state.act(CancelFetches((offer.stage, before.incarnation)))
            return True
        return before is None

    def _fetch(self, peer: PeerId, offer: CopyOffer) -> None:
        self._fetching[offer.stage, offer.part] = offer
        base = next((copy.offer.digest for copy in reversed(self._of(offer.stage, offer.part))), "")
        claim = (offer.stage, offer.incarnation)
        self._state.act(Fetch(claim, peer, offer.part, offer.digest, offer.payload_bytes, base, offer.share))

    # --- fetches ---

    def on_fetch_ended(self, event: Fetched | FetchFailed) -> bool:
        """Whether it was one of ours. What failed its owner offers again."""
        offer = self._ended(event)
        if offer is None:
            return False
        if isinstance(event, Fetched):
            self._state.act(Keep(event.digest, event.payload))
            self._note(KeptCopy(offer, event.payload))
            self._confirm(event.donor, offer)
            self._on_changed()
        return True

    def _ended(self, event: Fetched | FetchFailed) -> CopyOffer | None:
        for key, offer in self._fetching.items():
            if (offer.digest, offer.stage, offer.incarnation) == (event.digest, *event.claim):
                return self._fetching.pop(key)
        return None

    def _of(self, stage: int, part: Part) -> list[KeptCopy]:
        return self._copies.get((stage, part), [])

    def _note(self, copy: KeptCopy) -> None:
        """We hold this; the same weights may be those of an earlier commit too, if no update moved them since."""
        key = (copy.offer.stage, copy.offer.part)
        before = self._of(*key)
        # After a split the owner of the lower incarnation may be the one that went on: the other's are of no use.
        known = {held.commit: held for held in before if held.offer.incarnation <= copy.offer.incarnation}
        known[copy.commit] = copy
        self._copies[key] = self._worth_keeping(*key, [known[commit] for commit in sorted(known)])
        self._release({held.offer.digest for held in (*before, copy)})

    def _release(self, digests: set[str]) -> None:
        """Those that are no copy's any more: whatever lies here may lie here twice."""
        kept = {copy.offer.digest for copies in self._copies.values() for copy in copies}
        for digest in sorted(digests - kept):
            self._state.act(ReleaseCopy(digest))

    def _worth_keeping(self, stage: int, part: Part, copies: list[KeptCopy]) -> list[KeptCopy]:
        """The newest; of S0 also the newest before it that makes a pair with the other part, if there is one."""
        if part not in DRIVER_PARTS:
            return copies[-1:]
        others = {held.commit for other in DRIVER_PARTS if other != part for held in self._of(stage, other)}
        before = copies[:-1]
        paired = [held for held in before if held.commit in others] or before
        return [*paired[1 - PAIRED_MAX :], copies[-1]]

    def _confirm(self, peer: PeerId, offer: CopyOffer) -> None:
        self._state.send(peer, CopyKept(offer.stage, offer.incarnation, offer.part, offer.step, offer.digest))

    # --- a stage is lost ---

    def copies(self, stage: int) -> tuple[KeptCopy, ...]:
        """All that we hold of a stage, each part's latest last."""
        return tuple(copy for key in sorted(self._copies) if key[0] == stage for copy in self._copies[key])

    def donations(self, stage: int) -> tuple[Donation, ...]:
        """What we can give to whoever takes the stage."""
        tenure = self._state.tenure
        return tuple(_donation(copy.offer, stage if tenure is None else tenure.stage) for copy in self.copies(stage))


def _donation(offer: CopyOffer, holder: int) -> Donation:
    return Donation(
        offer.part, holder, offer.step, None, offer.payload_bytes, offer.digest, offer.incarnation, is_copy=True
    )
