"""One round: plain bytes, then everybody in turn on links of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.fresh import in_fresh_process
from benchmarks.links.machines import INTERFACE, Machine
from benchmarks.links.namespaces import open_links
from benchmarks.links.raw import bytes_per_s
from benchmarks.links.results import SWARM, UNSHAPED, Round
from benchmarks.throughput import pipelining, swarm
from understudy.protocol.manifest import RunManifest

RAW_SECONDS = 2.0
"""For how long plain bytes are sent in each round."""


@dataclass(frozen=True, slots=True)
class Contest:
    """What everybody trains, and on which links."""

    source: str
    manifest: RunManifest
    rate_mbit: float
    steps: int
    only: tuple[str, ...]
    """Of torch's schedules."""


def play(contest: Contest, tell: Callable[[str], None]) -> Round:
    """Raises `SettingsError` if links cannot be had here."""
    machines = 1 + contest.manifest.stage_count  # the seed has one of its own
    with open_links(machines, None) as free, open_links(machines, contest.rate_mbit) as shaped:
        raw = bytes_per_s(shaped[1], shaped[2], round(RAW_SECONDS * contest.rate_mbit * 1e6 / 8))
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
    moves = [partial(use_for_gloo, machine) for machine in shaped[2:]]
    for name in pipelining.SCHEDULES:
        if name in contest.only:
            found[name] = partial(pipelining.step_seconds, contest.manifest, steps, name, moves)
    return found


def use_for_gloo(machine: Machine) -> None:
    """Move this process to a machine, and gloo to its link."""
    machine.enter()
    os.environ["GLOO_SOCKET_IFNAME"] = INTERFACE
