"""A swarm that falls into two sides, each with spares: what is judged beside all else, and random splits for it."""

from __future__ import annotations

import random
from typing import Any

from tests.sim.faults import CALM, Fault, Split, Trigger, Weather
from tests.sim.node import SimNode, Violation
from tests.sim.schedules import SPLIT_LIMIT_S, Schedule
from tests.sim.simulation import Simulation, small_manifest
from understudy.protocol.ids import PeerId

CUT_S = 1.0
"""What was on its way when the line was cut may still close one step on the side that will wait."""


class SidesSimulation(Simulation):
    """Judges who commits while the swarm is split, and what becomes of it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.split_commits: list[tuple[bool, int]] = []
        """Of each commit during the split: was it on the side that is named in the fault, and its step."""
        self._settled = 0
        """The last step that the side that goes on committed while the swarm was split."""

    def _note(self, node: SimNode, name: str, fields: dict[str, Any]) -> None:
        super()._note(node, name, fields)
        if name == "step.committed":
            self._judge_commit(node.peer, fields["step"])

    def _judge_commit(self, peer: PeerId, step: int) -> None:
        for split in self._splits:
            if split.began + CUT_S < self.now < split.until:
                side = peer in split.group
                self.split_commits.append((side, step))
                if len({committed for committed, _ in self.split_commits}) > 1:
                    raise Violation(f"both sides of a split commit: {self.split_commits}")
                self._settled = max(self._settled, step)
            elif self.now >= split.until and step <= self._settled:
                raise Violation(f"step {step} is committed again, after the side that went on came to {self._settled}")


def sides_schedule(seed: int, method: str) -> Schedule:
    """One split with spares on both sides."""
    rng = random.Random(seed)
    stages = rng.randint(3, 7)
    manifest = small_manifest(stages=stages, steps=40, microbatches=2, method=method)
    group = tuple(sorted(rng.sample(range(stages), rng.randint(1, stages - 1))))
    spares = rng.randint(2, 5)
    when = Trigger(rng.randrange(stages), rng.randint(2, 15), "forward", rng.uniform(0.0, 0.3))
    fault: Fault = Split(when, rng.choice([6.0, 10.0, 20.0, 40.0]), group, spares=rng.randint(1, spares - 1))
    return Schedule(seed, manifest, (fault,), spares, rng.choice([CALM, CALM, Weather(loss=0.02)]), SPLIT_LIMIT_S)


def run_sides(seed: int, method: str) -> SidesSimulation:
    """Run it to the end. Raises `Violation`."""
    try:
        simulation = sides_schedule(seed, method).staged(SidesSimulation)
        simulation.run(SPLIT_LIMIT_S)
        simulation.check_outcome()
    except Violation as violation:
        raise Violation(f"sides_schedule({seed}, {method!r}): {violation}") from violation
    return simulation
