"""What a founder does with invites: the seed's door, one more join string, and taking one back."""

from __future__ import annotations

import time
from pathlib import Path

from understudy.bootstrap.founding import JOIN_FILE, MANIFEST_FILE, check_founder, join_string, reload_manifest
from understudy.bootstrap.invites import (
    Book,
    first_invite,
    keep_book,
    keep_revoked,
    make_invite,
    read_book,
    read_revoked,
    revoke,
    with_invite,
)
from understudy.bootstrap.seed import Admission
from understudy.node.admission.door import Door, date_of
from understudy.node.dht.config import reader_config
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.files.plain_files import read_plain
from understudy.node.p2p.addresses import JoinString, parse_join
from understudy.node.p2p.identity import Identity
from understudy.protocol.admission.invite import NEVER, Role, Ticket
from understudy.protocol.admission.revocation import RevocationList
from understudy.protocol.errors import NetworkError, SettingsError
from understudy.protocol.manifest import RunManifest

TOLD_TRIES = 3
"""A peer that is called while it is busy is called again."""


def open_door(manifest: RunManifest, founder: Identity, folder: Path | None) -> Admission | None:
    """The seed's door and the invite that its join string carries; None: the run is open. Raises `SettingsError`.

    Without a folder the invite is the seed's alone: it cannot be revoked, and the next start makes another.
    """
    if manifest.admission == "open":
        return None
    digest = manifest.digest()
    book, revoked = Book(run=digest), RevocationList()
    if folder is not None:
        book, revoked = read_book(folder, digest), read_revoked(folder, digest, founder)
    kept, entry = first_invite(book, revoked, founder, time.time())
    if folder is not None and kept is not book:
        _make_folder(folder)
        keep_book(folder, kept)

    def newest() -> RevocationList:
        return revoked if folder is None else read_revoked(folder, digest, founder)

    return Admission(Door.for_founder(digest, founder, revoked), entry.ticket(founder), newest)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be made: {error.strerror}; choose another --dir") from error


def whom_it_admits(ticket: Ticket | None) -> str:
    """A sentence for whoever is about to hand out a join string."""
    if ticket is None:
        return "Anyone can join with: understudy node --join '<that line>'."
    invite = ticket.invite
    ended = "" if invite.expires_at == NEVER else f" until {date_of(invite.expires_at)}"
    if invite.role == "observer":
        return f"Whoever has that line may look and export{ended}, with status and export. Its label: {invite.label}."
    return (
        f"Whoever has that line can join{ended} with: understudy node --join '<that line>'. Its label: {invite.label}."
    )


class Founded:
    """A run's folder in its founder's hands. Raises `SettingsError` if it is not."""

    def __init__(self, folder: Path, founder: Identity) -> None:
        manifest = reload_manifest(folder)
        if manifest is None:
            raise SettingsError(f"{folder / MANIFEST_FILE} is not there: name with --dir the folder of a founded run")
        if manifest.admission == "open":
            raise SettingsError(
                f"the run of {folder} is open to everybody: there is nothing to invite to, or to revoke"
            )
        check_founder(folder, manifest, founder)
        self.folder, self._founder, self._manifest = folder, founder, manifest
        self.digest = manifest.digest()
        self.join = _read_join(folder)

    def invite(self, label: str, role: Role, expires_at: int) -> JoinString:
        """A join string with a new invite, which is kept. Raises `SettingsError`."""
        book = read_book(self.folder, self.digest)
        if book.labelled(label):
            raise SettingsError(f"there is an invite with the label {label!r} already: choose another --label")
        entry = make_invite(self.digest, self._founder, label, role, expires_at)
        keep_book(self.folder, with_invite(book, entry))
        return join_string(self._manifest, self._founder, self.join.addresses, entry.ticket(self._founder))

    def free_label(self, role: Role) -> str:
        """For whoever gave none."""
        book = read_book(self.folder, self.digest)
        return next(label for n in range(1, len(book.invites) + 2) if not book.labelled(label := f"{role}-{n}"))

    def revoke(self, who: str) -> RevocationList:
        """Sign and keep the next list, by a label or a PeerID. Raises `SettingsError`."""
        book = read_book(self.folder, self.digest)
        revoked = revoke(read_revoked(self.folder, self.digest, self._founder), book, self._founder, who)
        keep_revoked(self.folder, revoked, book)
        return revoked

    async def tell(self, revoked: RevocationList) -> int:
        """Tell the swarm of a list, as a guest with an invite of this moment: how many peers heard it.

        Raises `NetworkError` if none did.
        """
        entry = make_invite(self.digest, self._founder, "teller", "observer", NEVER)
        join = join_string(self._manifest, self._founder, self.join.addresses, entry.ticket(self._founder))
        door = Door.for_guest(join)
        assert door is not None
        door.take(revoked)
        told = 0
        async with P2PNode.open(reader_config(join.addresses, door), Identity.generate()) as p2p:
            for _ in range(TOLD_TRIES):
                told = max(told, await p2p.greet(everybody=True))
        if not told:
            raise NetworkError("nobody of the swarm answered")
        return told


def _read_join(folder: Path) -> JoinString:
    path = folder / JOIN_FILE
    try:
        return parse_join(read_plain(path).decode())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: start the seed once more with --dir {folder}") from error
