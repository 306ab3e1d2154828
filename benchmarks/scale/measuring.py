"""One swarm: let it settle, watch it for a while, kill an owner, and see how long the others take."""

from __future__ import annotations

import time
from collections.abc import Collection

from benchmarks.scale.metering import Meter, MeteredSimulation
from benchmarks.scale.results import Case, Cost, Outcome
from tests.sim.simulation import LogLine, replace_settings, small_manifest
from understudy.protocol.ids import PeerId

ARRIVE_S = 20.0
"""Spares join one by one over this time."""
SETTLE_S = 60.0
"""By then the records of everybody's arrival have expired."""
RECOVERY_LIMIT_S = 120.0
CALM_S = 30.0
"""From the first loss to the second: by then no record of the first is left."""
MICROBATCHES = 4


def measure(case: Case, window_s: float = 20.0, seed: int = 0) -> Outcome:
    """Costs over ``window_s`` simulated seconds without faults, then one silent and one loud loss."""
    swarm = build(case, seed)
    swarm.advance(SETTLE_S)
    swarm.reset()
    began = time.process_time()
    swarm.advance(SETTLE_S + window_s)
    cpu_seconds = (time.process_time() - began) / window_s
    owners = {node.peer for stage in range(case.stages) if (node := swarm.owner(stage)) is not None}
    roles = {"owners": owners, "spares": set(swarm.nodes) - owners, "everybody": set(swarm.nodes)}
    costs = {role: cost_of(swarm, peers, window_s) for role, peers in roles.items()}
    busiest = max(swarm.keys.reads, key=swarm.keys.reads.__getitem__)
    busiest_key_reads_per_s = swarm.keys.reads[busiest] / window_s
    killed = lose(swarm, case.stages // 2, is_silent=False)
    swarm.advance(swarm.now + CALM_S)
    return Outcome(
        case=case,
        **costs,
        busiest_key=busiest,
        busiest_key_reads_per_s=busiest_key_reads_per_s,
        cpu_seconds_per_s=cpu_seconds,
        killed=killed,
        vanished=lose(swarm, case.stages // 2, is_silent=True),
    )


def build(case: Case, seed: int) -> MeteredSimulation:
    """One peer per stage at once, spares one after the other."""
    manifest = small_manifest(stages=case.stages, microbatches=MICROBATCHES)
    manifest = replace_settings(manifest, step=replace_settings(manifest.step, total_steps=0))
    swarm = MeteredSimulation(manifest, seed, [])
    for stage in range(case.stages):
        swarm.add_node(f"peer-{stage}", wanted_stage=stage)
    spares = case.peers - case.stages
    for number in range(spares):
        swarm.add_node(f"spare-{number}", at=3.0 + ARRIVE_S * number / spares)
    swarm.reset()
    return swarm


def cost_of(swarm: MeteredSimulation, peers: Collection[PeerId], window_s: float) -> Cost:
    """Means per peer and simulated second."""
    meters = [swarm.meters[peer] for peer in peers]
    share = 1 / (window_s * max(1, len(meters)))

    def mean(name: str) -> float:
        return float(sum(getattr(meter, name) for meter in meters)) * share

    return Cost(len(meters), **{name: mean(name) for name in Meter.__dataclass_fields__})


def lose(swarm: MeteredSimulation, stage: int, *, is_silent: bool) -> tuple[float, float] | None:
    """Kill a stage's owner: simulated seconds until somebody knew, and until the stage was served again."""
    victim = swarm.owner(stage)
    if victim is None:
        return None
    killed_at, first = swarm.now, len(swarm.log)
    swarm.kill(victim, is_silent)
    while swarm.now < killed_at + RECOVERY_LIMIT_S:
        swarm.advance(swarm.now + 0.25)
        since = swarm.log[first:]
        served = _when(since, "peer.serving", stage)
        detected = _when(since, "peer.dead", stage)
        if served is not None and detected is not None:
            return detected - killed_at, served - killed_at
    return None


def _when(log: list[LogLine], name: str, stage: int) -> float | None:
    return next((line.time for line in log if line.name == name and line.fields.get("stage") == stage), None)
