"""The peer's long-lived identity: an RSA key whose public half hashes to the PeerID.

One key does three things: p2pd proves the PeerID with it, the DHT records of the peer are signed
with it, and the founder signs the run manifest with it. So whoever holds a public key and a
PeerID can check that they belong together, without asking anybody.

The file is the one p2pd and hivemind read: libp2p's ``PrivateKey{key_type = RSA, data = PKCS#1
DER}`` (https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md). The two fields are
encoded here by hand, so that this file needs nothing but ``cryptography``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from understudy.node.files.atomic import write_atomically
from understudy.node.files.plain_files import open_plain
from understudy.protocol.errors import RemoteProtocolError, SettingsError
from understudy.protocol.ids import PEER_ID_CHARS_MAX, PeerId

KEY_BITS = 2048
KEY_BITS_MAX = 4096
PUBLIC_KEY_BYTES_MAX = 1024
IDENTITY_FILE_BYTES_MAX = 8 * 1024

_RSA_KEY_TYPE = b"\x08\x00"
"""libp2p ``key_type = RSA``: field 1, varint 0."""
_DATA_TAG = b"\x12"
"""libp2p ``data``: field 2, length-delimited."""
_SHA256_MULTIHASH = b"\x12\x20"
"""Multihash prefix: sha2-256, 32 bytes."""
_ED25519_MULTIHASH = b"\x00\x24\x08\x01\x12\x20"
"""Multihash prefix of an Ed25519 key, which stands there itself: identity, 36 bytes; {key_type = Ed25519, 32 bytes}."""
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

# The scheme of hivemind's RSAPrivateKey (hivemind/utils/crypto.py), so one key serves both.
_PADDING = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.MAX_LENGTH)
_HASH = hashes.SHA256()


class Identity:
    """An RSA key pair and the PeerID it stands for."""

    def __init__(self, private_key: rsa.RSAPrivateKey, path: Path | None = None, *, is_new: bool = True) -> None:
        self.private_key = private_key
        self.path = path
        """The file p2pd reads the key from; None for a key that lives in memory only."""
        self.is_new = is_new
        """False when the key was read from a file, so another process may be running under it."""
        self.public_key_bytes = _openssh(private_key.public_key())
        """``ssh-rsa ...``: the form in DHT records and beside signatures."""
        self.peer_id = _peer_id(private_key.public_key())

    @classmethod
    def generate(cls) -> Identity:
        """A fresh identity in memory. Takes about 0.1 s of CPU."""
        return cls(rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS))

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """Read the identity at ``path``, or create it there. Raises `SettingsError`."""
        encoded = _read(path)
        if encoded is not None:
            return cls(_decode_private_key(encoded, path), path, is_new=False)
        fresh = cls.generate()
        if _create(path, _encode_private_key(fresh.private_key)):
            return cls(fresh.private_key, path)
        return cls.load_or_create(path)  # another process created it first

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read the identity at ``path``. Raises `SettingsError`, also if there is none."""
        encoded = _read(path)
        if encoded is None:
            raise SettingsError(f"there is no identity file {path}: name the key with --identity")
        return cls(_decode_private_key(encoded, path), path, is_new=False)

    def sign(self, data: bytes) -> bytes:
        """RSA-PSS with SHA-256. `verify` is the inverse."""
        return self.private_key.sign(data, _PADDING, _HASH)

    @staticmethod
    def is_of(peer: PeerId, public_key: bytes, data: bytes, signature: bytes) -> bool:
        """Whether the OpenSSH-encoded key is the peer's, and the signature the key's."""
        try:
            return peer_id_of(public_key) == peer and verify(public_key, data, signature)
        except RemoteProtocolError:
            return False


