"""A small swarm of real peers, and what its nodes wrote and weigh."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import psutil

from tests.swarm.nursery import Nursery
from tests.swarm.processes import Brood
from tests.swarm.small_run import small_run
from understudy.protocol.ids import PeerId

RUN = small_run("pestered", 3.0, 6.0)
STAGES = (0, 1, 2)
START_TIMEOUT_S = 60.0
GROWTH_BYTES_MAX = 100 << 20


class Swarm:
    """A seed, three stages and as many spares as are asked for."""

    def __init__(self, brood: Brood, nursery: Nursery, spares: int = 1) -> None:
        self._brood, self.nursery = brood, nursery
        source = brood.folder / "run.toml"
        source.write_text(RUN, encoding="utf-8")
        self.join = nursery.found(str(source), 10**6)
        self.owners = [f"stage-{stage}" for stage in STAGES]
        self.names = [*self.owners, *(f"spare-{number}" for number in range(spares))]
        for stage, name in enumerate(self.owners):
            nursery.join(name, self.join, stage)
        self.until_steps(3)
        for name in self.names[len(self.owners) :]:
            nursery.join(name, self.join)
            self.until(lambda name=name: self.has(name, "peer.spare"), f"{name} to wait")  # type: ignore[misc]
        self._weight = {name: self._rss(name) for name in (*self.names, "seed")}

    def peers(self) -> list[PeerId]:
        """In order of the names."""
        return [PeerId(self.nursery.events(name)[0]["peer"]) for name in self.names]

    def has(self, name: str, event: str) -> bool:
        return any(found["event"] == event for found in self.nursery.events(name))

    def until(self, condition: object, what: str, timeout_s: float = START_TIMEOUT_S) -> None:
        self._brood.until(condition, what, timeout_s)  # type: ignore[arg-type]

    def steps(self) -> list[float]:
        """When which step was committed, whoever drove."""
        found: dict[int, float] = {}
        for name in self.names:
            for event in self.nursery.events(name):
                if event["event"] == "step.committed":
                    found[event["step"]] = event["time"]
        return [found[step] for step in sorted(found)]

    def until_steps(self, more: int) -> None:
        reached = len(self.steps())
        self.until(lambda: len(self.steps()) >= reached + more, f"{more} more commits")

    def standstill_s(self, since: float) -> float:
        """The longest time without a commit from then to now."""
        times = [since, *(moment for moment in self.steps() if moment > since), time.time()]
        return max(after - before for before, after in pairwise(times))

    def _rss(self, name: str) -> int:
        return psutil.Process(self.nursery.process_id(name)).memory_info().rss

    def growth_bytes(self) -> int:
        """Of the node that grew most since the start, of those that live."""
        ended = self.nursery.statuses()
        return max(self._rss(name) - size for name, size in self._weight.items() if name not in ended)

    def log_lines(self, name: str) -> Sequence[str]:
        return self.nursery.log(name).splitlines()
