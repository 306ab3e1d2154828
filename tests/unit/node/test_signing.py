"""Which records of the DHT are believed: signed by their owner, within limits, and judged once."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from understudy.node.dht.hivemind_dht import DHTRecord, RSASignatureValidator, _IdentityKey, _OwnedRecordsOnly
from understudy.node.dht.signing import RECORD_VALUE_BYTES_MAX, SIGNATURE_BYTES_MAX
from understudy.node.p2p.identity import Identity

OWNER = _OwnedRecordsOnly(_IdentityKey(Identity.generate()))


def validator() -> _OwnedRecordsOnly:
    return _OwnedRecordsOnly(_IdentityKey(Identity.generate()))


def signed(value: bytes = b"value", expiration: float = 1000.0) -> Any:
    blank = DHTRecord(b"key", OWNER.tagged("name"), value, expiration)
    return dataclasses.replace(blank, value=OWNER.sign_value(blank))


@pytest.mark.parametrize(
    "changes",
    [
        {"value": b"value without a signature"},
        {"expiration_time": 1001.0},
        {"expiration_time": float("inf")},
        {"key": b"another key"},
        {"subkey": b"name"},
        {"value": bytes(RECORD_VALUE_BYTES_MAX + SIGNATURE_BYTES_MAX + 1)},
    ],
)
def test_a_record_that_was_changed_is_refused_even_behind_the_one_it_was(changes: dict[str, Any]) -> None:
    reader, record = validator(), signed()
    assert reader.validate(record)
    assert not reader.validate(dataclasses.replace(record, **changes))
    assert reader.validate(record)


def test_a_record_that_comes_again_is_not_verified_again(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[Any] = []
    judge = RSASignatureValidator.validate
    monkeypatch.setattr(
        RSASignatureValidator, "validate", lambda self, record: judged.append(record) or judge(self, record)
    )
    reader, one, other = validator(), signed(), signed(b"other")
    assert all(reader.validate(record) for record in (one, dataclasses.replace(one), other, one))
    assert judged == [one, other]


def test_what_was_signed_is_returned_without_the_signature_if_it_is_bytes() -> None:
    texts = {b"bytes": b"\xc4\x05value", b"a number": b"\x05", b"cut off": b"\xc4\x09value", b"empty": b""}
    entries = {name: (signed(packed).value, 1000.0) for name, packed in texts.items()}
    assert OWNER.opened(entries) == {b"bytes": (b"value", 1000.0)}