def verify(public_key: bytes, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` over ``data`` was made by the holder of the OpenSSH-encoded key."""
    try:
        _parse_public_key(public_key).verify(signature, data, _PADDING, _HASH)
    except (InvalidSignature, RemoteProtocolError):
        return False
    return True


def peer_id_of(public_key: bytes) -> PeerId:
    """The PeerID that an OpenSSH-encoded RSA key hashes to. Raises `RemoteProtocolError`."""
    return _peer_id(_parse_public_key(public_key))


def _parse_public_key(public_key: bytes) -> rsa.RSAPublicKey:
    if len(public_key) > PUBLIC_KEY_BYTES_MAX:
        raise RemoteProtocolError(
            f"a public key of {len(public_key)} bytes; at most {PUBLIC_KEY_BYTES_MAX} are allowed"
        )
    try:
        key = serialization.load_ssh_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RemoteProtocolError(f"a public key that is not an OpenSSH key: {error}") from error
    if not isinstance(key, rsa.RSAPublicKey) or not KEY_BITS <= key.key_size <= KEY_BITS_MAX:
        raise RemoteProtocolError(f"a public key that is not RSA of {KEY_BITS} to {KEY_BITS_MAX} bits")
    return key


def _openssh(key: rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _peer_id(key: rsa.RSAPublicKey) -> PeerId:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashlib.sha256(_encode_key_message(der)).digest()
    return PeerId(_base58(_SHA256_MULTIHASH + digest))


def _base58(data: bytes) -> str:
    """Base58 (Bitcoin alphabet) of a multihash; a zero at its beginning, which a number has not, is spelled as "1"."""
    number, digits = int.from_bytes(data, "big"), ""
    while number:
        number, remainder = divmod(number, 58)
        digits = _BASE58[remainder] + digits
    return _BASE58[0] + digits if data.startswith(b"\0") else digits


def peer_id_from_bytes(multihash: bytes) -> PeerId:
    """The base58 spelling of a PeerID that p2pd gave as bytes."""
    return PeerId(_base58(multihash))


def peer_id_to_bytes(peer_id: PeerId) -> bytes:
    """The multihash a base58 PeerID spells, of an RSA key or of a throw-away identity's Ed25519 key.

    Raises `RemoteProtocolError` for anything else.
    """
    number = 0
    for digit in peer_id[:PEER_ID_CHARS_MAX]:
        value = _BASE58.find(digit)
        if value < 0:
            raise RemoteProtocolError(f"{peer_id[:PEER_ID_CHARS_MAX]!r} is not a PeerID")
        number = number * 58 + value
    multihash = number.to_bytes((number.bit_length() + 7) // 8, "big")
    if len(multihash) == 34 and multihash.startswith(_SHA256_MULTIHASH):
        return multihash
    multihash = b"\0" + multihash
    if len(multihash) == 38 and multihash.startswith(_ED25519_MULTIHASH) and peer_id.startswith(_BASE58[0]):
        return multihash
    raise RemoteProtocolError(f"{peer_id[:PEER_ID_CHARS_MAX]!r} is not the PeerID of an RSA or Ed25519 key")


def _encode_key_message(data: bytes) -> bytes:
    """libp2p's PrivateKey and PublicKey messages for RSA: both are {key_type, data}."""
    length, size = len(data), b""
    while length > 0x7F:
        size += bytes([length & 0x7F | 0x80])
        length >>= 7
    return _RSA_KEY_TYPE + _DATA_TAG + size + bytes([length]) + data


def _encode_private_key(key: rsa.RSAPrivateKey) -> bytes:
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return _encode_key_message(der)


def _decode_private_key(encoded: bytes, path: Path) -> rsa.RSAPrivateKey:
    remedy = "restore it from a backup, or delete it and a new identity is created"
    if not encoded.startswith(_RSA_KEY_TYPE + _DATA_TAG):
        raise SettingsError(f"{path} is not an RSA identity file of libp2p: {remedy}")
    size, offset, shift = 0, 3, 0
    while offset < len(encoded) and shift < 28:
        byte = encoded[offset]
        size |= (byte & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 0x80:
            break
    if len(encoded) != offset + size:
        raise SettingsError(f"identity file {path} is truncated or damaged: {remedy}")
    try:
        key = serialization.load_der_private_key(encoded[offset:], password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"identity file {path} is damaged: {remedy}") from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise SettingsError(f"identity file {path} does not hold an RSA key: {remedy}")
    if not KEY_BITS <= key.key_size <= KEY_BITS_MAX:
        raise SettingsError(
            f"identity file {path} holds an RSA key of {key.key_size} bits; "
            f"{KEY_BITS} to {KEY_BITS_MAX} are accepted: {remedy}"
        )
    return key


def _read(path: Path) -> bytes | None:
    """The file's bytes, or None when there is no such file yet."""
    try:
        with open_plain(path) as file:
            return file.read(IDENTITY_FILE_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"cannot read identity file {path}: {error.strerror}") from error


def _create(path: Path, encoded: bytes) -> bool:
    """Write a file only its owner can read; False when the file appeared meanwhile.

    A reader sees the whole file or none.
    """
    try:
        write_atomically(path, encoded, mode=0o600, may_replace=False)
    except FileExistsError:
        return False
    except FileNotFoundError as error:
        raise SettingsError(f"cannot create identity file {path}: create the folder {path.parent} first") from error
    except OSError as error:
        raise SettingsError(f"cannot create identity file {path}: {error.strerror}") from error
    return True
