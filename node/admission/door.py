"""The door of an invited run, as one process holds it: what it shows of itself, whom it lets in, what was revoked.

A membership is verified once and remembered; whether it has expired or was revoked since is looked up at each stream
and each call of the DHT. Nothing is looked up for a message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import lru_cache, partial

from understudy.node.admission.keys import is_of_key, public_key_of, sign_with
from understudy.node.p2p.addresses import RUN_ID_DIGEST_CHARS, JoinString
from understudy.node.p2p.identity import Identity, peer_id_of, verify
from understudy.protocol.admission.invite import Charter, Ticket, has_expired, membership_bytes
from understudy.protocol.admission.membership import Member, Membership, Objection, check_membership, objection
from understudy.protocol.admission.presence import Presence
from understudy.protocol.admission.revocation import RevocationList, decode_revocations, newer
from understudy.protocol.errors import RemoteProtocolError, SettingsError
from understudy.protocol.ids import PeerId

MEMBERS_MAX = 4096
"""Peers whose memberships are remembered; the one met longest ago is forgotten, and verified again."""

_ADVICE: dict[Objection, str] = {
    "stranger": "the invite in the join string does not fit this run: ask its founder for the join string again",
    "another run": "another run is there than the join string is of: it has ended, or its seed serves a new one",
    "expired": "the invite in the join string has expired: ask the founder for another, and see that the clocks are "
    "right, here and there",
    "revoked": "the founder revoked this invite, or this peer",
    "observer": "the join string is for observers, who may look (status) and export: ask the founder for a volunteer's",
}


class Door:
    """Made by `for_guest` or `for_founder`; `enter` before anything else, once the PeerID is known."""

    def __init__(self, charter: Charter, ticket: Ticket | None, clock: Callable[[], float] = time.time) -> None:
        self._charter, self._ticket, self._clock = charter, ticket, clock
        self._check = lru_cache(MEMBERS_MAX)(partial(check_membership, charter=charter))
        self._members: dict[PeerId, Member] = {}
        self._versions: dict[PeerId, int] = {}
        """Of the list that a peer is known to have."""
        self._put_out: set[PeerId] = set()
        self._own: Member | None = None
        self._refusal: Objection = ""
        self._protocols = f"-{charter.digest[:RUN_ID_DIGEST_CHARS]}/"
        self.shown = b""
        """Our membership, for whoever we speak with."""
        self.revoked = RevocationList()
        self._encoded_list = b""
        self.has_news = asyncio.Event()
        """Set when a newer list came."""

    @classmethod
    def for_guest(cls, join: JoinString, *, must_train: bool = False) -> Door | None:
        """The door that a join string is for; None: its run is open.

        Raises `SettingsError` for an invite that is of no use, or lets nobody train who must.
        """
        ticket = join.ticket
        if ticket is None:
            return None
        charter = charter_of(join.digest, join.founder, ticket.founder_key)
        signed = ticket.invite.signed_bytes(join.digest)
        if not charter.is_founders(signed, ticket.invite.signature):
            raise SettingsError("the invite in the join string is not signed by the run's founder: ask for it again")
        if public_key_of(ticket.private_key) != ticket.invite.key:
            raise SettingsError("the join string is damaged: its invite and its key do not belong together")
        if has_expired(ticket.invite.expires_at, time.time()):
            ended = date_of(ticket.invite.expires_at)
            raise SettingsError(
                f"the invite in the join string expired at {ended}: ask the founder for another "
                "(or set this machine's clock, if it is not later than that)"
            )
        if must_train and ticket.invite.role == "observer":
            raise SettingsError(_ADVICE["observer"])
        return cls(charter, ticket)

    @classmethod
    def for_founder(cls, digest: str, founder: Identity, revoked: RevocationList) -> Door:
        """The seed's: it needs no invite."""
        door = cls(charter_of(digest, founder.peer_id, founder.public_key_bytes), None)
        door.take(revoked)
        return door

    def enter(self, peer: PeerId) -> None:
        """From now on we are this peer."""
        if self._ticket is not None and peer != self._charter.founder:
            invite = self._ticket.invite
            signature = sign_with(self._ticket.private_key, membership_bytes(self._charter.digest, invite.key, peer))
            self.shown = Membership(invite, signature).encode()
        self._own = self._check(self.shown, peer)

    # --- others ---

    def guards(self, protocol: str) -> bool:
        """Whether streams of this protocol are the run's: those carry its run id in their names."""
        return self._protocols in protocol

    def objection_to(self, peer: PeerId, membership: bytes) -> Objection:
        """Why the peer that shows this is refused; empty: it is let in."""
        try:
            member = self._check(membership, peer)
        except RemoteProtocolError:
            return "stranger"
        self._members.pop(peer, None)
        self._members[peer] = member
        if len(self._members) > MEMBERS_MAX:
            del self._members[next(iter(self._members))]
        return objection(member, self.revoked, self._clock())

    def is_volunteers(self, peer: PeerId, membership: bytes) -> bool:
        """Whether the peer may store what carries this. Of all times and lists: it depends on the bytes alone."""
        try:
            return self._check(membership, peer).role == "volunteer"
        except RemoteProtocolError:
            return False

    def is_observer(self, peer: PeerId) -> bool:
        """Whether a peer that was let in may only look."""
        member = self._members.get(peer)
        return member is not None and member.role == "observer"

    def is_out(self, peer: PeerId) -> bool:
        """Whether a peer was let in, and would not be now."""
        member = self._members.get(peer) or Member(peer)
        return objection(member, self.revoked, self._clock()) != ""

    def outcasts(self) -> list[PeerId]:
        """Those of them that were not named before."""
        known = {*self._members, *(PeerId(peer) for peer in self.revoked.peers)}
        found = [peer for peer in known if peer not in self._put_out and self.is_out(peer)]
        self._put_out = {peer for peer in (*self._put_out, *found) if peer in known}
        return found

    # --- what was revoked ---

    def adopt(self, encoded: bytes) -> None:
        """Take over a newer list; an older one changes nothing. Raises `RemoteProtocolError` for a forged one."""
        if encoded != self._encoded_list:
            self.take(newer(self.revoked, decode_revocations(encoded, self._charter)))

    def take(self, revoked: RevocationList) -> None:
        """As `adopt`, of a list whose signature was checked."""
        if revoked.version > self.revoked.version:
            self.revoked, self._encoded_list = revoked, revoked.encode()
            self.has_news.set()

    # --- ourselves ---

    def presence_for(self, peer: PeerId, refusal: Objection = "") -> Presence:
        """What we show a peer of the DHT. Strangers learn nothing of the list, and whoever it shuts out has to."""
        if refusal and refusal != "revoked":
            return Presence(self._charter.digest, refusal=refusal)
        is_newer = self._versions.get(peer, 0) < self.revoked.version
        shown = b"" if refusal else self.shown
        listed = self._encoded_list if is_newer else b""
        return Presence(self._charter.digest, shown, self.revoked.version, listed, refusal)

    def objection_to_presence(self, peer: PeerId, presence: Presence) -> Objection:
        """As `objection_to`, for what came with a call of the DHT; learns what the peer knows."""
        if presence.run != self._charter.digest:
            return "another run" if presence.run else "stranger"
        if presence.revocations:
            self.adopt(presence.revocations)
        found = self.objection_to(peer, presence.membership)
        if found != "stranger":
            self._note_version(peer, presence.version)
        return found

    def _note_version(self, peer: PeerId, version: int) -> None:
        if len(self._versions) >= MEMBERS_MAX:
            self._versions.clear()
        self._versions[peer] = version

    def knows(self, peer: PeerId) -> bool:
        """Whether a peer has our list, as far as we know."""
        return self._versions.get(peer, -1) >= self.revoked.version

    def note_refusal(self, refusal: Objection) -> None:
        """Somebody did not let us in; anybody may say so, and it is nothing but words for a person."""
        self._refusal = refusal

    def why_refused(self) -> SettingsError | None:
        """What to tell a person who was not let in; None: nobody said why."""
        return SettingsError(_ADVICE[self._refusal]) if self._refusal else None

    def why_out(self) -> SettingsError | None:
        """Why we are out by now, by the founder's word or by our own clock; None: we are not."""
        found = objection(self._own, self.revoked, self._clock()) if self._own is not None else ""
        return SettingsError(_ADVICE[found]) if found else None


def date_of(unix_s: int) -> str:
    """Of an expiry, for people."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix_s))


def charter_of(digest: str, founder: PeerId, founder_key: bytes) -> Charter:
    """Raises `SettingsError` if the key is not the founder's."""
    try:
        is_founders_key = peer_id_of(founder_key) == founder
    except RemoteProtocolError:
        is_founders_key = False
    if not is_founders_key:
        raise SettingsError("the invite in the join string is not of the founder that it names: ask for it again")
    return Charter(digest, founder, partial(verify, founder_key), is_of_key)
