"""The end of the run as a node sees it: whether it is over, who may leave, what is still to be closed, the last word.

Its last step is decided once, by one driver; but drivers die, words of it are lost, and some are lies. These questions
are about that. The run is over when its owners committed the last step: what one of them says of it, the driver
excepted whose decision it is, makes nobody leave who did not commit it too.
"""

from __future__ import annotations

from understudy.protocol.actions import Store
from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.membership.authority import is_vouched
from understudy.protocol.membership.seats import Status
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.coordinator import Coordinator
from understudy.protocol.pipeline.edge_host import EdgeHost
from understudy.protocol.pipeline.progress import FINAL_PROGRESS_LIFETIME_S
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.wire.records import ProgressRecord


class Ending:
    """Who says that the last step is committed."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._words: dict[PeerId, ProgressRecord] = {}
        """At most one of each stage's worth of peers, and of as many strangers."""

    def note(self, end: ProgressRecord) -> None:
        """A record says so."""
        peer, most = PeerId(end.peer), self._state.manifest.stage_count
        strangers = [other for other in self._words if not self._state.membership.is_owner(other)]
        if peer in self._words or self._state.membership.is_owner(peer) or len(strangers) < most:
            self._words[peer] = end

    @property
    def last_word(self) -> ProgressRecord | None:
        """That of the latest driver, among those whose words count."""
        known = [end for peer, end in self._words.items() if self._state.membership.is_owner(peer)]
        return max(known or self._words.values(), key=lambda end: end.incarnation, default=None)

    def is_believed(self) -> bool:
        """Two owners say so, or all who are left; or as many peers as are most of the stages, whoever they are: who was
        cut off for long knows no owner any more.
        """
        membership, total = self._state.membership, self._state.manifest.step.total_steps
        if total == 0:
            return False
        said = {seat.peer for seat in membership.seats() if seat.step >= total} | set(self._words)
        said.discard(self._state.me)
        owners = {peer for peer in said if membership.is_owner(peer)}
        present = {seat.peer for seat in membership.seats() if seat.is_present} - {self._state.me}
        is_last = bool(owners) and present <= owners
        is_of_most = len(said) > self._state.manifest.stage_count // 2
        return is_last or is_of_most or is_vouched(owners, self._state.manifest.stage_count - 1)


def is_drivers(state: NodeState, end: ProgressRecord) -> bool:
    """It is the word of somebody whom we know, or knew, to drive under this incarnation."""
    peer, membership = PeerId(end.peer), state.membership
    seat = membership.seat(DRIVER_STAGE)
    is_current = seat is not None and seat.is_tenure(peer, end.incarnation)
    return is_current or membership.former_owners.served_under(DRIVER_STAGE, peer, end.incarnation)


def is_dispensable(state: NodeState, coordinator: Coordinator | None) -> bool:
    """The last step is applied here, and nobody needs us to learn of it."""
    if not state.is_run_done:
        return False
    if coordinator is not None:
        return coordinator.is_done
    return not state.membership.is_present(DRIVER_STAGE) and not _is_ahead(state)


def _is_ahead(state: NodeState) -> bool:
    """S0 was just lost, and a neighbour does not know that the last step is decided: our heartbeats will tell it.

    For a while only: a neighbour that counted less than the whole step needs a new S0, which may never come.
    """
    driver = state.membership.seat(DRIVER_STAGE)
    horizon = state.now - state.manifest.timing.record_lifetime_s
    seats = (state.membership.seat(stage) for stage in state.neighbours() - {DRIVER_STAGE})
    is_lost = driver is not None and driver.status is Status.DEAD and driver.died_at > horizon
    return is_lost and any(seat is not None and seat.is_serving and seat.step < state.committed for seat in seats)


def close_last_step(state: NodeState, host: BlockStage, *, is_doubtful: bool) -> bool:
    """The driver is gone with the last step decided: close it here if only its commit is missing. True: we stay.

    Until the update is applied, that is; or, if it ``is_doubtful`` because somebody claimed S0 since, for a commit that
    may still be on its way, as long as we have company.
    """
    total = state.manifest.step.total_steps
    host.on_end(total, is_doubtful=is_doubtful)
    return host.step > total or (is_doubtful and _has_company(state) and host.step == total)


def _has_company(state: NodeState) -> bool:
    others = set(range(state.manifest.stage_count)) - {state.stage}
    return any(map(state.membership.is_present, others))


def is_beaten_to(state: NodeState, host: BlockStage | EdgeHost, end: ProgressRecord) -> bool:
    """Another driver decided the last step, and no word that may still be on its way will bring us there."""
    is_ours_to_decide = isinstance(host, EdgeHost) and end.incarnation > state.incarnation
    return host.step < end.step or (is_ours_to_decide and host.step == end.step)


def store_last_word(state: NodeState) -> None:
    """The driver may have died with the news: every owner that saw the end leaves word of it."""
    incarnation = max(1, state.membership.known_incarnation(DRIVER_STAGE))
    tokens = state.committed * state.manifest.tokens_per_step
    record = ProgressRecord(state.me, incarnation, state.committed, None, tokens, 0.0)
    state.act(Store(record, FINAL_PROGRESS_LIFETIME_S))
