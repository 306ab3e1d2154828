"""Frames: what is sent arrives, and bad bytes raise `RemoteProtocolError` and nothing else."""

from __future__ import annotations

import contextlib
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.protocol.errors import LocalProtocolError, RemoteProtocolError
from understudy.protocol.ids import (
    INCARNATION_MAX,
    INDEX_MAX,
    PEER_ID_CHARS_MAX,
    STAGES_MAX,
    STEPS_MAX,
    Attempt,
    Microbatch,
    PeerId,
)
from understudy.protocol.wire import frames as wire
from understudy.protocol.wire.frames import FETCH_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX, PAYLOAD_BYTES_MAX, PREFIX
from understudy.protocol.wire.messages import (
    DONATIONS_MAX,
    Alive,
    Announce,
    AnyMessage,
    Backward,
    Claim,
    Commit,
    CommitAck,
    CopyKept,
    CopyOffer,
    Donation,
    Dropped,
    Fenced,
    FetchEnd,
    FetchHeader,
    FetchMore,
    FetchRefused,
    FetchRequest,
    Filler,
    Forward,
    Grant,
    Heartbeat,
    Hello,
    LeaseRelease,
    LeaseRequest,
    LeaseStatus,
    Lost,
    Refusal,
    Withdraw,
)
from understudy.protocol.wire.tensors import TensorHeader, TensorSpec
from understudy.protocol.wire.votes import KEY_BYTES_MAX, SIGNATURE_BYTES_MAX, VOTES_SHOWN_MAX, Vote
from understudy.protocol.wire.watching import Here, NotFinite, Where

VOTE = Vote(PeerId("voter"), 3, 1, b"key", b"signature")
SPEC = TensorSpec("weight", "float32", (2, 3), "0" * 64)
ONE_OF_EACH: tuple[AnyMessage, ...] = (
    Hello(1, "d" * 64),
    Filler(),
    Heartbeat(1, 2, "serving", 3),
    Announce(1, 2, "left", 3),
    Announce(1, 2, "serving", 3, (VOTE, VOTE)),
    Lost(1, 2),
    Lost(1, 2, PeerId("peer")),
    Alive(1, 2),
    Fenced(1, 2, "peer", 7),
    Claim(2, 3, (1, 3)),
    Grant(2, 3, 4, (Donation("stage", 1, 4, 0.5, 100, "digest"),)),
    Grant(2, 3, 4, (), is_preparing=True, vote=VOTE),
    Refusal(2, 3, 4, "superseded"),
    Withdraw(2, 3),
    Commit(1, 2),
    CommitAck(1, 2, 3),
    Dropped(1, 2, 3, 4, Attempt(1, 0), is_gradient=True),
    CopyOffer(0, 1, "head", 3, 100, "digest", 6),
    CopyKept(0, 1, "head", 3, "digest", is_full=True),
    LeaseRequest(1, 2, 3),
    LeaseStatus(1, 2, 3, "held", 4, 100, "digest"),
    LeaseRelease(3),
    Where(5, 0, Attempt(1, 2)),
    Here(2, 3, 5, 0, Attempt(1, 2), "forwarded"),
    NotFinite(2, 3, 5, 0, True),
    Forward(1, 2, Attempt(1, 0), 0, 1),
    Backward(1, 2, Attempt(1, 0), 4, 1),
    FetchRequest(2, 3, "digest", 100),
    FetchHeader((SPEC,), 24, "base"),
    FetchMore(1 << 20),
    FetchRefused("superseded"),
    FetchEnd(),
)


def travel(message: AnyMessage, tensor: TensorHeader | None = None) -> wire.Frame:
    data = wire.encode_frame(message, tensor)
    prefix = wire.decode_prefix(data[: PREFIX.size], MESSAGE_BYTES_MAX, PAYLOAD_BYTES_MAX)
    assert prefix.message_bytes == len(data) - PREFIX.size
    return wire.decode_frame(data[PREFIX.size :], prefix.payload_bytes)


