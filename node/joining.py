"""From a join string to the run's manifest, checked against what the join string promises."""

from __future__ import annotations

import asyncio

from understudy.node.dht.p2p_node import P2PNode
from understudy.node.p2p.addresses import JoinString
from understudy.node.p2p.identity import peer_id_of, verify
from understudy.node.ui.telemetry import logger
from understudy.protocol.errors import NetworkError, RemoteProtocolError, SettingsError, UnderstudyError
from understudy.protocol.manifest import RunManifest
from understudy.protocol.manifest_reader import decode_manifest
from understudy.protocol.wire.records import MANIFEST_KEY, ManifestRecord, decode_record

FIND_TIMEOUT_S = 15.0
"""How long the manifest is looked for: a seed that just started needs a moment to publish it."""
LOOK_AGAIN_AFTER_S = 0.3
ANOTHER_TIMEOUT_S = 2.0
"""How much longer it is looked for once there is one that is not it: strangers can publish under its key too."""


async def obtain_manifest(p2p: P2PNode, join: JoinString) -> tuple[RunManifest, ManifestRecord]:
    """The run's manifest and the founder's record of it. Raises `NetworkError` or `SettingsError`.

    A question that nobody answers ends nothing: it is asked again as long as there is time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + FIND_TIMEOUT_S
    problem: UnderstudyError = NetworkError(
        f"the swarm was reached, but nobody knows the run {join.run_id}: "
        "check the join string, the run may have ended or the seed may have been restarted with a new one"
    )
    has_told = False
    while loop.time() < deadline:
        try:
            found = await p2p.get(f"{join.run_id}/{MANIFEST_KEY}")
        except NetworkError as error:
            found, problem = [], problem if isinstance(problem, SettingsError) else error
        for stored in found:
            try:
                record = decode_record(MANIFEST_KEY, stored.owner, stored.value)
                if isinstance(record, ManifestRecord):
                    manifest = check_signed_manifest(record, join)
                    check_admission(manifest, join)
                    return manifest, record
            except (SettingsError, RemoteProtocolError) as error:
                problem = SettingsError(str(error))
                if isinstance(error, SettingsError) and deadline > loop.time() + ANOTHER_TIMEOUT_S:
                    deadline = loop.time() + ANOTHER_TIMEOUT_S
                    logger.info("%s (looking for another, for %g s)", problem, ANOTHER_TIMEOUT_S)
        if isinstance(problem, NetworkError) and not has_told:
            logger.info("the swarm was reached; nobody shows the run's manifest yet, looking for %g s", FIND_TIMEOUT_S)
            has_told = True
        await asyncio.sleep(LOOK_AGAIN_AFTER_S)
    raise problem


def check_admission(manifest: RunManifest, join: JoinString) -> None:
    """Whoever came in by an invite must be where one is asked for. Raises `SettingsError`."""
    if (manifest.admission == "invited") != (join.ticket is not None):
        raise SettingsError(
            f"the run is {manifest.admission}, and the join string {'has an' if join.ticket else 'has no'} invite: "
            "ask the founder for the join string again"
        )


def check_signed_manifest(record: ManifestRecord, join: JoinString) -> RunManifest:
    """The manifest, if it is the one that the join string names and the founder signed. Raises `SettingsError`."""
    manifest = decode_manifest(record.manifest)
    if manifest.digest() != join.digest:
        raise SettingsError(
            f"the run's manifest has digest {manifest.digest()[:12]}.., the join string says {join.digest[:12]}..: "
            "the join string is damaged or of another run, ask for it again"
        )
    try:
        signer = peer_id_of(record.founder_key)
    except RemoteProtocolError as error:
        raise SettingsError(f"the manifest's signature cannot be checked: {error}") from error
    if signer != join.founder:
        raise SettingsError(
            f"the run's manifest is signed by {signer}, and the join string names the founder {join.founder}: "
            "it is not of this run, or not honest; ask the founder for the join string"
        )
    if not verify(record.founder_key, record.manifest, record.signature):
        raise SettingsError("the run's manifest is not signed by its founder: do not join this run")
    return manifest
