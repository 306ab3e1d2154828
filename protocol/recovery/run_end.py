"""The end of the run as the owner of a stage sees it: who may leave, what is still to be closed, the last word.

Its last step is decided once, by one driver; but drivers die, and words of it are lost. These questions are about that.
"""

from __future__ import annotations

from understudy.protocol.actions import Store
from understudy.protocol.ids import DRIVER_STAGE
from understudy.protocol.membership.seats import Status
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.coordinator import Coordinator
from understudy.protocol.pipeline.edge_host import EdgeHost
from understudy.protocol.pipeline.progress import FINAL_PROGRESS_LIFETIME_S
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.wire.records import ProgressRecord


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
    close = host.on_neighbour_step if is_doubtful else host.on_end
    close(total)
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
