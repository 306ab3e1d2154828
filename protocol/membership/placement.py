"""Who holds which stage: which of two tenures wins, who is nearest to a hole, what a spare takes.

Pure functions over small values; `membership` keeps the view they are asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.wire.fields import StageState
from understudy.protocol.wire.records import SpareRecord, StageRecord

CLAIM_PATIENCE_S = 2.0
"""How long a spare leaves a hole to the spares ranked before it."""
PATIENCE_GROWTH = 4
"""By this factor more spares may have a hole after each such time: 1, 4, 16, 64. So forty that do nothing cost 6 s."""
PATIENCES_MAX = 8
FRONT_MAX = 16
"""Spares that wait in front: they publish themselves and look for work all the time. All others are in reserve."""


class Standing(NamedTuple):
    """What decides between two tenures of one stage. ``step``: the last that its owner committed."""

    incarnation: int
    state: StageState
    peer: PeerId
    step: int


STEPS_APART_MAX = 1
"""The stages of one swarm are never further apart: nobody begins a step before all others closed the one before it.

Who is further behind lived apart from the others, and what it holds is older than what they hold.
"""


def supersedes(challenger: Standing, holder: Standing) -> bool:
    """Whether a tenure beats another of the same stage.

    Of two that serve, one that is behind never beats one that is ahead (`STEPS_APART_MAX`): after a split the side that
    got further goes on. Else a higher incarnation wins. Under one incarnation, who serves beats who is still
    recovering, who beats one who gave the stage up; then the lower peer id wins.
    """
    if challenger.state == holder.state == "serving" and abs(challenger.step - holder.step) > STEPS_APART_MAX:
        return challenger.step > holder.step
    return _precedence(challenger) < _precedence(holder)


_STATE_ORDER: dict[StageState, int] = {"serving": 0, "recovering": 1, "left": 2, "withdrawn": 3}
"""Total, although a void tenure is never among those compared: no word of a peer may end us."""


def _precedence(tenure: Standing) -> tuple[int, int, PeerId]:
    return (-tenure.incarnation, _STATE_ORDER[tenure.state], tenure.peer)


def best_tenure(records: Iterable[StageRecord]) -> StageRecord | None:
    """The tenure that wins among those of one stage, for onlookers; None if there is none but void ones.

    By votes, then by incarnation: who cannot judge a step by its own must not believe one, and an owner that was left
    behind withdraws its record by itself.
    """
    valid = [record for record in records if record.state != "withdrawn"]
    return min(valid, key=_credibility, default=None)


VOTES_OF_A_CLAIM = 2
"""Shown by every tenure that followed another, where more than one owner can vote."""


def _credibility(record: StageRecord) -> tuple[int, int, int, PeerId]:
    """The lower the better. Votes were checked; without any, a stage's first owner is likelier than a later one."""
    votes = min(len({vote.voter for vote in record.proof}), VOTES_OF_A_CLAIM)
    incarnation = -record.incarnation if votes else record.incarnation
    return (-votes, incarnation, _STATE_ORDER[record.state], PeerId(record.peer))


def in_order(records: Iterable[StageRecord]) -> list[StageRecord]:
    """Those of one stage, the likeliest first: a reader that knows nobody believes who comes first."""
    return sorted(records, key=_credibility)


def ring_walk(stage: int, stage_count: int, direction: int) -> Iterable[int]:
    """The other stages in order of distance, going up (+1) or down (-1) and around."""
    return ((stage + direction * distance) % stage_count for distance in range(1, stage_count))


def dead_stretch(stage: int, stage_count: int, is_present: Callable[[int], bool]) -> list[int]:
    """The stages without a living owner that lie between ``stage`` and its nearest survivors.

    The owner of ``stage`` is a witness of exactly these: it is the nearest survivor on one of
    their sides.
    """
    found: list[int] = []
    for direction in (-1, +1):
        for other in ring_walk(stage, stage_count, direction):
            if is_present(other):
                break
            if other not in found:
                found.append(other)
    return found


def nearest_survivors(stage: int, stage_count: int, is_present: Callable[[int], bool]) -> list[int]:
    """The nearest stages with a living owner on each side, ascending: the witnesses of a claim.

    Claimants ask in this fixed order, so that of two claimants at most one is recognised by all.
    """
    found = {
        next((other for other in ring_walk(stage, stage_count, direction) if is_present(other)), None)
        for direction in (-1, +1)
    }
    return sorted(survivor for survivor in found if survivor is not None)


