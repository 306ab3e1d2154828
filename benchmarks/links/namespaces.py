"""Machines on links of a given rate.

Both ends of each link are shaped with ``tc tbf``: the end in the namespace is its uplink, the one at the bridge its
downlink. All packets of a link share one queue, as at a home router.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from benchmarks.links.machines import (
    BRIDGE,
    INTERFACE,
    Machine,
    add_bridge,
    add_namespace,
    check_programs,
    choose_congestion_control,
    command,
    ip,
    join,
    new_stem,
    remove_stale,
)

PREFIX = "understudy-links-"
PIECE_BYTES = 16 * 1024
"""TCP hands so much at once to a link. All machines share the cores here, and with 1,500 bytes at a time the packets
cost as much of them as the arithmetic; the shaper counts the headers of every packet in it."""
BURST_S = 0.002
BURST_BYTES_MIN = 20 * 1024
"""What may leave at once after a pause: 2 ms at the rate, and no less than one piece with its headers, which the
shaper would cut into packets otherwise."""
QUEUE_S = 0.05
"""What a full queue holds. The way there and back takes 0.1 ms here, so TCP keeps a link busy with far less; more
would only keep a heartbeat waiting behind tensors."""
CONGESTION_CONTROL = "cubic"
"""What Linux uses unless it is told otherwise, whatever this machine does."""


@contextmanager
def open_links(
    machines: int, rate_mbit: float | None, congestion_control: str = CONGESTION_CONTROL
) -> Iterator[list[Machine]]:
    """So many machines on links of this rate in each direction; None: as fast as the kernel copies.

    Removed again in the end, whatever happens. What a killed process left is removed at the next start. Raises
    `SettingsError` if this cannot be had here.
    """
    check_here()
    remove_stale(PREFIX)
    stem = new_stem(PREFIX)
    with ExitStack() as stack:
        bridge = add_namespace(stack, f"{stem}{BRIDGE}")
        add_bridge(bridge)
        found = []
        for number in range(1, machines + 1):
            machine = Machine(add_namespace(stack, f"{stem}{number}"), f"10.77.0.{number}", bridge)
            join(machine)
            if rate_mbit is not None:
                _shape_ends(machine, rate_mbit)
            choose_congestion_control(machine, congestion_control)
            found.append(machine)
        yield found


ISLAND = "island"
"""The bridge of those who are cut off from the others, but not from each other."""


@contextmanager
def parted(machines: Sequence[Machine]) -> Iterator[None]:
    """Cut these machines off from all others, without a word to anybody: what is sent is lost, nothing is refused."""
    bridge = machines[0].hub
    ip("-n", bridge, "link", "add", ISLAND, "type", "bridge")
    ip("-n", bridge, "link", "set", ISLAND, "up")
    try:
        for machine in machines:
            ip("-n", bridge, "link", "set", machine.port, "master", ISLAND)
        yield
    finally:
        for machine in machines:
            ip("-n", bridge, "link", "set", machine.port, "master", BRIDGE)
        ip("-n", bridge, "link", "delete", ISLAND)


def check_here() -> None:
    """Raises `SettingsError` with what is missing."""
    check_programs("ip", "tc")


def shape(rate_mbit: float) -> list[str]:
    """The words of ``tc`` for a link of this rate, in 10^6 bits per second."""
    burst = max(BURST_BYTES_MIN, round(rate_mbit * 1e6 / 8 * BURST_S))
    return ["tbf", "rate", f"{round(rate_mbit * 1e6)}bit", "burst", f"{burst}b", "latency", f"{QUEUE_S * 1000:g}ms"]


def _shape_ends(machine: Machine, rate_mbit: float) -> None:
    for namespace, end in ((machine.name, INTERFACE), (machine.hub, machine.port)):
        ip("-n", namespace, "link", "set", "dev", end, "gso_max_size", str(PIECE_BYTES))
        command("tc", "-n", namespace, "qdisc", "add", "dev", end, "root", *shape(rate_mbit))
