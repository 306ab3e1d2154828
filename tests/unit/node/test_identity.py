"""The identity file, the PeerID it stands for, and signatures."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from understudy.node.p2p import identity as module
from understudy.node.p2p.identity import Identity, peer_id_from_bytes, peer_id_of, peer_id_to_bytes, verify
from understudy.protocol.errors import RemoteProtocolError, SettingsError
from understudy.protocol.ids import PeerId

# Made with hivemind 1.1.12: P2P.generate_identity and PeerID.from_identity of this public key.
KNOWN_PUBLIC_KEY = (
    b"ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQD1tNPy/xMABM33PFNMZ3jfZLAq2abDXIQ71lemRyAAW7fCrwV0tFmJc2WccD+P"
    b"t2hsHyIIvekFnCv7iYqI6OP+UchRCOvTeDMOGAk9WOHE70DABVWwTofBrttxJooyNuMRBUPjD8hqFmbO+9bNHmTN39187TUlMtxk"
    b"bcetiiPqcg+ytNyP1n5QGUWW4lA3cLLXrNlXHvWdr3R6xuT8JqHR4yq01lY7rnuvTs5ykmLmHzUh1UssbSTBjbTgZoytgTQFncIe"
    b"XaIm+81TvyFJn08zFhij+6eGz6Gjgigajhr66wsu33N9puDNRToErgg4rJU0/qstbP3ffjzm7bcBNwEz"
)
KNOWN_PEER_ID = "QmQxVxhUUihSfFE2PnQWxQ8Nb3gpxuh8RaQVZ4n2MwaG2W"


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity.generate()


def test_the_peer_id_is_the_one_libp2p_computes() -> None:
    assert peer_id_of(KNOWN_PUBLIC_KEY) == KNOWN_PEER_ID


def test_a_peer_id_survives_its_spelling_in_bytes(identity: Identity) -> None:
    assert peer_id_from_bytes(peer_id_to_bytes(identity.peer_id)) == identity.peer_id


@pytest.mark.parametrize(
    "spelling", ["", "Qm0", "QmaLSUhx7E", "x" * 5000, "QmaLSUhx7EAB8DTShrFLU3fv8HDCR5ZSx822Urrcje2CjI"]
)
def test_what_is_no_peer_id_is_refused(spelling: str) -> None:
    with pytest.raises(RemoteProtocolError):
        peer_id_to_bytes(PeerId(spelling))


def test_a_signature_is_bound_to_the_data_and_to_the_key(identity: Identity) -> None:
    signature = identity.sign(b"manifest")
    assert verify(identity.public_key_bytes, b"manifest", signature)
    assert not verify(identity.public_key_bytes, b"manifesT", signature)
    assert not verify(identity.public_key_bytes, b"manifest", signature[:-1])
    assert not verify(KNOWN_PUBLIC_KEY, b"manifest", signature)


def _weak_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _elliptic_key() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


@pytest.mark.parametrize(
    "key", [b"", b"ssh-rsa AAAA", b"\xff" * 40, b"ssh-rsa " + b"A" * 2000, _weak_key(), _elliptic_key()]
)
def test_a_key_from_the_network_that_is_not_ours_in_kind_is_refused(key: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        peer_id_of(key)
    assert not verify(key, b"data", b"signature")


def test_an_identity_is_created_once_and_read_after_that(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    created = Identity.load_or_create(path)
    loaded = Identity.load_or_create(path)
    assert created.is_new
    assert not loaded.is_new
    assert loaded.peer_id == created.peer_id
    assert loaded.path == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["identity.key"]


def test_of_two_that_create_the_same_file_the_second_takes_the_first_ones_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "identity.key"
    first = Identity.load_or_create(path)
    answers = iter([None])
    read = module._read
    monkeypatch.setattr(module, "_read", lambda asked: next(answers, read(asked)))
    second = Identity.load_or_create(path)
    assert second.peer_id == first.peer_id
    assert not second.is_new


def _damage(content: bytes) -> dict[str, bytes]:
    return {
        "truncated": content[:-10],
        "longer than it says": content + b"x",
        "empty": b"",
        "another format": b"-----BEGIN RSA PRIVATE KEY-----",
        "another key type": b"\x08\x01" + content[2:],
        "no key inside": content[:6] + b"\x00" * (len(content) - 6),
        "length without end": content[:3] + b"\xff" * 8,
    }


@pytest.mark.parametrize("damage", list(_damage(b"")))
def test_a_damaged_identity_file_is_named_with_a_remedy(tmp_path: Path, identity: Identity, damage: str) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(_damage(module._encode_private_key(identity.private_key))[damage])
    with pytest.raises(SettingsError, match=r"identity\.key.*delete it"):
        Identity.load_or_create(path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="create the folder"):
        Identity.load_or_create(tmp_path / "missing" / "identity.key")


def test_an_unreadable_identity_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read identity file"):
        Identity.load_or_create(tmp_path)


def test_a_throw_away_identity_survives_its_spelling_in_bytes() -> None:
    """Its multihash begins with a zero byte."""
    spelling = PeerId("12D3KooWDr6XGA4uypct12tk66N7JccjSHiSJX1CghRHF14iL29V")
    assert len(peer_id_to_bytes(spelling)) == 38
    assert peer_id_from_bytes(peer_id_to_bytes(spelling)) == spelling
