"""The seed: the first DHT peer of a run. It hosts no stage; the swarm goes on without it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from understudy.bootstrap.found import found, join_string
from understudy.node.addresses import JoinString
from understudy.node.identity import Identity
from understudy.node.initial_weights import InitialWeights
from understudy.node.swarm import Swarm, SwarmConfig, dht_time
from understudy.node.transfer import WeightsServer, fetch_protocol
from understudy.protocol.errors import NetworkError
from understudy.protocol.manifest import RunManifest
from understudy.protocol.records import MANIFEST_KEY, ManifestRecord, encode_record

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SeedPlan:
    """What a seed does besides being there."""

    announce: Callable[[JoinString], None]
    initial: InitialWeights | None = None
    """The weights that the run begins with, for its stages to fetch."""


async def serve_seed(
    manifest: RunManifest,
    identity: Identity,
    config: SwarmConfig,
    plan: SeedPlan,
    is_stopped: asyncio.Event,
) -> None:
    """Open the DHT, publish the manifest, tell ``plan.announce`` the join string, go on until stopped."""
    async with Swarm.open(config, identity) as swarm:
        if plan.initial is not None:
            weights = WeightsServer(plan.initial.may_fetch, plan.initial.find)
            await swarm.serve_streams(fetch_protocol(manifest.run_id()), weights.serve)
        charter = found(manifest, identity)
        await _publish(swarm, manifest, charter)
        plan.announce(join_string(manifest, identity, swarm.addresses))
        async with asyncio.TaskGroup() as tasks:
            owned = [tasks.create_task(swarm.watch_daemon()), tasks.create_task(_republish(swarm, manifest, charter))]
            await is_stopped.wait()
            for task in owned:
                task.cancel()


async def _republish(swarm: Swarm, manifest: RunManifest, charter: ManifestRecord) -> None:
    while True:
        await asyncio.sleep(manifest.timing.record_refresh_s)
        try:
            await _publish(swarm, manifest, charter)
        except NetworkError as error:
            logger.warning("%s", error)


async def _publish(swarm: Swarm, manifest: RunManifest, charter: ManifestRecord) -> None:
    key = f"{manifest.run_id()}/{MANIFEST_KEY}"
    expiration = dht_time() + manifest.timing.record_lifetime_s
    await swarm.store(key, charter.peer, encode_record(charter), expiration)
