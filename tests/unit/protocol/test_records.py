"""What is published in the DHT, and what is believed of it when read."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.ids import INCARNATION_MAX, PEER_ID_CHARS_MAX, STAGES_MAX, STEPS_MAX, PeerId
from understudy.protocol.presets import PRESETS, preset
from understudy.protocol.wire.contact import ADDRESS_CHARS_MAX, ADDRESSES_MAX, Contact
from understudy.protocol.wire.records import (
    MANIFEST_KEY,
    MANIFEST_RECORD_BYTES_MAX,
    PROGRESS_KEY,
    RECORD_BYTES_MAX,
    SPARES_KEY,
    STAGE_RECORD_BYTES_MAX,
    AnyRecord,
    ManifestRecord,
    OfferRecord,
    ProgressRecord,
    Record,
    SpareRecord,
    StageRecord,
    decode_record,
    encode_record,
    key_of,
    run_keys,
    stage_key,
    weights_key,
)
from understudy.protocol.wire.votes import VOTES_SHOWN_MAX, Vote

ME = PeerId("peer")
VOTE = Vote(PeerId("voter"), 2, 1, b"key", b"signature")
BY_KEY: dict[str, AnyRecord] = {
    "stage/3": StageRecord(ME, 3, 2, "serving", 7, 2.5, Contact(("/ip4/1.2.3.4/tcp/5",)), (VOTE, VOTE)),
    "weights/3": OfferRecord(ME, 3, 1, 2, 7, 0.5, 100, "digest"),
    SPARES_KEY: SpareRecord(ME, 2.5),
    PROGRESS_KEY: ProgressRecord(ME, 1, 7, 3.25, 7000, 12.5),
    MANIFEST_KEY: ManifestRecord(ME, b"manifest", b"key", b"signature"),
}


def refuse(key: str, record: AnyRecord | bytes, owner: str = ME) -> None:
    value = record if isinstance(record, bytes) else encode_record(record)
    with pytest.raises(RemoteProtocolError):
        decode_record(key, PeerId(owner), value)


def test_there_is_an_example_of_every_record() -> None:
    assert {type(record) for record in BY_KEY.values()} == set(Record.__subclasses__())


@pytest.mark.parametrize("key", BY_KEY)
def test_a_record_is_read_as_it_was_stored(key: str) -> None:
    record = BY_KEY[key]
    assert key_of(record) == key
    assert decode_record(key, ME, encode_record(record)) == record


def test_keys_are_per_stage() -> None:
    assert [stage_key(0), stage_key(12), weights_key(12)] == ["stage/0", "stage/12", "weights/12"]


@pytest.mark.parametrize("key", BY_KEY)
def test_a_record_that_speaks_of_another_peer_is_refused(key: str) -> None:
    with pytest.raises(RemoteProtocolError, match="speaks of peer but was signed by mallory"):
        decode_record(key, PeerId("mallory"), encode_record(BY_KEY[key]))


@pytest.mark.parametrize("record", BY_KEY.values(), ids=lambda record: type(record).__name__)
@pytest.mark.parametrize("key", [*BY_KEY, "stage/4", "weights/4", "", "nonsense"])
def test_a_record_under_another_key_is_refused(key: str, record: AnyRecord) -> None:
    if key == key_of(record):
        assert decode_record(key, ME, encode_record(record)) == record
    else:
        refuse(key, record)


@pytest.mark.parametrize(
    "record",
    [
        StageRecord(ME, STAGES_MAX, 1, "serving", 0),
        StageRecord(ME, -1, 1, "serving", 0),
        StageRecord(ME, 3, 0, "serving", 0),
        StageRecord(ME, 3, INCARNATION_MAX + 1, "serving", 0),
        StageRecord(ME, 3, 1, "dreaming", 0),  # type: ignore[arg-type]
        StageRecord(ME, 3, 1, "serving", STEPS_MAX + 1),
        StageRecord(ME, 3, 1, "serving", 0, proof=(VOTE,) * (VOTES_SHOWN_MAX + 1)),
        StageRecord(ME, 3, 1, "serving", 0, proof=(msgspec.structs.replace(VOTE, signature=b"s" * 513),)),
        SpareRecord(ME, -1.0),
        SpareRecord(ME, 1.0, "busy"),  # type: ignore[arg-type]
        OfferRecord(ME, 3, 1, 2, 7, 0.5, -1, "digest"),
        OfferRecord(ME, 3, 1, 2, 7, 0.5, 1, "d" * 129),
        ProgressRecord(ME, 0, 7, 1.0, 1, 1.0),
        ProgressRecord(ME, 1, 7, 1.0, -1, 1.0),
        ManifestRecord(ME, b"m" * (16 * 1024 + 1), b"", b""),
        ManifestRecord(ME, b"", b"k" * 2049, b""),
        ManifestRecord(ME, b"", b"", b"s" * 2049),
    ],
    ids=repr,
)
def test_a_value_beyond_its_limits_is_refused(record: AnyRecord) -> None:
    refuse(key_of(record), record)


@pytest.mark.parametrize("peer", ["", "p" * (PEER_ID_CHARS_MAX + 1)])
def test_a_peer_id_beyond_its_limits_is_refused(peer: str) -> None:
    refuse(SPARES_KEY, SpareRecord(peer, 1.0), owner=peer)


def test_records_are_bounded_before_they_are_decoded() -> None:
    with pytest.raises(RemoteProtocolError, match=f"at most {RECORD_BYTES_MAX} are allowed"):
        decode_record(SPARES_KEY, ME, b"\x80" * (RECORD_BYTES_MAX + 1))
    with pytest.raises(RemoteProtocolError, match=f"at most {MANIFEST_RECORD_BYTES_MAX} are allowed"):
        decode_record(MANIFEST_KEY, ME, b"\x80" * (MANIFEST_RECORD_BYTES_MAX + 1))
    with pytest.raises(RemoteProtocolError, match=f"at most {STAGE_RECORD_BYTES_MAX} are allowed"):
        decode_record("stage/3", ME, b"\x80" * (STAGE_RECORD_BYTES_MAX + 1))


def test_each_key_bounds_its_records_as_they_are_decoded() -> None:
    """The DHT bounds them by `run_keys`, before this node decodes them."""
    for key, limit in run_keys(4).items():
        with pytest.raises(RemoteProtocolError, match=f"at most {limit} are allowed"):
            decode_record(key, ME, b"\x80" * (limit + 1))


def test_a_tenure_with_all_its_votes_and_addresses_fits() -> None:
    """Of keys of 4096 bits: 724 bytes as OpenSSH writes them, and signatures of 512."""
    peer = PeerId("Q" * 46)
    votes = (Vote(peer, 1023, INCARNATION_MAX, b"k" * 724, b"s" * 512),) * VOTES_SHOWN_MAX
    contact = Contact(("a" * ADDRESS_CHARS_MAX,) * ADDRESSES_MAX, relays=True, reachability="punchable")
    record = StageRecord(peer, 1023, INCARNATION_MAX, "withdrawn", STEPS_MAX, 1e308, contact, votes)
    assert len(encode_record(record)) < STAGE_RECORD_BYTES_MAX
    assert decode_record(stage_key(1023), peer, encode_record(record)) == record


def test_the_largest_records_fit() -> None:
    peer = PeerId("p" * PEER_ID_CHARS_MAX)
    offer = OfferRecord(peer, 1, INCARNATION_MAX, 2, STEPS_MAX, 1e308, 2**50, "d" * 128)
    assert len(encode_record(offer)) < RECORD_BYTES_MAX / 4
    manifest = ManifestRecord(peer, b"m" * 16 * 1024, b"k" * 2048, b"s" * 2048)
    assert decode_record(MANIFEST_KEY, peer, encode_record(manifest)) == manifest
    for name in PRESETS:
        assert len(preset(name).encode()) < 4096


@given(st.sampled_from([*BY_KEY, "nonsense"]), st.binary(max_size=200))
def test_random_bytes_are_refused(key: str, value: bytes) -> None:
    refuse(key, value)


@given(st.sampled_from(list(BY_KEY)), st.data())
def test_a_record_cut_short_or_with_bytes_behind_it_is_refused(key: str, data: st.DataObject) -> None:
    value = encode_record(BY_KEY[key])
    refuse(key, value[: data.draw(st.integers(0, len(value) - 1))])
    refuse(key, value + data.draw(st.binary(min_size=1, max_size=9)))


@given(st.sampled_from(list(BY_KEY)), st.integers(0, 1000), st.integers(0, 255))
def test_a_damaged_record_still_speaks_of_its_owner_under_its_key_or_is_refused(key: str, at: int, byte: int) -> None:
    value = bytearray(encode_record(BY_KEY[key]))
    value[at % len(value)] = byte
    try:
        record = decode_record(key, ME, bytes(value))
    except RemoteProtocolError:
        return
    assert (record.peer, key_of(record)) == (ME, key)


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
def test_deep_and_boastful_nesting_is_refused(opening: bytes) -> None:
    refuse(SPARES_KEY, opening * (RECORD_BYTES_MAX // len(opening)))


def test_a_newer_version_may_append_fields() -> None:
    table = msgspec.msgpack.decode(encode_record(BY_KEY[SPARES_KEY]))
    value = msgspec.msgpack.encode({**table, "region": "somewhere"})
    assert decode_record(SPARES_KEY, ME, value) == BY_KEY[SPARES_KEY]
