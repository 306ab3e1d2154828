"""S0 watches its stages at work: who keeps microbatches, who spoils numbers, and what follows from it.

Suspicion is an event. Only if a spare waits is the owner's stage given to another: without one, an owner that is slow,
or sick, is better than none. S0 says that the owner is dead for as long as nobody has its stage, `AMNESTY_S` at
most, or until what it kept comes after all (protocol/membership/sentencing.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from understudy.protocol.ids import DRIVER_STAGE, Microbatch, PeerId
from understudy.protocol.node_state import NodeState, Sentence
from understudy.protocol.pipeline.culprits import SPOILT_STEPS_MAX, Blame, Culprits
from understudy.protocol.pipeline.disputes import Disputes
from understudy.protocol.pipeline.ledger import EdgeLedger, EdgePhase
from understudy.protocol.pipeline.numbers import Spoilt
from understudy.protocol.pipeline.standstill import Asked, Finding, Standstill
from understudy.protocol.routing import Route
from understudy.protocol.wire.watching import Here, NotFinite, Where

WITH_OTHERS = (EdgePhase.OUTBOUND, EdgePhase.RETURNING)
SPOILERS_MAX = 2
"""Owners replaced for their numbers within `SPOILERS_STEPS`: beyond that it is the run that diverges, not they."""
SPOILERS_STEPS = 100


class Watchman:
    """What S0 knows of the work of others, and what it does about it. Of one tenure of S0."""

    def __init__(self, state: NodeState, route: Callable[[int], Route]) -> None:
        """``route``: of a microbatch, by its index."""
        self._state, self._route = state, route
        self._standstill = Standstill(state.manifest, state.now)
        self._disputes = Disputes(state.me)
        self.culprits = Culprits(state.me, state.membership.serving_peers)
        self._step = state.committed + 1
        """The one that is open."""
        self._replaced_at: list[int] = []
        """The steps at which owners were to be replaced for their numbers."""
        self._suspected: set[Finding] = set()

    # --- what happens on S0 ---

    def issued(self, index: int) -> None:
        """A microbatch is on its way, perhaps once more."""
        self._standstill.issued(index, self._state.now)

    def came(self, step: int, index: int) -> None:
        """A tensor of the current attempt came. Whoever was to be replaced because of it does its work."""
        self._moved()
        for sentence in self._state.sentences.values():
            kept = sentence.microbatch
            sentence.is_over |= kept is not None and (kept.step, kept.index) == (step, index)

    def came_home(self, index: int) -> None:
        """Every stage did its part of the microbatch."""
        self._standstill.came_home(index, self._route(index), self._state.now)

    def owner_changed(self, stage: int) -> None:
        """Another peer serves the stage: it has not shown yet what it can do."""
        self._standstill.owner_changed(stage, self._state.now)
        self._moved()

    def _moved(self) -> None:
        self._standstill.moved(self._state.now)
        self._suspected = set()

    # --- nothing moves ---

    def look(self, ledger: EdgeLedger) -> int | None:
        """Time passes. The microbatch that is to be issued again, as it seems to be lost between two stages."""
        asked = self._asked(ledger)
        finding = self._standstill.look(asked, self._state.now)
        if asked is None:
            return None
        if self._standstill.is_time_to_ask(self._state.now):
            for stage in asked.route:
                self._state.send_to_stage(stage, Where(asked.microbatch.step, asked.microbatch.index, asked.attempt))
        if finding is None:
            return None
        if self._standstill.is_likely(finding):
            self._suspect(finding)
        if self._standstill.is_proven(finding):
            self._sentence_for_keeping(finding, asked)
        elif self._standstill.is_worth_another_try(finding, asked.attempt):
            return asked.microbatch.index
        return None

    def _asked(self, ledger: EdgeLedger) -> Asked | None:
        """The oldest microbatch in flight; None if there is none, or S0 itself has something to do for one."""
        phases = {index: ledger.phase_of(index) for index in ledger.in_flight}
        if not phases or any(phase not in WITH_OTHERS for phase in phases.values()):
            return None
        index = next(iter(phases))
        is_gradient = phases[index] is EdgePhase.RETURNING
        return Asked(Microbatch(ledger.step, index), ledger.attempt_of(index), self._route(index), is_gradient)

    def on_here(self, peer: PeerId, message: Here) -> None:
        """A stage says where a microbatch stands there."""
        seat = self._state.membership.seat(message.stage)
        if seat is not None and seat.is_tenure(peer, message.incarnation):
            self._standstill.note_answer(message.stage, message.attempt, message.place, self._state.now)

    def _suspect(self, finding: Finding) -> None:
        seat = self._state.membership.seat(finding.stage)
        if finding not in self._suspected and seat is not None:
            self._suspected.add(finding)
            self._state.emit_about("peer.suspected", seat, reason=self._why(finding))

    def _why(self, finding: Finding) -> str:
        held = f"S{finding.stage} keeps a microbatch, nothing moves for {self._standstill.seconds:.1f} s"
        return held if finding.contradicts is None else f"{held}; S{finding.contradicts} says that it sent it"

    def _sentence_for_keeping(self, finding: Finding, asked: Asked) -> None:
        stage = self._loser(finding.stage, finding.contradicts)
        if stage is not None and self._sentence(stage, self._why(finding)):
            self._state.sentences[stage].microbatch = asked.microbatch
            self._moved()

    def _loser(self, stage: int, accuser: int | None) -> int | None:
        """Which of two stages is to get another owner. A stage that nobody contradicts has itself to blame."""
        if accuser is None or not self._state.has_spares:
            return stage
        peers = {number: self._state.membership.serving_peer(number) for number in (stage, accuser)}
        accused, other = peers[stage], self._state.me if accuser == DRIVER_STAGE else peers[accuser]
        if accused is None or other is None:
            return None
        return stage if self._disputes.loser(accused, other) == accused else accuser

    # --- numbers ---

    def on_not_finite(self, peer: PeerId, message: NotFinite) -> None:
        """A stage says that what came to it was not finite."""
        seat = self._state.membership.seat(message.stage)
        path, microbatches = self._route(message.index), self._state.manifest.step.microbatches
        if message.index >= microbatches or message.step not in (self._step - 1, self._step):
            return
        if seat is not None and seat.is_tenure(peer, message.incarnation) and message.stage in path:
            self.culprits.note(message.step, message.index, path, message.stage, is_gradient=message.is_gradient)

    def note_own(self, spoilt: Spoilt) -> None:
        """What came to S0 itself was not finite."""
        microbatch = spoilt.microbatch
        path = self._route(microbatch.index)
        self.culprits.note(microbatch.step, microbatch.index, path, DRIVER_STAGE, is_gradient=spoilt.is_gradient)

    def note_loss(self, microbatch: Microbatch, loss: float, *, is_spoilt: bool) -> None:
        """S0 computed a loss, of finite numbers unless ``is_spoilt``."""
        if not is_spoilt and not math.isfinite(loss):
            self.culprits.note_own(microbatch.step, microbatch.index, self._route(microbatch.index))

    def closed(self, step: int) -> None:
        """The step is decided: all that will be said of the one before was said."""
        self._step = step + 1
        for blame in self.culprits.close(step - 1):
            self._replaced_at = [at for at in self._replaced_at if at > step - SPOILERS_STEPS]
            if len(self._replaced_at) < SPOILERS_MAX and self._sentence_for_spoiling(blame):
                self._replaced_at.append(step)

    def _sentence_for_spoiling(self, blame: Blame) -> bool:
        if not self._state.has_spares:
            return False
        loser = self._disputes.loser(blame.accused, blame.accuser)
        stage = blame.accused_stage if loser == blame.accused else blame.accuser_stage
        what = f"sent numbers that are not finite in each of {SPOILT_STEPS_MAX} steps"
        reason = f"S{blame.accuser_stage} says that S{blame.accused_stage} {what}"
        return self._state.membership.serving_peer(stage) == loser and self._sentence(stage, reason)

    # --- what follows ---

    def _sentence(self, stage: int, reason: str) -> bool:
        """Have the stage go to another, if there is one. False: nothing follows."""
        seat = self._state.membership.seat(stage)
        is_due = stage != DRIVER_STAGE and stage not in self._state.sentences and self._state.has_spares
        if seat is None or not seat.is_serving or not is_due:
            return False
        self._state.sentences[stage] = Sentence(seat.incarnation, self._state.now)
        self._state.emit_about("peer.sentenced", seat, reason=reason)
        return True
