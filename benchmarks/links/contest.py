"""One round: plain bytes, then everybody in turn on links of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from benchmarks.fresh import in_fresh_process
from benchmarks.links import plain
from benchmarks.links.delay import Carried
from benchmarks.links.delayed import open_delayed_links
from benchmarks.links.machines import INTERFACE, Machine
from benchmarks.links.namespaces import open_links
from benchmarks.links.raw import bytes_per_s
from benchmarks.links.results import SWARM, UNSHAPED, Round
from benchmarks.throughput import pipelining, swarm
from understudy.protocol.manifest import RunManifest

RAW_SECONDS = 2.0
"""For how long plain bytes are sent in each round."""


FIRST_SECONDS = 1.0
FIRST_ROUND_TRIPS = 10
"""For how long they are sent before they count: until TCP is as fast as it gets."""


@dataclass(frozen=True, slots=True)
class Links:
    """What joins the machines."""

    rate_mbit: float
    round_trip_ms: float | None
    """None: a bridge without any delay."""
    congestion_control: str

    @contextmanager
    def open(self, machines: int, tell: Callable[[str], None]) -> Iterator[list[Machine]]:
        if self.round_trip_ms is None:
            with open_links(machines, self.rate_mbit, self.congestion_control) as found:
                yield found
            return
        report = partial(_say_what_was_carried, tell)
        with open_delayed_links(machines, self.rate_mbit, self.round_trip_ms, self.congestion_control, report) as found:
            yield found

    def bytes_in(self, seconds: float) -> int:
        return round(seconds * self.rate_mbit * 1e6 / 8)

    @property
    def first_bytes(self) -> int:
        if self.round_trip_ms is None:
            return 0
        return self.bytes_in(FIRST_SECONDS + FIRST_ROUND_TRIPS * self.round_trip_ms / 1000)


def _say_what_was_carried(tell: Callable[[str], None], carried: Carried) -> None:
    tell(
        f"carried {carried.wire_bytes / 1e6:.0f} MB with {carried.cpu_s / carried.seconds:.2f} of a core; "
        f"dropped {carried.dropped} of {carried.pieces}; late by {carried.late_mean_s * 1000:.2f} ms in the mean, "
        f"{carried.late_max_s * 1000:.1f} ms at most"
    )


@dataclass(frozen=True, slots=True)
class Contest:
    """What everybody trains, and on which links."""

    source: str
    manifest: RunManifest
    links: Links
    steps: int
    only: tuple[str, ...]
    """Of torch's schedules, and of plain sockets."""


def play(contest: Contest, tell: Callable[[str], None]) -> Round:
    """Raises `SettingsError` if links cannot be had here."""
    machines = 1 + contest.manifest.stage_count  # the seed has one of its own
    links = contest.links
    with (
        open_links(machines, None, links.congestion_control) as free,
        links.open(machines, tell) as shaped,
    ):
        raw = bytes_per_s(shaped[1], shaped[2], links.bytes_in(RAW_SECONDS), links.first_bytes)
        tell(f"TCP: {raw * 8 / 1e6:.1f} Mbit/s")
        seconds = {}
        for name, train in _contenders(contest, free, shaped).items():
            seconds[name] = in_fresh_process(train)
            tell(f"{name}: " + ", ".join(f"{value:.2f}" for value in seconds[name]))
    return Round(raw, seconds)


def _contenders(contest: Contest, free: list[Machine], shaped: list[Machine]) -> dict[str, Callable[[], list[float]]]:
    """Each returns the seconds of its steps that count."""
    source, steps = contest.source, contest.steps
    found: dict[str, Callable[[], list[float]]] = {
        UNSHAPED: partial(swarm.step_seconds, source, steps, tuple(machine.place for machine in free)),
        SWARM: partial(swarm.step_seconds, source, steps, tuple(machine.place for machine in shaped)),
    }
    for name, fills in ((plain.PLAIN, False), (plain.FILLED, True)):
        if name in contest.only:
            found[name] = partial(plain.step_seconds, contest.manifest, steps, shaped[1:], fills_pauses=fills)
    moves = [partial(use_for_gloo, machine) for machine in shaped[2:]]
    for name in pipelining.SCHEDULES:
        if name in contest.only:
            found[name] = partial(pipelining.step_seconds, contest.manifest, steps, name, moves)
    return found


def use_for_gloo(machine: Machine) -> None:
    """Move this process to a machine, and gloo to its link."""
    machine.enter()
    os.environ["GLOO_SOCKET_IFNAME"] = INTERFACE
