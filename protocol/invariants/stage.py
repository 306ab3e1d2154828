"""What must hold inside a stage that is owned after every event; node.py says when it is asked.

They look at every microbatch in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from understudy.protocol.export.lease import LEASES_PER_SNAPSHOT_MAX, SNAPSHOTS_MAX, LeasedSnapshot
from understudy.protocol.ids import DRIVER_STAGE, Attempt
from understudy.protocol.jobs import MicrobatchJob
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.edge_host import EdgeHost
from understudy.protocol.pipeline.ledger import EdgeLedger, EdgePhase, Phase, StageLedger, StepLedger
from understudy.protocol.pipeline.queue import JOBS_AHEAD, WorkQueue
from understudy.protocol.recovery.owned_stage import OwnedStage
from understudy.protocol.standby.shelf import PAIRED_MAX, STAGES_MAX, Shelf
from understudy.protocol.standby.source import CopySource

STEPS_OPEN_MAX = 2
"""The update of one step may still be at the compute thread while the next step is worked on; never of two."""


# --- any stage ---


def _waiting(queue: WorkQueue) -> int:
    """Jobs for the compute thread that are not forgotten."""
    return len(queue._heap) - len(queue._forgotten)


def _is_busy(owned: OwnedStage, state: NodeState) -> bool:
    return owned._queue._running == JOBS_AHEAD or _waiting(owned._queue) == 0


def _pending(owned: OwnedStage) -> Iterator[tuple[int, int, Attempt]]:
    """Step, index and attempt of what waits for an owner or for the compute thread."""
    queue = owned._queue
    for _, _, serial, job in queue._heap:
        if isinstance(job, MicrobatchJob) and serial not in queue._forgotten:
            yield job.microbatch.step, job.microbatch.index, job.attempt
    for waiting in owned.host.io._parked.values():
        for message, _ in waiting.values():
            yield message.step, message.index, message.attempt


def _is_current(owned: OwnedStage, index: int, attempt: Attempt) -> bool:
    host = owned.host
    ledger = host.ledger if isinstance(host, EdgeHost) else host._ledger
    return ledger.is_current(index, attempt)


def _snapshots(owned: OwnedStage) -> Mapping[int, LeasedSnapshot]:
    return owned._leases._snapshots


def _are_few_and_leased(owned: OwnedStage, state: NodeState) -> bool:
    snapshots = _snapshots(owned)
    return len(snapshots) <= SNAPSHOTS_MAX and all(
        0 < len(snapshot.leases) <= LEASES_PER_SNAPSHOT_MAX for snapshot in snapshots.values()
    )


def _has_one_wish_each(owned: OwnedStage, state: NodeState) -> bool:
    exporters = [peer for snapshot in _snapshots(owned).values() for peer in snapshot.leases]
    return len(exporters) == len(set(exporters))


STAGE: Mapping[str, Callable[[OwnedStage, NodeState], bool]] = {
    "at most two jobs are at the compute thread": lambda owned, _: 0 <= owned._queue._running <= JOBS_AHEAD,
    "no job waits while the compute thread has room": _is_busy,
    "nothing of a closed step waits": lambda owned, _: all(step >= owned.host.step for step, _, _ in _pending(owned)),
    "nothing of an ended attempt waits": lambda owned, _: all(
        _is_current(owned, index, attempt) for step, index, attempt in _pending(owned) if step == owned.host.step
    ),
    "one step is open, and at most one update under way": (
        lambda owned, state: 0 < owned.host.step - state.committed <= STEPS_OPEN_MAX
    ),
    "copies for exporters are few and leased": _are_few_and_leased,
    "an exporter has one wish": _has_one_wish_each,
    "a copy is ordered when its step closes": lambda owned, _: all(
        (snapshot.ordered_at is not None) == (step < owned.host.step) for step, snapshot in _snapshots(owned).items()
    ),
}

SHELF: Mapping[str, Callable[[Shelf, NodeState], bool]] = {
    "a holder has two copies of a part at most": lambda shelf, _: all(
        len(copies) <= PAIRED_MAX for copies in shelf._copies.values()
    ),
    "a holder follows few block stages": lambda shelf, _: (
        len({stage for stage, _ in (*shelf._copies, *shelf._fetching)} - {DRIVER_STAGE}) <= STAGES_MAX
    ),
    "nobody holds a copy of what it serves": lambda shelf, state: not state.is_serving or not shelf.copies(state.stage),
}


# --- a block stage ---


def _are_counted(ledger: StageLedger) -> bool:
    return all(index in ledger.counted for index, entry in ledger._entries.items() if entry.phase is Phase.FINISHED)


BLOCK_STAGE: Mapping[str, Callable[[StageLedger], bool]] = {
    "a stage counts microbatches that exist": lambda ledger: ledger.counted <= set(range(ledger._microbatches)),
    "a stage's attempts are of one driver": lambda ledger: all(
        entry.attempt.driver_incarnation == ledger._driver_incarnation for entry in ledger._entries.values()
    ),
    "a gradient that was passed on is counted": _are_counted,
}


# --- S0 ---


def _is_in_flight_complete(ledger: EdgeLedger) -> bool:
    return ledger._in_flight.keys() == {i for i, e in ledger._entries.items() if e.phase is not EdgePhase.DONE}


def _came_home(ledger: EdgeLedger) -> set[int]:
    return {index for index, entry in ledger._entries.items() if entry.phase is EdgePhase.DONE}


EDGE: Mapping[str, Callable[[EdgeLedger], bool]] = {
    "microbatches are issued in order": lambda ledger: set(ledger._entries) == set(range(len(ledger._entries))),
    "in flight is what did not come home": _is_in_flight_complete,
    "what came home is counted in both sums": lambda ledger: (
        _came_home(ledger) <= ledger._embedding_counted <= ledger._head_counted <= ledger._entries.keys()
    ),
    "the driver's attempts are its own": lambda ledger: all(
        entry.attempt.driver_incarnation == ledger.incarnation for entry in ledger._entries.values()
    ),
}

COORDINATOR: Mapping[str, Callable[[StepLedger, EdgeLedger], bool]] = {
    "no more are issued than the step has": lambda step, _: step._given_out <= step._microbatches,
    "what was given out was issued": lambda step, edge: step._given_out == len(edge._entries),
    "what came home is of the step": lambda step, edge: (
        step.step == edge.step and step._losses.keys() == _came_home(edge)
    ),
}

SOURCE: Mapping[str, Callable[[CopySource], bool]] = {
    "both parts of a copy of S0 are of one commit": lambda source: (
        len({image.step for part, image in source._held.items() if part != "moments"}) <= 1
    ),
    "what is offered is what is held": lambda source: all(
        offered.image == source._held.get(part) for (part, _), offered in source._offered.items()
    ),
}
