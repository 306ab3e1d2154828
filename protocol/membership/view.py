"""Who owns which stage, and who of them is alive.

The view of one node, fed by what peers say (direct) and by what the DHT says (records). Liveness
comes from direct words alone: a record outlives its author by seconds. Silence makes an owner
suspect, then dead; a refused connection makes it dead at once; a node whose own loop stalled
accuses nobody, because it cannot know who spoke meanwhile.

A claim takes only a seat whose owner is not there; the owner waits behind it (`Seat.displaced`), and comes back
with its next word unless the claimant serves first. So an owner that was only silent for a while keeps its stage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import TimingSettings
from understudy.protocol.membership.placement import supersedes
from understudy.protocol.membership.seats import Observation, Seat, Status

OWNERS_REMEMBERED = 8
"""Former tenures of a stage: more than a split makes."""


class Membership:
    """The seats of a run as one node sees them."""

    def __init__(self, stage_count: int, timing: TimingSettings) -> None:
        self.stage_count = stage_count
        self.seats: dict[int, Seat] = {}
        self._timing = timing
        self._monitored: frozenset[int] = frozenset()
        self._last_tick: float | None = None
        self._incarnation_floor: dict[int, int] = {}
        self._served: dict[int, list[tuple[PeerId, int]]] = {}
        """The last tenures (peer, incarnation) of each stage that we knew to serve."""

    # --- questions ---

    def is_present(self, stage: int) -> bool:
        seat = self.seats.get(stage)
        return seat is not None and seat.is_present

    def is_serving(self, stage: int) -> bool:
        seat = self.seats.get(stage)
        return seat is not None and seat.is_serving

    def serving_peer(self, stage: int) -> PeerId | None:
        """The living, serving owner of a stage."""
        seat = self.seats.get(stage)
        return seat.peer if seat is not None and seat.is_serving else None

    def known_incarnation(self, stage: int) -> int:
        """The highest incarnation of the stage that we know of; 0 if it was never owned."""
        seat = self.seats.get(stage)
        return max(seat.incarnation if seat else 0, self._incarnation_floor.get(stage, 0))

    def lost_incarnation(self, stage: int) -> int:
        """The tenure that ended, 0 if there was none: a claimant still recovering has not begun one."""
        seat = self.seats.get(stage)
        is_claimed = seat is not None and seat.is_present and seat.state == "recovering"
        return seat.incarnation - 1 if seat is not None and is_claimed else self.known_incarnation(stage)

    def seats_of(self, peer: PeerId) -> list[Seat]:
        return [seat for seat in self.seats.values() if seat.peer == peer]

    def holds_a_seat(self, peer: PeerId) -> bool:
        """The peer serves or recovers a stage, whatever its record as a spare still says."""
        return any(seat.is_present for seat in self.seats_of(peer))

    def has_just_spoken(self, stage: int, now: float) -> bool:
        """Its owner spoke to us ourselves: what others say of its death is older."""
        seat = self.seats.get(stage)
        return seat is not None and seat.is_present and now - seat.spoke_at <= self._timing.suspect_after_s

    def missing(self, stages: Iterable[int]) -> list[int]:
        """Those of the stages that nobody serves."""
        return [stage for stage in stages if not self.is_serving(stage)]

    def beyond(self, stage: int, step: int) -> tuple[list[int], int]:
        """Of the other stages with a living owner: which committed this step, and how many there are."""
        others = [other for other in self.seats if other != stage and self.is_serving(other)]
        return [other for other in others if self.seats[other].step >= step], len(others)

    # --- what we are told ---

    def observe(self, seat: Seat, *, is_direct: bool) -> Observation:
        """Take note of a tenure: said by its owner itself (direct), or read from its record."""
        known = self.seats.get(seat.stage)
        if seat.state == "withdrawn":
            return self._void(known, seat)
        if known is None or not known.is_tenure(seat.peer, seat.incarnation):
            return self._observe_other(known, seat, is_direct=is_direct)
        known.step = max(known.step, seat.step)
        if seat.state == "left":
            return self._leave(known)
        observation = self._advance(known, seat)
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

    def _observe_other(self, known: Seat | None, seat: Seat, *, is_direct: bool) -> Observation:
        if known is not None:
            waiting = known.displaced
            if seat.state == "serving" and waiting is not None and waiting.is_tenure(seat.peer, seat.incarnation):
                return self._hear_displaced(waiting, seat) if is_direct else Observation.KNOWN
            is_claim = seat.state == "recovering"
            is_outdated = not self._is_beaten_by(known, seat)
            if is_outdated or (is_claim and known.is_serving):
                self.raise_incarnation(seat.stage, seat.incarnation)
                return Observation.OUTDATED if is_outdated else Observation.PREMATURE
            if is_claim:
                seat.displaced = waiting if known.state == "recovering" else known
        self.raise_incarnation(seat.stage, self.known_incarnation(seat.stage))
        seat.status = Status.LEFT if seat.state == "left" else Status.ALIVE
        seat.spoke_at = seat.heard if is_direct else seat.spoke_at
        self.seats[seat.stage] = seat
        self._remember(seat)
        return Observation.LEFT if seat.state == "left" else Observation.NEW_OWNER

    def _is_beaten_by(self, known: Seat, seat: Seat) -> bool:
        """How far a tenure came decides only while it goes on; of one that is void nothing is left to compare.

        A stranger's step is worth nothing under an incarnation that others serve: it has to be an owner of before.
        """
        if known.state == "withdrawn":
            return True
        challenger = seat.standing
        holder = known.standing if known.is_present else known.standing._replace(step=seat.step)
        if seat.incarnation <= known.incarnation and not self._has_served(seat):
            challenger = challenger._replace(step=min(seat.step, holder.step))
        return supersedes(challenger, holder)

    def _has_served(self, seat: Seat) -> bool:
        return (seat.peer, seat.incarnation) in self._served.get(seat.stage, [])

    def _remember(self, seat: Seat) -> None:
        if seat.state == "serving" and not self._has_served(seat):
            served = self._served.setdefault(seat.stage, [])
            served.append((seat.peer, seat.incarnation))
            del served[:-OWNERS_REMEMBERED]

    def _hear_displaced(self, waiting: Seat, seat: Seat) -> Observation:
        """The owner whom a claim displaced speaks. Whom others still accuse they do not hear: then the claim stands."""
        waiting.step = max(waiting.step, seat.step)
        if waiting.accusers(seat.heard):
            return Observation.KNOWN
        self._restore(waiting, seat.heard)
        return Observation.REVIVED

    def _restore(self, waiting: Seat, now: float) -> None:
        """The owner of before a claim is alive: the seat is its own again, and the claim's incarnation is spent."""
        self.raise_incarnation(waiting.stage, self.known_incarnation(waiting.stage))
        waiting.status, waiting.heard = Status.ALIVE, now
        self.seats[waiting.stage] = waiting

    @staticmethod
    def _leave(known: Seat) -> Observation:
        if known.status is Status.LEFT:
            return Observation.KNOWN
        known.state, known.status = "left", Status.LEFT
        return Observation.LEFT

    def _void(self, known: Seat | None, seat: Seat) -> Observation:
        """The peer says that this tenure or claim of its own is no more. Nobody else's is touched."""
        self.raise_incarnation(seat.stage, seat.incarnation)
        if known is None or not known.is_tenure(seat.peer, seat.incarnation):
            return Observation.KNOWN
        if known.state == "recovering":
            self.withdraw(seat.stage, seat.peer, seat.incarnation)
            return Observation.WITHDRAWN
        if not known.is_present:
            return Observation.KNOWN
        known.state, known.status, known.died_at = "withdrawn", Status.DEAD, seat.heard
        return Observation.OVER

    def _advance(self, known: Seat, seat: Seat) -> Observation:
        if known.state == "recovering" and seat.state == "serving":
            known.state, known.displaced = "serving", None
            self._remember(known)
            return Observation.SERVING
        return Observation.KNOWN

    def note_step(self, peer: PeerId, stage: int, step: int) -> None:
        """How far the owner of a stage is, by what it said of something else."""
        seat = self.seats.get(stage)
        if seat is not None and seat.peer == peer:
            seat.step = max(seat.step, step)

    def raise_incarnation(self, stage: int, incarnation: int) -> None:
        """Somebody knows of this incarnation, though we do not know its owner."""
        self._incarnation_floor[stage] = max(incarnation, self._incarnation_floor.get(stage, 0))

    def mark_dead(self, stage: int, incarnation: int, now: float) -> Seat | None:
        """The tenure is declared dead. The seat if this is news, else None."""
        self.raise_incarnation(stage, incarnation)
        seat = self.seats.get(stage)
        if seat is None or seat.incarnation > incarnation or not seat.is_present:
            return None
        self._mark_seat_dead(seat, now)
        return seat

    def _mark_seat_dead(self, seat: Seat, now: float) -> None:
        """A claimant that dies before it served gives the seat back, as if it had withdrawn.

        Otherwise a withdrawal that got lost would fence the living owner for ever.
        """
        seat.status, seat.died_at = Status.DEAD, now
        if seat.state == "recovering" and seat.displaced is not None:
            self.raise_incarnation(seat.stage, seat.incarnation)
            seat.displaced.heard = now
            self.seats[seat.stage] = seat.displaced

    def withdraw(self, stage: int, peer: PeerId, incarnation: int) -> bool:
        """A claimant gives up before it served: its incarnation is spent, the owner of before comes back.

        True if that changed the view. Its predecessor may live: then its next word revives it.
        """
        self.raise_incarnation(stage, incarnation)
        seat = self.seats.get(stage)
        if seat is None or not seat.is_tenure(peer, incarnation) or seat.state != "recovering":
            return False
        del self.seats[stage]
        if seat.displaced is not None:
            self.seats[stage] = seat.displaced
        return True

    def give_up(self, stage: int) -> None:
        """Our own tenure of the stage is over, and we know of no other."""
        self.raise_incarnation(stage, self.known_incarnation(stage))
        self.seats.pop(stage, None)

    def forget_deaths(self) -> None:
        """We were cut off: what we believed to be dead may well live. Incarnations are remembered."""
        for stage, seat in list(self.seats.items()):
            if seat.status is Status.DEAD or seat.state == "recovering":
                self.give_up(stage)

    def tenure_or_displaced(self, stage: int, incarnation: int) -> Seat | None:
        """The seat of this tenure, be it behind a claim."""
        seat = self.seats.get(stage)
        if seat is not None and seat.incarnation != incarnation and seat.displaced is not None:
            seat = seat.displaced
        return seat if seat is not None and seat.incarnation == incarnation else None

    def suspect_by(self, stage: int, incarnation: int, accuser: PeerId, now: float) -> Seat | None:
        """Another owner declares the tenure dead. The seat if this is news, else None.

        The accuser repeats itself while it means it. So a stage that only one neighbour can still reach
        is given up, where each neighbour trusting its own ears alone would leave the swarm standing.
        """
        accused = self.tenure_or_displaced(stage, incarnation)
        if accused is not None and self._is_cut_off(accuser, accused.peer, now):
            return None
        if accused is not None:
            accused.accused_until[accuser] = now + self._timing.suspect_after_s
        elif self.has_just_spoken(stage, now):  # it is a later claim that died, not the owner whom we hear
            self.raise_incarnation(stage, incarnation)
            return None
        return self.mark_dead(stage, incarnation, now)

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
        seat.accused_until.clear()
        self._restore(seat, now)
        return True

    def record_missing(self, stage: int, now: float) -> Seat | None:
        """The DHT holds no record of the seat's owner. The seat if that makes it dead, else None."""
        seat = self.seats.get(stage)
        if seat is None or not seat.is_present or stage in self._monitored:
            return None
        if now - seat.heard <= self._timing.record_lifetime_s:
            return None
        return self.mark_dead(stage, seat.incarnation, now)

    # --- time ---

    def monitor(self, stages: Collection[int], now: float) -> None:
        """Listen to the owners of these stages from now on."""
        for stage in set(stages) - self._monitored:
            if stage in self.seats:
                self.seats[stage].heard = max(self.seats[stage].heard, now)
        self._monitored = frozenset(stages)

    def tick(self, now: float) -> list[Seat]:
        """Seats whose status became SUSPECT or DEAD by silence."""
        self._forgive_own_stall(now)
        changed: list[Seat] = []
        for stage in sorted(self._monitored):
            seat = self.seats.get(stage)
            if seat is not None and self._judge(seat, now):
                changed.append(seat)
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
                for seat in self.seats.values():
                    seat.heard = min(now, seat.heard + stall_s)
        self._last_tick = now
