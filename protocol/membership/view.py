"""Who owns which stage, and who of them is alive.

The view of one node, fed by what peers say (direct) and by what the DHT says (records). Liveness
comes from direct words alone: a record outlives its author by seconds. Silence makes an owner
suspect, then dead; a refused connection makes it dead at once; a node whose own loop stalled
accuses nobody, because it cannot know who spoke meanwhile.

A claim takes only a stage whose owner is not there; the owner waits behind it (`Group.displaced`), and comes back
with its next word unless the claimant serves first. So an owner that was only silent for a while keeps its stage.
A little above 300 lines, because all that a node hears changes the same groups.
"""

from __future__ import annotations

from collections.abc import Collection

from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.manifest import TimingSettings
from understudy.protocol.membership.credit import Credit
from understudy.protocol.membership.groups import Group, Groups
from understudy.protocol.membership.placement import supersedes
from understudy.protocol.membership.seats import Observation, Seat, Status


class Membership(Groups):
    """The groups of a run as one node sees them, and how what it hears changes them."""

    def __init__(self, stage_count: int, timing: TimingSettings) -> None:
        super().__init__(stage_count)
        self._timing = timing
        self._monitored: dict[int, float] = {}
        """The stages that we listen to, and since when."""
        self._last_tick: float | None = None
        self.credit = Credit(stage_count)

    def has_just_spoken(self, stage: int, now: float) -> bool:
        """Its owner spoke to us ourselves: what others say of its death is older."""
        seat = self.seat(stage)
        return seat is not None and seat.is_present and now - seat.spoke_at <= self._timing.suspect_after_s

    # --- what we are told ---

    def observe(self, seat: Seat, *, is_direct: bool) -> Observation:
        """Take note of a tenure: said by its owner itself (direct), or read from its record."""
        group = self.groups.get(seat.stage)
        known = group.member(seat.peer, seat.incarnation) if group is not None else None
        if seat.state == "withdrawn":
            return self._void(known, seat)
        if group is None or known is None:
            return self._observe_other(group, seat, is_direct=is_direct)
        known.step = max(known.step, seat.step)
        self.note_training(known)
        if seat.state == "left":
            return self._leave(known, seat.heard)
        observation = self._advance(group, known, seat)
        if is_direct:
            known.heard = known.spoke_at = max(known.heard, seat.heard)
            observation = self._revive(known, seat.heard) or observation
        elif self._has_outlived_its_death(known, seat.heard):
            known.status = Status.ALIVE
            observation = Observation.REVIVED
        return observation

    def _has_outlived_its_death(self, known: Seat, now: float) -> bool:
        """A record can only be there if it was stored after the death that we believed in.

        This is for those who do not hear the owner; silence is judged by those who should hear it.
        """
        is_silence_ours_to_judge = known.stage in self._monitored
        lifetime_s = self._timing.record_lifetime_s
        if known.state == "withdrawn":
            return False
        return known.status is Status.DEAD and not is_silence_ours_to_judge and now - known.died_at > lifetime_s

    @staticmethod
    def _revive(known: Seat, now: float) -> Observation | None:
        if known.status is Status.SUSPECT:
            known.status = Status.ALIVE
        if known.status is not Status.DEAD or known.state == "withdrawn" or known.accusers(now):
            return None
        known.status = Status.ALIVE
        return Observation.REVIVED

    def _observe_other(self, group: Group | None, seat: Seat, *, is_direct: bool) -> Observation:
        """Somebody speaks who is no member of the configuration that we know."""
        is_claim, displaced = seat.state == "recovering", None
        if group is not None:
            waiting = group.displaced
            spoken = waiting.member(seat.peer, seat.incarnation) if waiting is not None else None
            if seat.state == "serving" and waiting is not None and spoken is not None:
                return self._hear_displaced(waiting, spoken, seat) if is_direct else Observation.KNOWN
            if not self._is_beaten_by(group, seat):
                self.raise_incarnation(seat.stage, seat.incarnation)
                return Observation.OUTDATED
            if is_claim and group.is_serving:
                self.raise_incarnation(seat.stage, seat.incarnation)
                return Observation.PREMATURE
            if is_claim:
                displaced = waiting if group.is_claim else group
        if not self.is_entitled(seat.tenure, seat.heard, self._timing.record_lifetime_s):
            return Observation.UNPROVEN
        if seat.peer != self.me:
            self.spend_incarnation(seat.stage, seat.incarnation)
        seat.status = Status.LEFT if seat.state == "left" else Status.ALIVE
        seat.spoke_at = seat.heard if is_direct else seat.spoke_at
        self.groups[seat.stage] = Group([seat], displaced)
        self._remember(seat)
        self.note_training(seat)
        return Observation.LEFT if seat.state == "left" else Observation.NEW_OWNER

    def _is_beaten_by(self, group: Group, seat: Seat) -> bool:
        """How far a tenure came decides only while it goes on; of one that is void nothing is left to compare.

        A stranger's step is worth nothing under an incarnation that others serve: it has to be an owner of before, and
        not the only one who got so far.
        """
        if group.first.state == "withdrawn":
            return True
        challenger = seat.standing
        holder = group.standing if group.is_present else group.standing._replace(step=seat.step)
        if seat.incarnation <= group.incarnation and not self._is_ahead(seat, holder.step):
            challenger = challenger._replace(step=min(seat.step, holder.step))
        return supersedes(challenger, holder)

    def _is_ahead(self, seat: Seat, step: int) -> bool:
        if not self.titles.has_served(seat.tenure) or seat.step <= step:
            return False
        self.titles.note_ahead(seat.tenure, seat.step, seat.heard)
        return self.titles.is_credibly_ahead(seat.tenure, step, seat.heard - self._timing.record_lifetime_s)

    def _remember(self, seat: Seat) -> None:
        if seat.state == "serving":
            self.titles.note_served(seat.tenure)

    def _hear_displaced(self, waiting: Group, known: Seat, seat: Seat) -> Observation:
        """The owner whom a claim displaced speaks. Whom others still accuse they do not hear: then the claim stands."""
        known.step = max(known.step, seat.step)
        if known.accusers(seat.heard) or known.state == "withdrawn":
            return Observation.KNOWN
        self._restore(waiting, known, seat.heard)
        return Observation.REVIVED

    def _restore(self, group: Group, seat: Seat, now: float) -> None:
        """The owner of before a claim is alive: the stage is its own again, and the claim's incarnation is spent."""
        self.raise_incarnation(seat.stage, self.known_incarnation(seat.stage))
        seat.status, seat.heard = Status.ALIVE, now
        self.groups[seat.stage] = group

    @staticmethod
    def _leave(known: Seat, now: float) -> Observation:
        if known.status is Status.LEFT:
            return Observation.KNOWN
        known.state, known.status, known.died_at = "left", Status.LEFT, now
        return Observation.LEFT

    def _void(self, known: Seat | None, seat: Seat) -> Observation:
        """The peer says that this tenure or claim of its own is no more. Nobody else's is touched."""
        self.raise_incarnation(seat.stage, seat.incarnation)
        if known is None:
            return Observation.KNOWN
        if known.state == "recovering":
            self.withdraw(seat.stage, seat.peer, seat.incarnation)
            return Observation.WITHDRAWN
        if not known.is_present:
            return Observation.KNOWN
        known.state, known.status, known.died_at = "withdrawn", Status.DEAD, seat.heard
        return Observation.OVER

    def _advance(self, group: Group, known: Seat, seat: Seat) -> Observation:
        if known.state == "recovering" and seat.state == "serving":
            known.state, group.displaced = "serving", None
            self.spend_incarnation(known.stage, known.incarnation)
            self._remember(known)
            return Observation.SERVING
        return Observation.KNOWN

    def mark_dead(self, stage: int, incarnation: int, now: float) -> Seat | None:
        """The tenure is declared dead. The seat if this is news, else None."""
        self.raise_incarnation(stage, incarnation)
        seat = self.seat(stage)
        if seat is None or seat.incarnation > incarnation or not seat.is_present:
            return None
        self._mark_seat_dead(seat, now)
        return seat

    def _mark_seat_dead(self, seat: Seat, now: float) -> None:
        """A claimant that dies before it served gives the seat back, as if it had withdrawn.

        Otherwise a withdrawal that got lost would fence the living owner for ever.
        """
        seat.status, seat.died_at = Status.DEAD, now
        displaced = self.groups[seat.stage].displaced
        if seat.state == "recovering" and displaced is not None:
            self.raise_incarnation(seat.stage, seat.incarnation)
            for waiting in displaced.members:
                waiting.heard = now
            self.groups[seat.stage] = displaced

    def withdraw(self, stage: int, peer: PeerId, incarnation: int) -> bool:
        """A claimant gives up before it served: its incarnation is spent, the owner of before comes back.

        True if that changed the view. Its predecessor may live: then its next word revives it.
        """
        self.raise_incarnation(stage, incarnation)
        group = self.groups.get(stage)
        if group is None or group.member(peer, incarnation) is None or not group.is_claim:
            return False
        del self.groups[stage]
        if group.displaced is not None:
            self.groups[stage] = group.displaced
        return True

    def give_up(self, stage: int) -> None:
        """Our own tenure of the stage is over, and we know of no other."""
        self.raise_incarnation(stage, self.known_incarnation(stage))
        self.groups.pop(stage, None)

    def forget_deaths(self) -> None:
        """We were cut off: what we believed to be dead may well live. Incarnations are remembered."""
        self._monitored = {}
        for stage, group in list(self.groups.items()):
            if group.is_claim or all(seat.status is Status.DEAD for seat in group.members):
                self.give_up(stage)

    def suspect_by(self, stage: int, incarnation: int, accuser: PeerId, now: float) -> Seat | None:
        """Another owner declares the tenure dead. The seat if this is news, else None.

        The accuser repeats itself while it means it. So a stage that only one neighbour can still reach
        is given up, where each neighbour trusting its own ears alone would leave the swarm standing.
        """
        accused = self.tenure_or_displaced(stage, incarnation)
        if accused is not None and (
            self._is_cut_off(accuser, accused.peer, now) or not self._has_credit(accuser, accused, now)
        ):
            return None
        if accused is not None:
            accused.accused_until[accuser] = now + self._timing.suspect_after_s
        elif self.has_just_spoken(stage, now):  # it is a later claim that died, not the owner whom we hear
            self.raise_incarnation(stage, incarnation)
            return None
        return self.mark_dead(stage, incarnation, now)

    def _has_credit(self, accuser: PeerId, accused: Seat, now: float) -> bool:
        """Whether its word outweighs what we hear. The driver's does: it knows who keeps the work."""
        is_heard = now - accused.spoke_at <= self._timing.suspect_after_s
        if not is_heard or accuser == self.serving_peer(DRIVER_STAGE):
            return True
        return self.credit.is_good(accuser, accused.tenure, now)

    def _is_cut_off(self, accuser: PeerId, accused: PeerId, now: float) -> bool:
        """Others than the accused take the accuser for dead: then it is the accuser who hears nobody.

        Two who only cannot hear each other are both believed: one is replaced, and its successor clears the other.
        """
        if self.holds_a_seat(accuser):
            return False
        accusers = set().union(*(seat.accusers(now) for seat in self.seats_of(accuser)))
        return accusers != {accused}

    def refute(self, stage: int, incarnation: int, now: float) -> bool:
        """The accuser hears the tenure again. True if that brings it back, be it from behind a claim."""
        seat = self.tenure_or_displaced(stage, incarnation)
        if seat is None or seat.status is not Status.DEAD or seat.state == "withdrawn":
            return False
        silent_since = max(seat.spoke_at, self._monitored.get(stage, now))
        if now - silent_since > self._timing.dead_after_s:
            return False  # we listen ourselves, and hear nothing
        seat.accused_until.clear()
        group = self.groups[stage]
        behind = group.displaced if group.incarnation != incarnation else None
        self._restore(behind or group, seat, now)
        return True

    def record_missing(self, stage: int, now: float) -> Seat | None:
        """The DHT holds no record of the seat's owner. The seat if that makes it dead, else None."""
        seat = self.seat(stage)
        if seat is None or not seat.is_present or stage in self._monitored:
            return None
        if now - seat.heard <= self._timing.record_lifetime_s:
            return None
        return self.mark_dead(stage, seat.incarnation, now)

    # --- time ---

    def monitor(self, stages: Collection[int], now: float) -> None:
        """Listen to the owners of these stages from now on."""
        for stage in set(stages) - self._monitored.keys():
            if stage in self.groups:
                for seat in self.groups[stage].members:
                    seat.heard = max(seat.heard, now)
        self._monitored = {stage: self._monitored.get(stage, now) for stage in stages}

    def tick(self, now: float) -> list[Seat]:
        """Seats whose status became SUSPECT or DEAD by silence."""
        self._forgive_own_stall(now)
        changed: list[Seat] = []
        for stage in sorted(self._monitored):
            members = self.groups[stage].members if stage in self.groups else []
            changed += [seat for seat in members if self._judge(seat, now)]
        return changed

    def _judge(self, seat: Seat, now: float) -> bool:
        silence_s = now - seat.heard
        if seat.is_present and silence_s > self._timing.dead_after_s:
            self._mark_seat_dead(seat, now)
            return True
        if seat.status is Status.ALIVE and silence_s > self._timing.suspect_after_s:
            seat.status = Status.SUSPECT
            return True
        return False

    def _forgive_own_stall(self, now: float) -> None:
        """Time in which we did not run is nobody's silence."""
        if self._last_tick is not None:
            stall_s = now - self._last_tick
            if stall_s > self._timing.heartbeat_s:
                for seat in self.seats():
                    seat.heard = min(now, seat.heard + stall_s)
        self._last_tick = now
