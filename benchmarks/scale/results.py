"""What the simulated swarms cost, as a JSON file and as tables."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.origin import Origin
from benchmarks.page import render


class Case(msgspec.Struct, frozen=True):
    """The size of a swarm. Whoever has no stage is a spare."""

    stages: int
    peers: int


class Cost(msgspec.Struct, frozen=True):
    """Means per peer and simulated second; see `benchmarks.scale.metering.Meter`."""

    peers: int
    data_messages: float
    messages: float
    message_bytes: float
    stores: float
    reads: float
    records: float
    record_bytes: float
    core_seconds: float


class Outcome(msgspec.Struct, frozen=True):
    """One swarm."""

    case: Case
    owners: Cost
    spares: Cost
    everybody: Cost
    busiest_key: str
    busiest_key_reads_per_s: float
    cpu_seconds_per_s: float
    """Processor time of simulator and all cores, per simulated second."""
    killed: tuple[float, float] | None
    """Simulated seconds from a kill to the first who knew and to the new owner's service. Connections are refused."""
    vanished: tuple[float, float] | None
    """The same for a machine that falls silent."""


class ScaleResult(msgspec.Struct, frozen=True):
    outcomes: tuple[Outcome, ...]
    window_s: float
    origin: Origin


def scale_table(result: ScaleResult) -> str:
    """What a peer costs the others."""
    header = [
        "stages", "peers", "messages", "message bytes", "stores", "keys read", "records read", "core, ms of CPU",
    ]  # fmt: skip
    return render(header, [_size(found) + _cells(found.everybody) for found in result.outcomes])


def roles_table(result: ScaleResult) -> str:
    """The same by role."""
    header = ["stages", "peers", "role", "messages", "message bytes", "stores", "keys read", "records read", "core, ms"]
    rows = []
    for found in result.outcomes:
        for role, cost in (("owner", found.owners), ("spare", found.spares)):
            if cost.peers:
                rows.append([*_size(found), role, *_cells(cost)])
    return render(header, rows)


def swarm_table(result: ScaleResult) -> str:
    """What concerns the swarm as a whole."""
    header = [
        "stages", "peers", "killed: known, served again", "silent: known, served again", "busiest key, reads/s",
        "simulation, CPU s per s",
    ]  # fmt: skip
    return render(header, [[*_size(found), *_whole(found)] for found in result.outcomes])


def _size(found: Outcome) -> list[str]:
    return [f"{found.case.stages}", f"{found.case.peers:,}"]


def _cells(cost: Cost) -> list[str]:
    amounts = [f"{amount:.1f}" for amount in (cost.messages, cost.message_bytes)]
    return [
        *amounts,
        *(f"{amount:.2f}" for amount in (cost.stores, cost.reads)),
        f"{cost.records:.1f}",
        f"{cost.core_seconds * 1e3:.2f}",
    ]


def _whole(found: Outcome) -> list[str]:
    losses = [
        "not recovered" if loss is None else f"{loss[0]:.1f}, {loss[1]:.1f} s"
        for loss in (found.killed, found.vanished)
    ]
    return [*losses, f"{found.busiest_key}: {found.busiest_key_reads_per_s:.0f}", f"{found.cpu_seconds_per_s:.2f}"]


def read(path: Path) -> ScaleResult:
    """Raises `msgspec.ValidationError` for a file that holds something else."""
    return msgspec.json.decode(path.read_bytes(), type=ScaleResult)
