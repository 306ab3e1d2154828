"""A founder against the volunteers: manifests that are signed, found in a real DHT, and made to do harm.

Each was taken once. The first let a founder read a private key of whoever joined with default options.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import uvloop

from tests.swarm.nursery import Nursery
from tests.swarm.processes import Brood
from understudy.node.dht.config import SwarmConfig
from understudy.node.dht.hivemind_dht import dht_time
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.p2p.addresses import JoinString
from understudy.node.p2p.identity import Identity
from understudy.protocol.manifest import RunManifest
from understudy.protocol.wire.records import MANIFEST_KEY, ManifestRecord, encode_record

START_TIMEOUT_S = 180.0
"""Many processes start at once, on a machine that may be busy."""
AT_ONCE = 3
RECORD_LIFETIME_S = 600.0
MEMORY_BYTES_MAX = 700 << 20
"""Of a node that refuses: it has read nothing and allocated nothing."""
USAGE = 2
SECRET = "-----BEGIN PRIVATE KEY-----"
STREAMED = {"source": "huggingface", "end_of_text": ".", "digest": "0" * 64, "tokenizer_digest": "0" * 64}
REVISIONS = dict.fromkeys(("revision", "tokenizer_revision"), "a" * 40)
HUGE = {"hidden_size": 1 << 16, "intermediate_size": 1 << 18, "layers_per_stage": 1024}
LARGE = {"hidden_size": 1 << 15, "intermediate_size": 1 << 15, "vocabulary_size": 1 << 18}

REFUSED: dict[str, tuple[Mapping[str, Any], str]] = {
    "a-private-key": ({"data": {"source": "text", "paths": ["SECRET", "/proc/self/environ"], "digest": ""}}, "`paths`"),
    "a-file-without-end": ({"data": {"source": "text", "paths": ["/proc/kmsg"]}}, "unknown field `paths`"),
    "any-text-at-all": ({"data": {"source": "text", "digest": ""}}, "no digest of the text: do not join this run"),
    "a-tokenizer-that-is-a-file": (
        {"data": {**STREAMED, "tokenizer": "SECRET", "tokenizer_revision": "a" * 40}},
        "and names of the hub are owner/name",
    ),
    "a-tokenizer-without-end": (
        {"data": {**STREAMED, "tokenizer": "/dev/zero", "tokenizer_revision": "a" * 40}},
        "and names of the hub are owner/name",
    ),
    "281-terabytes": ({"model": HUGE}, "the weights of a block stage would be 281,4"),
    "more-than-the-machine-has": (
        {"model": LARGE},
        "this machine can take no stage of this run: a block",
    ),
    "a-nanosecond": ({"timing": {"heartbeat_s": 1e-9}}, r"`float` >= 0.05 - at `$.timing.heartbeat_s`"),
    "a-terminal": ({"\x1b[2J\x1b]0;owned\x07": 1}, r"unknown field `\x1b[2J\x1b]0;owned\x07`"),
    "a-heading": (
        {"data": {**STREAMED, "dataset": "a/b\n# free", "revision": "a" * 40}},
        r"cannot be printed: a/b\n# ",
    ),
}
"""Of each run, what its founder asks for, and what the volunteer's node answers."""

JOINED: dict[str, tuple[Mapping[str, Any], str]] = {
    "text-by-digest": (
        {"data": {"source": "text", "digest": "0" * 64}},
        "lies on this machine with --data",
    ),
    "a-dataset-of-the-hub": (
        {"data": {**STREAMED, **dict.fromkeys(("dataset", "tokenizer"), "some/where"), **REVISIONS}},
        "allow this machine to ask for it with --allow-hub",
    ),
}
"""Runs that a volunteer may join with default options: all but S0."""


def attack(name: str, settings: Mapping[str, Any], secret: Path) -> bytes:
    """A manifest as a hostile founder writes it: ours, but for what is wanted."""
    table = msgspec.to_builtins(RunManifest(name=name, admission="open"))
    for key, value in settings.items():
        table[key] = {**table.get(key, {}), **value} if isinstance(value, dict) else value
    return msgspec.json.encode(table, order="sorted").replace(b"SECRET", str(secret).encode())


async def publish(p2p: P2PNode, founder: Identity, name: str, encoded: bytes) -> JoinString:
    """Sign it and put it where newcomers look."""
    with suppress(msgspec.ValidationError):
        honest = msgspec.json.decode(encoded, type=RunManifest)
        assert honest.encode() == encoded
    digest = hashlib.sha256(encoded).hexdigest()
    run_id = f"{name}-{digest[:12]}"
    record = ManifestRecord(founder.peer_id, encoded, founder.public_key_bytes, founder.sign(encoded))
    key = f"{run_id}/{MANIFEST_KEY}"
    await p2p.store(key, founder.peer_id, encode_record(record), dht_time() + RECORD_LIFETIME_S)
    return JoinString(run_id, digest, founder.peer_id, p2p.addresses)


def test_no_manifest_does_a_volunteer_harm(
    brood: Brood, nursery: Nursery, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    brood.include_us(monkeypatch)
    secret = tmp_path / "id_rsa"
    secret.write_text(f"{SECRET}\n" * 100)

    async def main() -> None:
        founder = Identity.load_or_create(tmp_path / "founder.key")
        async with P2PNode.open(SwarmConfig(("/ip4/127.0.0.1/tcp/0",)), founder) as p2p:
            joins = {
                name: str(await publish(p2p, founder, name, attack(name, settings, secret)))
                for name, (settings, _) in (REFUSED | JOINED).items()
            }
            await asyncio.to_thread(volunteer, brood, nursery, joins)

    uvloop.run(main())
    for name, (_, told) in (REFUSED | JOINED).items():
        log = nursery.log(name)
        assert told in log
        assert SECRET not in log
        assert "\x1b" not in log
        assert "Traceback" not in log
        assert not any(event.get("stage") == 0 for event in nursery.events(name))


def volunteer(brood: Brood, nursery: Nursery, joins: Mapping[str, str]) -> None:
    """Join every run with default options, some at a time, and leave those that took us."""
    largest: dict[str, int] = {}

    def is_answered(name: str) -> bool:
        with suppress(psutil.NoSuchProcess, FileNotFoundError, ValueError):  # gone, or about to be born
            size = psutil.Process(nursery.process_id(name)).memory_info().rss
            largest[name] = max(largest.get(name, 0), size)
        return name in nursery.statuses() or bool(nursery.events(name))

    names = list(joins)
    for some in (names[at : at + AT_ONCE] for at in range(0, len(names), AT_ONCE)):
        for name in some:
            nursery.join(name, joins[name])
        brood.until(lambda some=some: all(is_answered(name) for name in some), f"{some} to answer", START_TIMEOUT_S)
    for name in set(JOINED) - set(nursery.statuses()):
        psutil.Process(nursery.process_id(name)).send_signal(signal.SIGTERM)
    brood.until(lambda: set(names) <= set(nursery.statuses()), "the end of all", START_TIMEOUT_S)
    assert nursery.statuses() == {**dict.fromkeys(REFUSED, USAGE), **dict.fromkeys(JOINED, 0)}
    assert {name: size for name, size in largest.items() if name in REFUSED and size > MEMORY_BYTES_MAX} == {}
