"""Recognising owners: what their words, their silence and the words of others mean to us."""

from __future__ import annotations

from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.ids import DRIVER_STAGE, PeerId, Tenure
from understudy.protocol.membership import reasons
from understudy.protocol.membership.consequences import Consequences
from understudy.protocol.membership.ending import Ending
from understudy.protocol.membership.failure_detector import FailureDetector
from understudy.protocol.membership.groups import Group
from understudy.protocol.membership.placement import Standing, supersedes
from understudy.protocol.membership.proofs import Proofs
from understudy.protocol.membership.seats import Observation, Seat, Status
from understudy.protocol.node_state import NodeState
from understudy.protocol.wire.fields import StageState
from understudy.protocol.wire.messages import Alive, Claim, Fenced, Lost, Refusal
from understudy.protocol.wire.records import StageRecord
from understudy.protocol.wire.votes import Vote


class MembershipGossip:
    """Keeps the view of who owns what, and says what changed to whom it matters."""

    def __init__(self, state: NodeState, detector: FailureDetector, consequences: Consequences) -> None:
        self._state, self._detector, self._consequences = state, detector, consequences
        self._proofs, self.ending = Proofs(state), Ending(state)
        self._accused_at: Tenure | None = None
        """The tenure of ours of which S0 said that it is to end."""

    def hear(self, tenure: Tenure, state: StageState, step: int, proof: tuple[Vote, ...] = ()) -> bool:
        """An owner spoke to us. False: its tenure is over, and it is told so; or we do not know it for an owner."""
        if tenure.stage >= self._state.manifest.stage_count:
            raise RemoteProtocolError(f"stage {tenure.stage} does not exist in this run")
        match self._take_note(self._seat(tenure, state, step), proof, is_direct=True):
            case Observation.OUTDATED:
                if state != "left":
                    self._fence(tenure)
                return False
            case Observation.PREMATURE:
                return False
            case Observation.UNPROVEN:
                self._detector.look_up({tenure.stage, *(vote.stage for vote in proof)})
                return False
        return True

    def _fence(self, tenure: Tenure) -> None:
        """Tell an owner that another served its stage after it. A claim proves nothing: who waits behind it counts."""
        group: Group | None = self._state.membership.groups[tenure.stage]
        if group is not None and group.is_claim:
            group = group.displaced
        if group is not None:
            owner = group.first
            self._state.send(tenure.peer, Fenced(owner.stage, owner.incarnation, owner.peer, owner.step))

    def read(self, record: StageRecord) -> None:
        """The DHT holds an owner's record."""
        if record.stage >= self._state.manifest.stage_count:
            return
        tenure = Tenure(record.stage, record.incarnation, PeerId(record.peer))
        if record.peer != self._state.me:
            self._take_note(self._seat(tenure, record.state, record.step), record.proof, is_direct=False)
        elif self._state.tenure != tenure:
            self._consequences.recall(record)

    def _seat(self, tenure: Tenure, state: StageState, step: int) -> Seat:
        return Seat(tenure.stage, tenure.peer, tenure.incarnation, state, step, Status.ALIVE, self._state.now)

    def _take_note(self, seat: Seat, proof: tuple[Vote, ...], *, is_direct: bool) -> Observation:
        """Enter a tenure into the view and do what follows."""
        membership = self._state.membership
        before = membership.seat(seat.stage)
        if self._state.tenure is not None and before is not None and before.peer == self._state.me:
            before.step = max(before.step, self._state.committed)  # nobody tells us how far we are
            if before.step > 0:
                membership.titles.note_trained(before.stage)
        self._proofs.weigh(seat.tenure, proof)
        observation = membership.observe(seat, is_direct=is_direct)
        match observation:
            case Observation.NEW_OWNER | Observation.SERVING:
                self._on_new_owner(seat.stage)
            case Observation.REVIVED:
                self._on_revived(seat.stage, before, is_news=True)
            case Observation.LEFT:
                self._on_left(membership.groups[seat.stage].first)
            case Observation.OVER:
                self.declare_dead(membership.groups[seat.stage].first)
            case Observation.WITHDRAWN:
                self.on_seat_changed(seat.stage)
        return observation

    def _on_left(self, left: Seat) -> None:
        """An owner said goodbye. If it held our stage, then it held it after us."""
        self._state.emit_about("peer.left", left)
        tenure = self._state.tenure
        if tenure is not None and tenure.stage == left.stage:
            self._consequences.lose(reasons.held_after_us(left.stage, left.incarnation))
        self.on_seat_changed(left.stage)
        is_enough = left.stage == DRIVER_STAGE or self._state.tenure is None
        if is_enough and 0 < self._state.manifest.step.total_steps <= left.step and self.ending.is_credible:
            self._consequences.end_run()

    def _on_new_owner(self, stage: int) -> None:
        tenure = self._state.tenure
        is_ours = self._state.membership.groups[stage].first.peer == self._state.me
        if tenure is not None and tenure.stage == stage and not is_ours:
            self._consequences.lose(reasons.held_by_another(stage))
        elif self._state.membership.is_serving(stage):
            self._consequences.owner_changed(stage)
        self.on_seat_changed(stage)

    def _on_revived(self, stage: int, before: Seat | None, *, is_news: bool) -> None:
        """An owner that was taken for dead is there. Whoever claimed its stage meanwhile must know, and so must all
        who were told of the death, unless we have it from one of them.
        """
        owner = self._state.membership.groups[stage].first
        if is_news:
            self._detector.take_back(owner)
        if before is not None and before is not owner and self._state.is_serving:
            self._state.send(before.peer, Refusal(stage, before.incarnation, before.incarnation, "owner alive"))
        if self._state.membership.is_serving(stage):
            self._consequences.owner_revived(stage)
        self.on_seat_changed(stage)

    def on_seat_changed(self, stage: int) -> None:
        """Somebody's tenure of this stage began, ended or moved on."""
        self._state.is_view_changed = True
        self._consequences.seat_changed(stage)

    def declare_dead(self, seat: Seat) -> None:
        """We ourselves found that this owner is gone."""
        self._detector.declare_dead(seat)
        self.on_seat_changed(seat.stage)

    def on_claim_of_owner(self, peer: PeerId, claim: Claim) -> None:
        """Who claims the stage that it holds, under a later incarnation, started again: its old tenure is over."""
        seat = self._state.membership.seat(claim.stage)
        if seat is None or seat.peer != peer or seat.state != "serving" or claim.incarnation <= seat.incarnation:
            return
        if self._state.membership.mark_dead(claim.stage, seat.incarnation, self._state.now):
            self.declare_dead(seat)

    def on_unreachable(self, peer: PeerId) -> None:
        """The peer's machine refuses our connection: whatever it owned has no owner."""
        for seat in self._state.membership.seats_of(peer):
            if self._state.membership.mark_dead(seat.stage, seat.incarnation, self._state.now):
                self.declare_dead(seat)

    def on_gossip(self, peer: PeerId, message: Lost | Alive | Fenced) -> None:
        """What one owner says of another. Only known owners are believed; others send us to the DHT."""
        tenure, membership = self._state.tenure, self._state.membership
        is_about_us = tenure is not None and tenure.stage == message.stage
        if not membership.seats_of(peer):
            self._detector.read()
        elif isinstance(message, Fenced):
            if is_about_us and message.owner != self._state.me and self._is_beaten_by(message):
                self._on_fenced(message)
        elif is_about_us:
            self._note_accusation(peer, message)
        elif isinstance(message, Lost):
            accused = membership.tenure_or_displaced(message.stage, message.incarnation)
            if accused is not None and message.owner not in (None, accused.peer):
                return
            until = self._state.now + self._state.manifest.timing.suspect_after_s
            if self._is_too_much(peer, (message.stage, message.incarnation), until):
                return
            if membership.suspect_by(message.stage, message.incarnation, peer, self._state.now):
                self.on_seat_changed(message.stage)
                if self._state.tenure is None:
                    self._detector.read()
        else:
            self.refute(message.stage, message.incarnation)

    def _on_fenced(self, message: Fenced) -> None:
        """Another serves our stage, we are told. A stage that was trained we give to nobody for a word."""
        successor = Tenure(message.stage, message.incarnation, PeerId(message.owner))
        if self._state.is_entitled(successor):
            self._state.membership.spend_incarnation(message.stage, message.incarnation)
            self._consequences.lose(reasons.held_by_another(message.stage, message.incarnation))
        else:
            self._detector.look_up(set(range(self._state.manifest.stage_count)))

    def _note_accusation(self, peer: PeerId, message: Lost | Alive) -> None:
        """S0 wants our stage to go to another (sentencing.py). It is ours until then, but people must know."""
        is_driver = self._state.membership.serving_peer(DRIVER_STAGE) == peer
        if not isinstance(message, Lost) or not is_driver or message.incarnation != self._state.incarnation:
            return
        if self._accused_at != self._state.tenure:
            self._accused_at = self._state.tenure
            self._state.emit("peer.accused", by=peer)

    def _is_too_much(self, accuser: PeerId, accused: tuple[int, int], until: float) -> bool:
        """Whether it accuses so many owners that none of it is believed, what was believed before neither."""
        overreach = self._state.membership.credit.overreach(accuser, accused, self._state.now, until)
        for stage, incarnation in overreach:
            self.refute(stage, incarnation)
        return bool(overreach)

    def refute(self, stage: int, incarnation: int) -> None:
        """Somebody who hears the owner says that it lives."""
        before = self._state.membership.seat(stage)
        if self._state.membership.refute(stage, incarnation, self._state.now):
            self._on_revived(stage, before, is_news=False)

    def acquit(self, seat: Seat) -> None:
        """We ourselves take back that this owner is dead."""
        before = self._state.membership.seat(seat.stage)
        if self._state.membership.refute(seat.stage, seat.incarnation, self._state.now):
            self._on_revived(seat.stage, before, is_news=True)

    def _is_beaten_by(self, fence: Fenced) -> bool:
        """By a later incarnation alone: that an owner of before is ahead of us it has to say itself."""
        challenger = Standing(fence.incarnation, "serving", PeerId(fence.owner), fence.step)
        return fence.incarnation > self._state.incarnation and supersedes(challenger, self._state.my_seat().standing)
