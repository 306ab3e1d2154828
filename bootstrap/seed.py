"""The seed: the first DHT peer of a run. It hosts no stage; the swarm goes on without it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from understudy.bootstrap.founding import found, join_string
from understudy.node.admission.door import Door
from understudy.node.data.prefetch import off_the_loop
from understudy.node.dht.config import SwarmConfig
from understudy.node.dht.hivemind_dht import dht_time
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.export.initial_weights import InitialWeights
from understudy.node.links.transfer import WeightsServer, fetch_protocol
from understudy.node.p2p.addresses import JoinString
from understudy.node.p2p.identity import Identity
from understudy.node.reach.opening import serve_dial_back
from understudy.protocol.admission.invite import Ticket
from understudy.protocol.admission.revocation import RevocationList
from understudy.protocol.errors import NetworkError, SettingsError
from understudy.protocol.manifest import RunManifest
from understudy.protocol.wire.records import MANIFEST_KEY, ManifestRecord, encode_record

logger = logging.getLogger(__name__)

REVOKED_EVERY_S = 1.0
"""What `understudy revoke` wrote is looked for so often."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Of an invited run: the seed's door, the invite that it hands out, and what its founder revoked by now."""

    door: Door
    ticket: Ticket
    revoked: Callable[[], RevocationList]


@dataclass(frozen=True, slots=True)
class SeedPlan:
    """What a seed does besides being there."""

    announce: Callable[[JoinString], None]
    initial: InitialWeights | None = None
    """The weights that the run begins with, for its stages to fetch."""
    admission: Admission | None = None
    """None: the run is open."""


async def serve_seed(
    manifest: RunManifest,
    identity: Identity,
    config: SwarmConfig,
    plan: SeedPlan,
    is_stopped: asyncio.Event,
) -> None:
    """Open the DHT, publish the manifest, tell ``plan.announce`` the join string, go on until stopped."""
    if plan.admission is not None:
        config = replace(config, door=plan.admission.door)
    async with P2PNode.open(config, identity) as p2p:
        await serve_dial_back(p2p)
        if plan.initial is not None:
            weights = WeightsServer(plan.initial.may_fetch, plan.initial.find)
            await p2p.serve_streams(fetch_protocol(manifest.run_id()), weights.serve)
        signed_manifest = found(manifest, identity)
        await _publish(p2p, manifest, signed_manifest)
        ticket = plan.admission.ticket if plan.admission is not None else None
        plan.announce(join_string(manifest, identity, p2p.addresses, ticket))
        async with asyncio.TaskGroup() as tasks:
            owned = [
                tasks.create_task(p2p.watch_daemon()),
                tasks.create_task(_republish(p2p, manifest, signed_manifest)),
                tasks.create_task(p2p.keep_door()),
            ]
            if plan.admission is not None:
                owned.append(tasks.create_task(_take_back(plan.admission)))
            await is_stopped.wait()
            for task in owned:
                task.cancel()


async def _take_back(admission: Admission) -> None:
    """The swarm hears of what was revoked from whoever revoked it, too, if that could be reached."""
    while True:
        await asyncio.sleep(REVOKED_EVERY_S)
        try:
            admission.door.take(await off_the_loop(admission.revoked))
        except SettingsError as error:
            logger.warning("%s", error)


async def _republish(p2p: P2PNode, manifest: RunManifest, signed_manifest: ManifestRecord) -> None:
    while True:
        await asyncio.sleep(manifest.timing.record_refresh_s)
        try:
            await _publish(p2p, manifest, signed_manifest)
        except NetworkError as error:
            logger.warning("%s", error)


async def _publish(p2p: P2PNode, manifest: RunManifest, signed_manifest: ManifestRecord) -> None:
    key = f"{manifest.run_id()}/{MANIFEST_KEY}"
    expiration = dht_time() + manifest.timing.record_lifetime_s
    await p2p.store(key, signed_manifest.peer, encode_record(signed_manifest), expiration)
