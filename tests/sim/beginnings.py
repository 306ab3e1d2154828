"""A simulated run that begins with weights of its own, and the founder that serves them for a while."""

from __future__ import annotations

from typing import Any

from tests.sim.node import SimNode, Snapshot
from tests.sim.simulation import FETCH_S, Simulation, replace_settings
from understudy.protocol.actions import Fetch
from understudy.protocol.events import Fetched, FetchFailed
from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import InitialSettings, RunManifest

FOUNDER = PeerId("founder")


def begun(manifest: RunManifest) -> RunManifest:
    """The same run with initial weights."""
    digests = tuple(f"{stage:064x}" for stage in range(manifest.stage_count))
    return replace_settings(manifest, initial=InitialSettings(digests=digests, peer=FOUNDER))  # type: ignore[no-any-return]


class BegunSimulation(Simulation):
    """A swarm whose founder holds no stage and may be away for a while, or for good."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.founder_leaves = self.founder_returns = float("inf")

    def _fetch(self, node: SimNode, fetch: Fetch) -> None:
        if fetch.part == "initial":
            self.at(self.now + FETCH_S, lambda: self._deliver(node, fetch))
        else:
            super()._fetch(node, fetch)

    def _deliver(self, node: SimNode, fetch: Fetch) -> None:
        stage = fetch.claim[0]
        assert fetch.donor == FOUNDER
        assert fetch.digest == self.manifest.initial.digests[stage]
        if not self.founder_leaves <= self.now < self.founder_returns:
            weights = Snapshot(FOUNDER, stage, 0, 100.0 + stage, None)
            self.feed(node, Fetched(fetch.claim, FOUNDER, fetch.digest, weights))
        else:
            self.feed(node, FetchFailed(fetch.claim, FOUNDER, fetch.digest, "gone"))