def body_of(message: AnyMessage) -> bytes:
    return wire.encode_frame(message)[PREFIX.size :]


def refuse(body: bytes, payload_bytes: int = 0) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.decode_frame(body, payload_bytes)


# --- messages ---


def test_there_is_an_example_of_every_message() -> None:
    assert {type(message) for message in ONE_OF_EACH} == set(get_args(AnyMessage))


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: AnyMessage) -> None:
    assert travel(message) == wire.Frame(message, None)


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda message: type(message).__name__)
def test_a_newer_version_may_append_fields(message: AnyMessage) -> None:
    tagged, tensor = msgspec.msgpack.decode(body_of(message))
    assert wire.decode_frame(msgspec.msgpack.encode([[*tagged, "new"], tensor, "new"]), 0).message == message


def test_a_tensor_is_described_by_its_header() -> None:
    header = TensorHeader("bfloat16", (2, 3, 4))
    assert travel(Forward(1, 0, Attempt(1, 0), 0, 1), header).tensor == header
    assert wire.tensor_bytes(header) == 48
    assert wire.tensor_bytes(TensorHeader("float32", ())) == 4
    assert wire.tensor_bytes(TensorHeader("float32", (0, 9))) == 0
    assert [wire.tensor_bytes(TensorHeader("int8", (2, 3, width))) for width in (10, 32, 33, 512)] == [
        2 * 3 * bytes_per_row for bytes_per_row in (10 + 2, 32 + 2, 33 + 4, 512 + 32)
    ]
    assert wire.tensor_bytes(TensorHeader("int8", ())) == 3


@pytest.mark.parametrize(
    "vote",
    [
        msgspec.structs.replace(VOTE, public_key=b"k" * (KEY_BYTES_MAX + 1)),
        msgspec.structs.replace(VOTE, signature=b"s" * (SIGNATURE_BYTES_MAX + 1)),
        msgspec.structs.replace(VOTE, voter=PeerId("")),
        msgspec.structs.replace(VOTE, stage=STAGES_MAX),
        msgspec.structs.replace(VOTE, incarnation=0),
    ],
    ids=["key", "signature", "voter", "stage", "incarnation"],
)
def test_a_vote_beyond_its_limits_is_refused(vote: Vote) -> None:
    refuse(body_of(Grant(2, 3, 4, (), vote=vote)))
    refuse(body_of(Announce(1, 2, "serving", 3, (VOTE, vote))))


def test_as_many_votes_are_shown_as_may_be() -> None:
    largest = Vote(
        PeerId("p" * PEER_ID_CHARS_MAX), 1023, INCARNATION_MAX, b"k" * KEY_BYTES_MAX, b"s" * SIGNATURE_BYTES_MAX
    )
    announcement = Announce(1, 2, "serving", 3, (largest,) * VOTES_SHOWN_MAX)
    assert travel(announcement).message == announcement
    refuse(body_of(msgspec.structs.replace(announcement, proof=(VOTE,) * (VOTES_SHOWN_MAX + 1))))


def test_data_messages_name_their_microbatch() -> None:
    assert Forward(3, 2, Attempt(1, 0), 0, 1).microbatch == Backward(3, 2, Attempt(1, 0), 0, 1).microbatch
    assert Forward(3, 2, Attempt(1, 0), 0, 1).microbatch == Microbatch(3, 2)


