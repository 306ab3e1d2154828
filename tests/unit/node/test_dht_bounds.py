"""What a peer keeps for the DHT, and which of what it reads it takes in."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from understudy.node.dht import bounds
from understudy.node.dht.bounds import GHOSTS_MAX, OWNER_BYTES_MAX, Kept, Shelf, bound_storage
from understudy.node.dht.signing import LIFETIME_MAX_S, RECORD_VALUE_BYTES_MAX, owned_records, owner_of
from understudy.protocol.ids import PeerId
from understudy.protocol.wire.records import (
    MANIFEST_KEY,
    RECORDS_PER_KEY_MAX,
    AnyRecord,
    ManifestRecord,
    OfferRecord,
    ProgressRecord,
    SpareRecord,
    StageRecord,
    key_of,
    run_keys,
)

NOW = 1000.0
ANNE, BILL = PeerId("Anne"), PeerId("Bill")
STAGE, SPARES = b"stage/1", b"spares"
LIMITS = {STAGE: 4096, SPARES: 4096, b"manifest": 24 * 1024}


def kept(subkey: bytes = b"", size: int = 1000, lasts: float = 15.0) -> Kept:
    return Kept(subkey, size, NOW + lasts)


def filled(*records: tuple[bytes, PeerId, Kept]) -> Shelf:
    shelf = Shelf(LIMITS)
    for record in records:
        assert shelf.refusal(*record, NOW) is None
        shelf.put(*record)
    return shelf


# --- what is kept ---


def test_only_keys_of_the_run() -> None:
    assert Shelf(LIMITS).refusal(b"other", ANNE, kept(), NOW) == "the run has no such key"
    assert Shelf(LIMITS).refusal(STAGE, ANNE, kept(), NOW) is None
    assert Shelf().refusal(b"other", ANNE, kept(), NOW) is None


def test_the_keys_of_a_run_are_those_of_its_records() -> None:
    keys = run_keys(3)
    records: list[AnyRecord] = [
        *(StageRecord("p", stage, 1, "serving", 1) for stage in range(3)),
        *(OfferRecord("p", stage, 1, 1, 1, 1.0, 1, "") for stage in range(3)),
        SpareRecord("p", 1.0),
        ProgressRecord("p", 1, 1, None, 1, 1.0),
        ManifestRecord("p", b"", b"", b""),
    ]
    assert {key_of(record) for record in records} == set(keys)
    assert max(keys, key=keys.__getitem__) == MANIFEST_KEY


def test_not_for_ever() -> None:
    assert Shelf(LIMITS).refusal(STAGE, ANNE, kept(lasts=LIFETIME_MAX_S), NOW) is None
    assert Shelf(LIMITS).refusal(STAGE, ANNE, kept(lasts=LIFETIME_MAX_S + 1), NOW) == "it would be kept for too long"


def test_a_later_record_takes_the_place_of_the_owners_other_subkey() -> None:
    shelf = filled((STAGE, ANNE, kept(b"one")))
    assert shelf.refusal(STAGE, ANNE, kept(b"two", lasts=15.0), NOW) == "a later one of this owner is there"
    assert shelf.put(STAGE, ANNE, kept(b"two", lasts=16.0)) == b"one"
    assert shelf.put(STAGE, ANNE, kept(b"two", lasts=17.0)) is None
    assert shelf.size == 1000


def test_so_many_bytes_of_one_owner() -> None:
    shelf = filled((STAGE, ANNE, kept(size=OWNER_BYTES_MAX - 1000)))
    assert shelf.refusal(SPARES, ANNE, kept(size=1001), NOW) == "too many bytes of this owner"
    assert shelf.refusal(SPARES, ANNE, kept(size=1000), NOW) is None
    assert shelf.refusal(SPARES, BILL, kept(size=1001), NOW) is None
    assert shelf.refusal(STAGE, ANNE, kept(size=OWNER_BYTES_MAX, lasts=16.0), NOW) is None


def test_who_is_there_stays_and_newcomers_wait_until_somebody_expires() -> None:
    crowd = [PeerId(f"peer {number}") for number in range(RECORDS_PER_KEY_MAX)]
    shelf = filled(*((STAGE, peer, kept()) for peer in crowd))
    assert shelf.refusal(STAGE, ANNE, kept(), NOW) == "too many owners under this key"
    assert shelf.refusal(STAGE, crowd[0], kept(lasts=16.0), NOW) is None
    assert shelf.refusal(SPARES, ANNE, kept(), NOW) is None
    later = NOW + 15.1
    assert shelf.refusal(STAGE, ANNE, Kept(b"", 1000, later + 15.0), later) is None
    assert shelf.size == 0


def test_so_many_bytes_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SHELF_BYTES_MAX", 2500)
    shelf = filled((STAGE, ANNE, kept()), (SPARES, ANNE, kept()))
    assert shelf.refusal(STAGE, BILL, kept(), NOW) == "too many bytes in all"
    assert shelf.refusal(STAGE, BILL, kept(size=500), NOW) is None
    assert shelf.refusal(STAGE, ANNE, kept(lasts=16.0), NOW) is None


def test_a_peer_of_no_run_keeps_so_many_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "KEYS_MAX", 2)
    shelf = Shelf()
    shelf.put(b"1", ANNE, kept())
    shelf.put(b"2", ANNE, kept())
    assert shelf.refusal(b"3", ANNE, kept(), NOW) == "too many keys"
    assert shelf.refusal(b"2", BILL, kept(), NOW) is None


def test_a_value_is_as_long_as_its_key_needs() -> None:
    assert Shelf(LIMITS).value_bytes_max(STAGE) == 4096
    assert Shelf(LIMITS).value_bytes_max(b"other") < 0
    assert Shelf().value_bytes_max(b"other") == RECORD_VALUE_BYTES_MAX


# --- hivemind's storage ---


def subkey_of(number: int = 0, text: bytes = b"") -> bytes:
    return text + b"[owner:" + _keys[number] + b"]"


def _public_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


_keys = [_public_key(), _public_key()]


@pytest.fixture
def dht() -> Any:
    from understudy.node.dht.hivemind_dht import DHTNode  # its import costs seconds

    module = __import__("hivemind.dht.storage", fromlist=["DHTLocalStorage"])
    identifier = __import__("hivemind.dht.routing", fromlist=["DHTID"]).DHTID
    assert DHTNode
    protocol = SimpleNamespace(storage=module.DHTLocalStorage(), cache=module.DHTLocalStorage())
    return SimpleNamespace(protocol=protocol, node_id=identifier.generate("node"))


def entries_of(dht: Any, key: Any) -> dict[bytes, Any]:
    found = dht.protocol.storage.get(key)
    return {} if found is None else {subkey: value for subkey, (value, _) in found.value.items()}


def test_the_storage_asks_before_it_stores(dht: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda: NOW)
    name, shelf, storage = type(dht.node_id).generate, Shelf(), dht.protocol.storage
    inside, outside = name("run/spares"), name("run/other")
    storage.store_subkey(outside, subkey_of(), b"early", NOW + 5)
    storage.store_subkey(inside, subkey_of(1), b"early", NOW + 5)
    bound_storage(dht, shelf, {"run/spares": 4096}, lambda: NOW)
    assert entries_of(dht, outside) == {}
    assert entries_of(dht, inside) == {subkey_of(1): b"early"}
    assert not storage.store_subkey(outside, subkey_of(), b"value", NOW + 5)
    assert storage.store_subkey(inside, subkey_of(0, b"1"), b"value", NOW + 5)
    assert not storage.store_subkey(inside, subkey_of(0, b"2"), b"value", NOW + 5)
    assert storage.store_subkey(inside, subkey_of(0, b"2"), b"later", NOW + 6)
    assert entries_of(dht, inside) == {subkey_of(0, b"2"): b"later", subkey_of(1): b"early"}
    assert storage.store(inside, b"our own", NOW + 7, subkey=subkey_of(1)), "so hivemind keeps what its own peer stores"
    assert not storage.store(outside, b"our own", NOW + 7, subkey=subkey_of(1))
    assert not storage.store(inside, b"nobody signed it", NOW + 60)
    assert not storage.store_subkey(inside, b"nobody's", b"value", NOW + 60)
    assert not dht.protocol.cache.store_subkey(inside, subkey_of(), b"value", NOW + 60)
    assert shelf.size == sum(len(key) + len(value) for key, value in entries_of(dht, inside).items())


def test_stores_that_take_each_others_place_leave_nothing_behind(dht: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda: NOW)
    bound_storage(dht, Shelf(), {"run/spares": 4096}, lambda: NOW)
    key, storage = type(dht.node_id).generate("run/spares"), dht.protocol.storage
    for number in range(1000):
        assert storage.store_subkey(key, subkey_of(0, b"%d" % number), b"value", NOW + 5 + number)
    assert len(entries_of(dht, key)) == 1
    assert len(storage.expiration_heap) <= GHOSTS_MAX + 2
    assert len(storage.get(key).value.expiration_heap) <= GHOSTS_MAX + 2


# --- what is read ---


def test_the_last_word_of_each_owner_counts() -> None:
    found = owned_records({subkey_of(0, b"1"): (b"old", NOW + 5), subkey_of(0, b"2"): (b"new", NOW + 6)}, NOW)
    assert [(record.subkey, record.value) for record in found] == [("2", b"new")]


def test_what_would_last_for_ever_is_not_believed() -> None:
    assert owned_records({subkey_of(): (b"value", NOW + LIFETIME_MAX_S + 1)}, NOW) == []


def test_many_records_of_one_owner_cut_off_nobody() -> None:
    own, other = owner_of(subkey_of(0)), owner_of(subkey_of(1))
    entries = {subkey_of(0, b"%d" % number): (b"x", NOW + 5) for number in range(2 * RECORDS_PER_KEY_MAX)}
    found = owned_records({**entries, subkey_of(1): (b"honest", NOW + 5)}, NOW)
    assert {record.owner for record in found} == {own, other}


def test_of_too_many_owners_nobody_is_first_for_his_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers who all come first in the alphabet leave an honest owner its chance."""
    monkeypatch.setattr("understudy.node.dht.signing._signer_of", lambda subkey: (PeerId(subkey.decode()), ""))
    crowd = 2 * RECORDS_PER_KEY_MAX
    entries = {b"A%05d" % number: (b"x", NOW + 5) for number in range(crowd)}
    seen = 0
    for number in range(100):
        monkeypatch.setattr("understudy.node.dht.signing._SALT", base64.b64encode(b"%d" % number))
        found = owned_records({**entries, b"Zoe": (b"x", NOW + 5)}, NOW)
        assert len(found) == RECORDS_PER_KEY_MAX
        seen += found[-1].owner == "Zoe"
    assert 30 <= seen <= 70
