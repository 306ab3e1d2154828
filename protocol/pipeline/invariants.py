"""What must hold inside the host of a stage after every event; protocol/invariants.py says when it is asked.

They look at every microbatch in flight, and read what the parts keep to themselves: no part needs to know of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from understudy.protocol.export.lease import HOLDERS_MAX, HOLDS_MAX, SnapshotLease
from understudy.protocol.ids import Attempt
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.driver import Driver
from understudy.protocol.pipeline.ledger import DriverLedger, DriverPhase, Phase, StageLedger
from understudy.protocol.pipeline.queue import JOBS_AHEAD, MicrobatchJob, WorkQueue
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.recovery.driver_backup import DriverBackupSource

Host = BlockStage | Driver

STEPS_OPEN_MAX = 2
"""The update of one step may still be at the compute thread while the next step is worked on; never of two."""


# --- any host ---


def _waiting(queue: WorkQueue) -> int:
    """Jobs for the compute thread that are not forgotten."""
    return len(queue._heap) - len(queue._forgotten)


def _is_busy(host: Host, state: NodeState) -> bool:
    queue = host.io.queue
    return queue._running == JOBS_AHEAD or _waiting(queue) == 0


def _pending(host: Host) -> Iterator[tuple[int, int, Attempt]]:
    """Step, index and attempt of what waits for an owner or for the compute thread."""
    queue = host.io.queue
    for _, _, serial, job in queue._heap:
        if isinstance(job, MicrobatchJob) and serial not in queue._forgotten:
            yield job.microbatch.step, job.microbatch.index, job.attempt
    for waiting in host.io._parked.values():
        for message, _ in waiting.values():
            yield message.step, message.index, message.attempt


def _leases(host: Host) -> Mapping[int, SnapshotLease]:
    return host.io.holds._held


def _has_one_wish_each(host: Host, state: NodeState) -> bool:
    exporters = [peer for held in _leases(host).values() for peer in held.leases]
    return len(exporters) == len(set(exporters))


HOST: Mapping[str, Callable[[Host, NodeState], bool]] = {
    "at most two jobs are at the compute thread": lambda host, _: 0 <= host.io.queue._running <= JOBS_AHEAD,
    "no job waits while the compute thread has room": _is_busy,
    "nothing of a closed step waits": lambda host, _: all(step >= host.step for step, _, _ in _pending(host)),
    "nothing of an ended attempt waits": lambda host, _: all(
        host._ledger.is_current(index, attempt) for step, index, attempt in _pending(host) if step == host.step
    ),
    "one step is open, and at most one update under way": (
        lambda host, state: 0 < host.step - state.committed <= STEPS_OPEN_MAX
    ),
    "copies for exporters are few and leased": lambda host, _: (
        len(_leases(host)) <= HOLDS_MAX and all(0 < len(held.leases) <= HOLDERS_MAX for held in _leases(host).values())
    ),
    "an exporter has one wish": _has_one_wish_each,
    "a copy is ordered when its step closes": lambda host, _: all(
        (held.ordered_at is not None) == (step < host.step) for step, held in _leases(host).items()
    ),
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


def _is_in_flight_complete(ledger: DriverLedger) -> bool:
    return ledger._in_flight.keys() == {i for i, e in ledger._entries.items() if e.phase is not DriverPhase.DONE}


def _came_home(ledger: DriverLedger) -> set[int]:
    return {index for index, entry in ledger._entries.items() if entry.phase is DriverPhase.DONE}


DRIVER: Mapping[str, Callable[[DriverLedger], bool]] = {
    "microbatches are issued in order": lambda ledger: set(ledger._entries) == set(range(len(ledger._entries))),
    "no more are issued than the step has": lambda ledger: len(ledger._entries) <= ledger._microbatches,
    "in flight is what did not come home": _is_in_flight_complete,
    "what came home is counted in both sums": lambda ledger: (
        _came_home(ledger) <= ledger._embedding_counted <= ledger._head_counted <= ledger._entries.keys()
    ),
    "the driver's attempts are its own": lambda ledger: all(
        entry.attempt.driver_incarnation == ledger.incarnation for entry in ledger._entries.values()
    ),
}

BACKUP: Mapping[str, Callable[[DriverBackupSource], bool]] = {
    "both parts of a copy of S0 are of one commit": lambda copier: (
        len({copy.step for copy in copier._held.values()}) <= 1
    ),
    "what is offered of S0 is what is held": lambda copier: all(
        offered.copy == copier._held.get(part) for (part, _), offered in copier._offered.items()
    ),
}