@pytest.mark.parametrize(
    "message",
    [
        Heartbeat(STAGES_MAX, 1, "serving", 0),
        Heartbeat(-1, 1, "serving", 0),
        Heartbeat(0, 0, "serving", 0),
        Heartbeat(0, INCARNATION_MAX + 1, "serving", 0),
        Heartbeat(0, 1, "asleep", 0),  # type: ignore[arg-type]
        Heartbeat(0, 1, "serving", -1),
        Heartbeat(0, 1, "serving", STEPS_MAX + 1),
        Heartbeat(0, 1, "serving", 1.5),  # type: ignore[arg-type]
        Fenced(0, 1, "", 0),
        Fenced(0, 1, "p" * 129, 0),
        Claim(1, 1, tuple(range(9))),
        Refusal(1, 1, 1, "because"),  # type: ignore[arg-type]
        Grant(1, 1, 1, (Donation("stage", 1, 1, 1.0, -1, ""),)),
        Grant(1, 1, 1, (Donation("stage", 1, 1, 1.0, 2**51, ""),)),
        Grant(1, 1, 1, (Donation("loss", 1, 1, 1.0, 1, ""),)),  # type: ignore[arg-type]
        Grant(1, 1, 1, (Donation("stage", 1, 1, 1.0, 1, ""),) * (DONATIONS_MAX + 1)),
        CopyOffer(0, 1, "loss", 3, 100, "digest"),  # type: ignore[arg-type]
        Forward(1, -1, Attempt(1, 0), 0, 1),
        Forward(1, INDEX_MAX + 1, Attempt(1, 0), 0, 1),
        FetchRequest(1, 1, "d" * 129, 0),
        FetchRequest(1, 1, "d", -1),
        FetchRefused("r" * 513),
        FetchRefused("\x1b[2J gone is your screen"),
        FetchRequest(1, 1, "d\n", 0),
        Fenced(0, 1, "p\x07", 0),
        FetchHeader((TensorSpec("w\x9b", "float32", (1,), "0" * 64),), 4),
        FetchHeader((TensorSpec("", "float32", (1,), "0" * 64),), 4),
        FetchHeader((TensorSpec("w", "float32", (0,), "0" * 64),), 4),
        FetchHeader((TensorSpec("w", "float32", (1,), "0" * 63),), 4),
        FetchHeader((TensorSpec("w", "int8", (1,), "0" * 64),), 1),  # type: ignore[arg-type] # weights are not quantised
    ],
    ids=repr,
)
def test_a_value_beyond_its_limits_is_refused(message: AnyMessage) -> None:
    refuse(body_of(message))


@pytest.mark.parametrize(
    "attempt", [(0, 0), (-1, 0), (1, -1), (INCARNATION_MAX + 1, 0), (1, 2**63)], ids=["0", "-1", "-c", "i+", "c+"]
)
def test_an_attempt_is_as_bounded_as_all_else(attempt: tuple[int, int]) -> None:
    refuse(msgspec.msgpack.encode([["forward", 1, 0, attempt, 0, 1], None]))


@pytest.mark.parametrize(
    "tensor",
    [("float64", (1,)), ("float32", (-1,)), ("float32", (2**32 + 1,)), ("float32", (1,) * 9), ("float32", 1), ()],
)
def test_a_tensor_header_beyond_its_limits_is_refused(tensor: tuple[object, ...]) -> None:
    refuse(msgspec.msgpack.encode([["fetch_end"], tensor]), 4)


def test_an_unknown_message_is_refused() -> None:
    refuse(msgspec.msgpack.encode([["gossip", 1, 2], None]))


# --- frames ---


def test_the_prefix_is_judged_before_anything_is_read() -> None:
    for sizes in ((0, 0), (101, 0), (2**32 - 1, 0), (1, 1001), (1, 2**64 - 1)):
        with pytest.raises(RemoteProtocolError, match="are allowed"):
            wire.decode_prefix(PREFIX.pack(*sizes), 100, 1000)
    assert wire.decode_prefix(PREFIX.pack(100, 1000), 100, 1000) == wire.Prefix(100, 1000)


@pytest.mark.parametrize("payload_bytes", [0, 47, 49])
def test_a_payload_of_another_size_than_described_is_refused(payload_bytes: int) -> None:
    frame = wire.encode_frame(Forward(1, 0, Attempt(1, 0), 0, 1), TensorHeader("bfloat16", (2, 3, 4)))
    with pytest.raises(RemoteProtocolError, match=f"{payload_bytes} bytes described as 48 bytes"):
        wire.decode_frame(frame[PREFIX.size :], payload_bytes)


