"""Random runs from one number: the size of the swarm, its faults and its weather."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

from tests.sim.faults import (
    CALM,
    Fault,
    Kill,
    Restart,
    Trigger,
    Weather,
    brief_fault,
    harsh_faults,
    hindered_faults,
    one_split,
    random_faults,
    stuck_faults,
)
from tests.sim.simulation import S, Simulation, build, replace_settings, small_manifest
from understudy.protocol.manifest import RunManifest

LIMIT_S = 900.0
"""Simulated seconds after which a run counts as stuck."""

SPLIT_LIMIT_S = 3000.0
"""The same for a run of 60 steps, where each message that is lost unseen costs its microbatch's deadline."""

WEATHERS = (
    CALM,
    CALM,
    Weather(loss=0.02),
    Weather(duplication=0.1, is_reordered=True),
    Weather(latency_s=(0.01, 0.2), loss=0.01, duplication=0.05, is_reordered=True),
)


MORE = int(os.environ.get("SIM_SEEDS", "1"))
"""Times as many random schedules of each kind as with the other tests: SIM_SEEDS=20 make test TESTS=tests/sim."""


def seeds(first: int, count: int) -> range:
    """The seeds of one kind of schedule."""
    return range(first, first + count * MORE)


@dataclass(frozen=True)
class Schedule:
    """All that a run depends on."""

    seed: int
    manifest: RunManifest
    faults: tuple[Fault, ...]
    spares: int
    weather: Weather
    limit_s: float = LIMIT_S

    def staged(self, kind: type[S]) -> S:
        """The swarm before its first event."""
        faults = list(self.faults)
        return build(self.seed, faults, manifest=self.manifest, spares=self.spares, weather=self.weather, kind=kind)

    def run(self) -> Simulation:
        """Run it to the end. Raises `Violation` if an invariant breaks."""
        simulation = self.staged(Simulation)
        simulation.run(self.limit_s)
        simulation.check_outcome()
        return simulation


def copying(seed: int) -> dict[str, int]:
    """Every other run has standby copies; the others rebuild what they lose from its neighbours."""
    return {"standby_every": seed % 2 * 5, "standby_age_max": 8}


def schedule(seed: int, method: str) -> Schedule:
    """The schedule of a seed. The order of the draws is part of what a recorded seed means: never change it."""
    rng = random.Random(seed)
    manifest = small_manifest(
        stages=rng.choice([3, 4, 5, 6]),
        steps=rng.choice([4, 6, 10]),
        microbatches=rng.choice([2, 4]),
        method=method,
        **copying(seed),
    )
    count = rng.choice([0, 1, 1, 2, 3])
    faults = random_faults(rng, manifest.stage_count, manifest.step.total_steps, count)
    weather = rng.choice(WEATHERS)
    return Schedule(seed, manifest, tuple(faults), count + 1, weather)


HARSH_WEATHERS = (*WEATHERS[2:], Weather(straggling=0.02), Weather(loss=0.01, duplication=0.2, straggling=0.05))


def harsh_schedule(seed: int, method: str) -> Schedule:
    """Larger swarms, more faults, splits, stragglers, and windows that leave microbatches waiting."""
    rng = random.Random(seed)
    manifest = small_manifest(
        stages=rng.randint(2 if method == "checkfree" else 3, 7),
        steps=rng.choice([4, 6, 10]),
        microbatches=rng.randint(2, 6),
        method=method,
        **copying(seed),
        norm_exponent=rng.choice([0, 1, 2]),
    )
    manifest = replace_settings(manifest, step=replace_settings(manifest.step, window=rng.choice([0, 1, 2, 3])))
    count = rng.randint(0, 5)
    faults = harsh_faults(rng, manifest.stage_count, manifest.step.total_steps, count)
    return Schedule(seed, manifest, tuple(faults), count + 1, rng.choice(HARSH_WEATHERS))


def brief_schedule(seed: int, method: str) -> Schedule:
    """One pause, partition or cut link of about the time after which a peer counts as dead."""
    rng = random.Random(seed)
    stages = rng.randint(3, 6)
    manifest = small_manifest(stages=stages, steps=40, microbatches=rng.choice([2, 4]), method=method, **copying(seed))
    return Schedule(seed, manifest, (brief_fault(rng, stages, 10),), rng.randint(1, 3), rng.choice(WEATHERS[:3]))


def split_schedule(seed: int, method: str) -> Schedule:
    """One split of a swarm with spares on both sides, and many steps behind it."""
    rng = random.Random(seed)
    stages = rng.randint(3, 6)
    manifest = small_manifest(stages=stages, steps=60, microbatches=rng.choice([2, 4]), method=method, **copying(seed))
    fault, spares, weather = one_split(rng, stages, 60), rng.randint(1, 5), rng.choice(WEATHERS[:3])
    return Schedule(seed, manifest, (fault,), spares, weather, SPLIT_LIMIT_S)


def restart_schedule(seed: int, method: str) -> Schedule:
    """Owners that are killed and start again under their own identity, with and without a spare that waits."""
    rng = random.Random(seed)
    stages = rng.randint(3, 6)
    manifest = small_manifest(stages=stages, steps=20, microbatches=rng.choice([2, 4]), method=method, **copying(seed))
    faults = tuple(
        Restart(
            Trigger(stage := rng.randrange(stages), rng.randint(1, 15), rng.choice(["forward", "backward", "apply"])),
            rng.choice([0.0, 0.3, 3.0, 8.0, 25.0]),
            stage,
        )
        for _ in range(rng.randint(1, 3))
    )
    return Schedule(seed, manifest, faults, rng.randint(0, 1), rng.choice(WEATHERS))


def hindered_schedule(seed: int, method: str) -> Schedule:
    """Beside harsh faults: messages lost and late by their kind, readers of old records, updates that overflow."""
    rng = random.Random(seed)
    manifest = small_manifest(
        stages=rng.randint(2 if method == "checkfree" else 3, 7),
        steps=rng.choice([4, 6, 10]),
        microbatches=rng.randint(2, 8),
        method=method,
        **copying(seed),
        edge_copy_every=rng.choice([0, 1, 1, 2]),
        edge_keepers=rng.choice([1, 2, 2, 3]),
    )
    manifest = replace_settings(manifest, step=replace_settings(manifest.step, window=rng.choice([0, 1, 2, 3])))
    count = rng.randint(1, 4)
    faults = hindered_faults(rng, manifest.stage_count, manifest.step.total_steps, count)
    kills = sum(isinstance(fault, Kill) for fault in faults)
    return Schedule(seed, manifest, tuple(faults), max(count, kills) + 1, rng.choice([CALM, CALM, *HARSH_WEATHERS]))


def stuck_schedule(seed: int, method: str) -> Schedule:
    """Owners whose compute threads hang while their heartbeats go on, beside other faults, with spares for all."""
    rng = random.Random(seed)
    stages = rng.randint(3, 6)
    manifest = small_manifest(
        stages=stages, steps=rng.choice([10, 30]), microbatches=rng.choice([2, 4, 6]), method=method, **copying(seed)
    )
    count = rng.randint(1, 2)
    faults = stuck_faults(rng, stages, manifest.step.total_steps, count)
    return Schedule(seed, manifest, tuple(faults), len(faults) + 1, rng.choice(WEATHERS))
