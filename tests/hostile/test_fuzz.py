"""Valid inputs with random damage: whatever comes of them is taken, or refused with an error of ours.

`FUZZ_INPUTS=1000000 .venv/bin/python -m pytest tests/hostile/test_fuzz.py` tries a million, `FUZZ_SEED` other ones.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
import pytest

from understudy.node.p2p.addresses import JoinString, parse_join
from understudy.protocol.errors import RemoteProtocolError, SettingsError
from understudy.protocol.ids import Attempt, PeerId
from understudy.protocol.manifest import PROTOCOL_VERSION
from understudy.protocol.manifest_reader import decode_manifest
from understudy.protocol.presets import PRESETS, preset
from understudy.protocol.wire.contact import Contact
from understudy.protocol.wire.frames import MESSAGE_BYTES_MAX, PREFIX, decode_frame, decode_prefix, encode_frame
from understudy.protocol.wire.messages import (
    Announce,
    AnyMessage,
    Claim,
    Commit,
    CopyOffer,
    Donation,
    FetchHeader,
    Forward,
    Grant,
    Heartbeat,
    Hello,
    LeaseStatus,
)
from understudy.protocol.wire.records import (
    AnyRecord,
    ManifestRecord,
    OfferRecord,
    ProgressRecord,
    SpareRecord,
    StageRecord,
    decode_record,
    encode_record,
    key_of,
)
from understudy.protocol.wire.tensors import TensorHeader, TensorSpec

INPUTS = int(os.environ.get("FUZZ_INPUTS", "10000"))
SEED = int(os.environ.get("FUZZ_SEED", "20250614"))
PEER = "QmUwi4gEMbVdFjXoMfTiFg18YePuYNjEBB3jUYxSoWwP12"
CONTACT = Contact((f"/ip4/5.5.5.5/tcp/4001/p2p/{PEER}",), relays=True, reachability="public")
TENSOR = TensorHeader("float32", (2, 32, 32))
DIGEST = "d" * 64

MESSAGES: tuple[tuple[AnyMessage, TensorHeader | None], ...] = (
    (Hello(PROTOCOL_VERSION, DIGEST, CONTACT), None),
    (Heartbeat(1, 1, "serving", 7), None),
    (Announce(1, 2, "recovering", 7), None),
    (Claim(2, 3, (1, 3)), None),
    (Grant(2, 3, 7, (Donation("stage", 1, 7, 0.5, 1000, DIGEST),)), None),
    (Commit(1, 7), None),
    (CopyOffer(0, 1, "head", 7, 1000, DIGEST), None),
    (LeaseStatus(1, 1, 7, "held", 8, 1000, DIGEST), None),
    (Forward(7, 3, Attempt(1, 0), 0, 1, (PeerId(PEER),)), TENSOR),
    (FetchHeader((TensorSpec("model.layers.0.norm.weight", "float32", (32,), DIGEST),) * 3, 384), None),
)
RECORDS: tuple[AnyRecord, ...] = (
    StageRecord(PEER, 1, 1, "serving", 7, 12.5, CONTACT),
    SpareRecord(PEER, 80.5, "waiting", True, CONTACT),
    OfferRecord(PEER, 2, 1, 1, 7, 0.5, 1000, DIGEST),
    ProgressRecord(PEER, 1, 7, 3.25, 1792, 900.0),
    ManifestRecord(PEER, b"{}", b"ssh-rsa AAAA", b"signature"),
)
JOIN = str(JoinString(f"run-{DIGEST[:12]}", DIGEST, PeerId(PEER), CONTACT.addresses))
NAN, LARGEST, ENDLESS, DEEP = b"\xcb\x7f\xf8" + bytes(6), b"\xcf" + b"\xff" * 8, b"\xdd" + b"\xff" * 4, b"\x91" * 2000
EXTREMES = (b"\xff", b"\x00", b"\xc0", NAN, LARGEST, ENDLESS, DEEP)
"""Bytes that mean much in msgpack: nil, NaN, the largest integer, an array of 2^32, nesting without end."""


class Target(NamedTuple):
    """One way in for what others wrote."""

    name: str
    valid: tuple[bytes, ...]
    take: Callable[[bytes], object]


def take_frame(data: bytes) -> object:
    """As a link reads it; tensor bytes are described, never decoded."""
    if len(data) < PREFIX.size:
        return None
    prefix = decode_prefix(data[: PREFIX.size], MESSAGE_BYTES_MAX, 2 * 32 * 32 * 4)
    return decode_frame(data[PREFIX.size :][: prefix.message_bytes], prefix.payload_bytes)


def take_record(data: bytes) -> object:
    """Under every key, as a record may be found under another one."""
    for record in RECORDS:
        try:
            found = decode_record(key_of(record), PeerId(PEER), data)
        except RemoteProtocolError:
            continue
        return found
    raise RemoteProtocolError("it belongs under no key")


TARGETS = (
    Target("frame", tuple(encode_frame(message, tensor) for message, tensor in MESSAGES), take_frame),
    Target("record", tuple(map(encode_record, RECORDS)), take_record),
    Target("manifest", tuple(preset(name).encode() for name in PRESETS), decode_manifest),
    Target("join", (JOIN.encode(),), lambda data: parse_join(data.decode("utf-8", "replace"))),
)


def damaged(valid: tuple[bytes, ...], chance: random.Random) -> bytes:
    """One to four changes to one of them: bits, bytes, pieces doubled, left out, or taken from another."""
    data = bytearray(chance.choice(valid))
    for _ in range(chance.randint(1, 4)):
        here, there = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        match chance.randrange(6):
            case 0 if data:
                data[min(here, len(data) - 1)] ^= 1 << chance.randrange(8)
            case 1:
                data[here:there] = b""
            case 2:
                data[here:here] = data[here:there][:4096]
            case 3:
                data[here : here + 1] = chance.choice(EXTREMES)
            case 4:
                data[here:there] = chance.randbytes(min(there - here, 64))
            case _:
                other = chance.choice(valid)
                data[here:there] = other[here:there]
    return bytes(data[: MESSAGE_BYTES_MAX * 2])


def reencoded(valid: tuple[bytes, ...], chance: random.Random) -> bytes:
    """A well-formed value with other values in its place: it gets past the parser."""
    try:
        value = msgspec.msgpack.decode(chance.choice(valid)[PREFIX.size :])
    except msgspec.MsgspecError:
        return damaged(valid, chance)
    body = msgspec.msgpack.encode(_changed(value, chance, 0))
    return PREFIX.pack(len(body), chance.choice((0, 8192, 2**63))) + body


ODD = (None, -1, 0, 2**53, 2**63, 1.5, float("nan"), float("inf"), "", "\x1b[2J", "x" * 5000, b"", [], {}, [[[]]], True)


def _changed(value: object, chance: random.Random, depth: int) -> object:
    if chance.random() < 0.15 and depth:
        return chance.choice(ODD)
    if isinstance(value, list):
        return [_changed(item, chance, depth + 1) for item in value]
    return value


def inputs(target: Target, count: int) -> Iterator[bytes]:
    chance = random.Random(f"{SEED} {target.name}")
    for _ in range(count):
        is_whole = target.name == "frame" and chance.random() < 0.5
        yield (reencoded if is_whole else damaged)(target.valid, chance)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.timeout(3600)
def test_damaged_input_is_refused_with_an_error_of_ours(target: Target) -> None:
    for data in target.valid:
        target.take(data)
    refused = 0
    for data in inputs(target, INPUTS // len(TARGETS)):
        try:
            target.take(data)
        except (RemoteProtocolError, SettingsError):
            refused += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} from {target.name} {data!r}") from error
    assert refused > INPUTS // len(TARGETS) // 3
