"""The invites of a run, as its founder keeps them: invites.json and revoked.json in the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from understudy.node.admission.door import charter_of
from understudy.node.admission.keys import new_private_key, public_key_of
from understudy.node.files.atomic import write_atomically
from understudy.node.files.plain_files import read_plain
from understudy.node.p2p.identity import Identity
from understudy.protocol.admission.invite import NEVER, Expiry, Invite, Key, Label, Role, Ticket, has_expired
from understudy.protocol.admission.revocation import REVOKED_MAX, RevocationList, decode_revocations
from understudy.protocol.errors import RemoteProtocolError, SettingsError
from understudy.protocol.ids import PeerId

INVITES_FILE, REVOKED_FILE = "invites.json", "revoked.json"
FIRST_LABEL = "founding"
"""Of the invite in the join string that `bootstrap` prints."""
INVITES_MAX = 4096


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One invite that was handed out. Its private key is in there: the file is the founder's alone."""

    label: Label
    role: Role
    expires_at: Expiry
    private_key: Key
    signature: bytes

    @property
    def key(self) -> bytes:
        return public_key_of(self.private_key)

    def ticket(self, founder: Identity) -> Ticket:
        """What the join string carries."""
        invite = Invite(self.key, self.label, self.role, self.expires_at, self.signature)
        return Ticket(invite, self.private_key, founder.public_key_bytes)

    def is_usable(self, revoked: RevocationList, now: float) -> bool:
        return self.key not in revoked.invites and not has_expired(self.expires_at, now)


class Book(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All invites of a run."""

    run: str
    """The run's digest."""
    invites: tuple[Entry, ...] = ()

    def labelled(self, label: str) -> list[Entry]:
        return [entry for entry in self.invites if entry.label == label]


class _Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """revoked.json: the signed list, and beside it for people whom it names."""

    version: int
    labels: tuple[str, ...]
    peers: tuple[str, ...]
    signed: bytes
    kind: Literal["understudy revocations"] = "understudy revocations"


def make_invite(digest: str, founder: Identity, label: str, role: Role, expires_at: int) -> Entry:
    """A fresh key that the founder signs. Raises `SettingsError` for a label that is none."""
    private_key = new_private_key()
    invite = Invite(public_key_of(private_key), label, role, expires_at)
    signature = founder.sign(invite.signed_bytes(digest))
    entry = Entry(label=label, role=role, expires_at=expires_at, private_key=private_key, signature=signature)
    try:
        return msgspec.convert(msgspec.to_builtins(entry), type=Entry)
    except msgspec.ValidationError as error:
        raise SettingsError(
            f"--label {label!r}: up to 32 letters, digits and . _ - are allowed, the first a letter or digit"
        ) from error


def first_invite(book: Book, revoked: RevocationList, founder: Identity, now: float) -> tuple[Book, Entry]:
    """The invite of the seed's own join string: the one that was handed out before, while it is of use."""
    for entry in book.labelled(FIRST_LABEL):
        if entry.is_usable(revoked, now):
            return book, entry
    entry = make_invite(book.run, founder, FIRST_LABEL, "volunteer", NEVER)
    return with_invite(book, entry), entry


def with_invite(book: Book, entry: Entry) -> Book:
    """Raises `SettingsError` when there are too many."""
    if len(book.invites) >= INVITES_MAX:
        raise SettingsError(f"a run has at most {INVITES_MAX} invites")
    return msgspec.structs.replace(book, invites=(*book.invites, entry))


def whom_to_revoke(book: Book, who: str, founder: PeerId) -> tuple[tuple[bytes, ...], tuple[PeerId, ...]]:
    """The keys of the invites with this label, or else a PeerID. Raises `SettingsError`."""
    if keys := tuple(entry.key for entry in book.labelled(who)):
        return keys, ()
    if who == founder:
        raise SettingsError("the founder cannot be revoked: whoever has the founder's key has the run")
    if not who.isalnum() or len(who) < 40:
        labels = ", ".join(dict.fromkeys(entry.label for entry in book.invites)) or "none"
        raise SettingsError(f"{who!r} is neither a PeerID nor the label of an invite; there are: {labels}")
    return (), (PeerId(who),)


def revoke(revoked: RevocationList, book: Book, founder: Identity, who: str) -> RevocationList:
    """The next list, signed. Raises `SettingsError`."""
    more = revoked.with_more(*whom_to_revoke(book, who, founder.peer_id))
    if max(len(more.invites), len(more.peers)) > REVOKED_MAX:
        raise SettingsError(f"at most {REVOKED_MAX} invites and as many peers can be revoked: found a new run")
    return msgspec.structs.replace(more, signature=founder.sign(more.signed_bytes(book.run)))


# --- files ---------------------------------------------------------------------------------------


def read_book(folder: Path, digest: str) -> Book:
    """The invites that were handed out so far. Raises `SettingsError`."""
    book = _read(folder / INVITES_FILE, Book)
    if book is None:
        return Book(run=digest)
    if book.run != digest:
        raise SettingsError(f"{folder / INVITES_FILE} is of another run: remove it, or choose another --dir")
    return book


def keep_book(folder: Path, book: Book) -> None:
    """For the founder's eyes alone. Raises `SettingsError`."""
    _keep(folder / INVITES_FILE, book, mode=0o600)


def read_revoked(folder: Path, digest: str, founder: Identity) -> RevocationList:
    """What was revoked so far. Raises `SettingsError`."""
    kept = _read(folder / REVOKED_FILE, _Kept)
    if kept is None:
        return RevocationList()
    try:
        return decode_revocations(kept.signed, charter_of(digest, founder.peer_id, founder.public_key_bytes))
    except RemoteProtocolError as error:
        raise SettingsError(f"{folder / REVOKED_FILE} cannot be used: {error}") from error


def keep_revoked(folder: Path, revoked: RevocationList, book: Book) -> None:
    """Raises `SettingsError`."""
    labels = tuple(entry.label for entry in book.invites if entry.key in revoked.invites)
    kept = _Kept(version=revoked.version, labels=labels, peers=revoked.peers, signed=revoked.encode())
    _keep(folder / REVOKED_FILE, kept)


Kept = TypeVar("Kept", Book, _Kept)


def _read(path: Path, kind: type[Kept]) -> Kept | None:
    try:
        return msgspec.json.decode(read_plain(path), type=kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is damaged ({error}): restore it from a backup") from error


def _keep(path: Path, what: Book | _Kept, mode: int = 0o666) -> None:
    try:
        write_atomically(path, msgspec.json.format(msgspec.json.encode(what)) + b"\n", mode=mode)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from error