def test_a_payload_that_nothing_describes_is_refused() -> None:
    refuse(body_of(FetchEnd()), 1)


def test_we_do_not_send_what_nobody_may_accept() -> None:
    specs = tuple(TensorSpec("n" * 256, "float32", (1,), "0" * 64) for _ in range(FETCH_MESSAGE_BYTES_MAX // 256))
    with pytest.raises(LocalProtocolError, match=r"a FetchHeader of .* bytes is too long to send"):
        wire.encode_frame(FetchHeader(specs, 4 * len(specs)))


def test_messages_of_a_link_fit_well() -> None:
    donation = Donation("embedding", 1, STEPS_MAX, 1e308, 2**50, "d" * 128, INCARNATION_MAX, is_copy=True)
    largest = Grant(STAGES_MAX - 1, INCARNATION_MAX, STEPS_MAX, (donation,) * DONATIONS_MAX)
    assert len(wire.encode_frame(largest)) < 1200
    assert len(wire.encode_frame(Heartbeat(3, 1, "serving", 1000))) < 40


# --- bad bytes ---


def decode_or_refuse(body: bytes, payload_bytes: int) -> None:
    with contextlib.suppress(RemoteProtocolError):
        wire.decode_frame(body, payload_bytes)


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_random_bytes(body: bytes, payload_bytes: int) -> None:
    decode_or_refuse(body, payload_bytes)


@given(st.sampled_from(ONE_OF_EACH), st.data())
def test_a_message_cut_short(message: AnyMessage, data: st.DataObject) -> None:
    body = body_of(message)
    refuse(body[: data.draw(st.integers(0, len(body) - 1))])


@given(st.sampled_from(ONE_OF_EACH), st.binary(min_size=1, max_size=20))
def test_a_message_with_bytes_behind_it(message: AnyMessage, more: bytes) -> None:
    refuse(body_of(message) + more)


@given(st.sampled_from(ONE_OF_EACH), st.integers(0, 10_000), st.integers(0, 255))
def test_a_message_with_a_changed_byte(message: AnyMessage, at: int, byte: int) -> None:
    body = bytearray(body_of(message))
    body[at % len(body)] = byte
    decode_or_refuse(bytes(body), 0)


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8) | st.binary()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
TAGS = st.sampled_from([msgspec.msgpack.decode(body_of(message))[0][0] for message in ONE_OF_EACH])


@given(TAGS, st.lists(VALUES, max_size=7), VALUES)
def test_a_message_of_random_values(tag: str, fields: list[object], tensor: object) -> None:
    decode_or_refuse(msgspec.msgpack.encode([[tag, *fields], tensor]), 0)


@pytest.mark.parametrize(
    "opening", [b"\x91", b"\xdc\x00\x01", b"\x81\xa1a", b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"]
)
def test_deep_and_boastful_nesting(opening: bytes) -> None:
    refuse(opening * (MESSAGE_BYTES_MAX // len(opening)))
    refuse(b"\x92" + opening * 10_000)
    refuse(b"\x92\x97\xa7forward\x01\x00" + opening * 10_000)


def test_a_text_that_is_not_utf8() -> None:
    body = body_of(Fenced(0, 1, "peer", 0)).replace(b"peer", b"\xff\xfe\xfd\xfc")
    refuse(body)


@given(st.binary(min_size=PREFIX.size, max_size=PREFIX.size))
def test_a_random_prefix(data: bytes) -> None:
    try:
        prefix = wire.decode_prefix(data, MESSAGE_BYTES_MAX, PAYLOAD_BYTES_MAX)
    except RemoteProtocolError:
        return
    assert 0 < prefix.message_bytes <= MESSAGE_BYTES_MAX
    assert prefix.payload_bytes <= PAYLOAD_BYTES_MAX
