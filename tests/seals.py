"""Keys for cores that have no machine: a signature is its author's name, which nothing but its own seal writes."""

from __future__ import annotations

import hashlib

import msgspec

from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.wire.messages import Grant
from understudy.protocol.wire.votes import Vote, vote_bytes


class NamedSeal:
    """The key of one simulated peer."""

    def __init__(self, peer: PeerId) -> None:
        self.peer_id = peer

    @property
    def public_key_bytes(self) -> bytes:
        return f"key of {self.peer_id}".encode()

    def sign(self, data: bytes) -> bytes:
        return hashlib.sha256(self.public_key_bytes + data).digest()

    @staticmethod
    def is_of(peer: PeerId, public_key: bytes, data: bytes, signature: bytes) -> bool:
        seal = NamedSeal(peer)
        return seal.public_key_bytes == public_key and seal.sign(data) == signature


def vote_of(voter: Tenure, claim: Tenure, digest: str) -> Vote:
    """What an owner signs if it recognises a claim."""
    seal = NamedSeal(voter.peer)
    signature = seal.sign(vote_bytes(digest, claim, voter))
    return Vote(voter.peer, voter.stage, voter.incarnation, seal.public_key_bytes, signature)


def signed(grant: Grant, voter: Tenure, claimant: PeerId, digest: str) -> Grant:
    """The grant as its sender sends it."""
    claim = Tenure(grant.stage, grant.incarnation, claimant)
    return msgspec.structs.replace(grant, vote=vote_of(voter, claim, digest))