def watched(
    stage: int, stage_count: int, neighbours: Collection[int], is_present: Callable[[int], bool]
) -> frozenset[int]:
    """The stages whose owners the owner of ``stage`` must know: a set that does not grow with the swarm.

    Its neighbours on the routes, S0, itself, and on each side everything up to the nearest survivor.
    """
    return frozenset(
        {stage, DRIVER_STAGE}
        | set(neighbours)
        | set(dead_stretch(stage, stage_count, is_present))
        | set(nearest_survivors(stage, stage_count, is_present))
    )


HOPS = (2, -2, 1, -1)
"""From a block stage to those that may hold its copy, the likeliest first: all of them near enough to be watched."""


def near_holders(stage: int, block_stages: int) -> tuple[int, ...]:
    """The block stages that may hold a copy of this one, the likeliest first."""
    return tuple(stage + hop for hop in HOPS if 1 <= stage + hop <= block_stages)


def rank_spares(spares: Iterable[SpareRecord]) -> list[PeerId]:
    """Waiting spares, the most capable first; equal capacity is decided by peer id.

    Those that nothing reaches but through a relay come last: all that their stage sends and gets costs the relay too.
    """
    waiting = (spare for spare in spares if spare.state == "waiting")
    return [PeerId(spare.peer) for spare in sorted(waiting, key=_rank)]


def _rank(spare: SpareRecord) -> tuple[bool, float, str]:
    return (spare.contact.reachability == "relayed", -spare.capacity, spare.peer)


def is_in_front(me: SpareRecord, known: Iterable[SpareRecord]) -> bool:
    """Whether this spare is among the first `FRONT_MAX` that may take a block stage, or of those that may take S0.

    Without this, every spare would publish a record that every spare reads.
    """
    others = {spare.peer: spare for spare in known}
    waiting = list({**others, me.peer: me}.values())
    drivers = [spare for spare in waiting if spare.can_drive]
    holders = [spare for spare in waiting if spare.can_hold_blocks]
    return me.peer in {*rank_spares(holders)[:FRONT_MAX], *rank_spares(drivers)[:FRONT_MAX]}


def jitter(peer: PeerId) -> float:
    """A number from 0 to below 1, evenly spread over peers and always the same for one."""
    return crc32(peer.encode()) / 2**32


def rank_holes(lost: Collection[int], unowned: Collection[int]) -> list[int]:
    """Stages without an owner, the most needed first.

    S0 before all others, because without the driver nothing moves; then stages that were lost,
    because a whole swarm waits for them; then stages that nobody ever held.
    """
    return sorted(set(lost) | set(unowned), key=lambda stage: (stage != DRIVER_STAGE, stage not in lost, stage))


def by_copies(
    ranking: Sequence[PeerId], holes: Sequence[int], holding: Mapping[PeerId, Collection[int]]
) -> list[PeerId]:
    """The same spares in another order: in the k-th place, for the k-th hole, the first that holds a copy of it.

    Where nobody does, the first that no other hole needs.
    """
    left, found = list(ranking), dict[int, PeerId]()
    for place, hole in enumerate(holes[: len(ranking)]):
        holder = next((spare for spare in left if hole in holding.get(spare, ())), None)
        if holder is not None:
            left.remove(holder)
            found[place] = holder
    return [found[place] if place in found else left.pop(0) for place in range(len(ranking))]


def had_their_turn(ranking: Sequence[PeerId], holes: Sequence[int], waited_s: Mapping[int, float]) -> list[PeerId]:
    """The spares that had all of `CLAIM_PATIENCE_S` to claim one of these holes, and left it open."""
    let = [_spares_let(waited_s[hole] - CLAIM_PATIENCE_S) for hole in holes]
    return list(ranking[: max((place + count for place, count in enumerate(let) if count), default=0)])


def _spares_let(waited_s: float) -> int:
    """How many spares may have a hole that has been open for so long."""
    return PATIENCE_GROWTH ** min(int(waited_s / CLAIM_PATIENCE_S), PATIENCES_MAX) if waited_s >= 0 else 0


def choose_hole(
    me: PeerId, ranking: Sequence[PeerId], holes: Sequence[int], waited_s: Mapping[int, float]
) -> int | None:
    """The hole that this spare should claim now, or None: the k-th spare takes the k-th hole.

    Every `CLAIM_PATIENCE_S` that a hole stays open (``waited_s``, of each) `PATIENCE_GROWTH` times as many may have it:
    any number of dead spares ahead of us cost seconds, not the run. A hole that nobody can fill makes no spare leave
    its own.
    """
    if me not in ranking:
        return None
    rank = ranking.index(me)
    if rank < len(holes):
        return holes[rank]
    return next((hole for place, hole in enumerate(holes) if rank - place < _spares_let(waited_s[hole])), None)
