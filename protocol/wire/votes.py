"""Votes: what an owner signs when it recognises a claimant, and what the new owner shows of it to everybody else.

A stage that was trained changes hands by votes alone: what a peer says of itself deposes nobody
(protocol/membership/proofs.py). A vote names the run, the claim and the voter's own tenure, so it proves nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.wire.fields import Incarnation, NamedPeer, StageNumber

VOTES_SHOWN_MAX = 4
"""A vote takes 0.7 kB with a key of 2048 bits, and two of owners that a reader knows are enough for it."""
KEY_BYTES_MAX = 1024
SIGNATURE_BYTES_MAX = 512
_DOMAIN = b"understudy vote\0"


class Vote(msgspec.Struct, frozen=True, array_like=True):
    """The owner of a stage recognises a claimant. ``stage`` and ``incarnation`` are the voter's own."""

    voter: NamedPeer
    stage: StageNumber
    incarnation: Incarnation
    public_key: Annotated[bytes, Meta(max_length=KEY_BYTES_MAX)]
    signature: Annotated[bytes, Meta(max_length=SIGNATURE_BYTES_MAX)]

    @property
    def tenure(self) -> Tenure:
        """What the voter owns."""
        return Tenure(self.stage, self.incarnation, self.voter)


Proof = Annotated[tuple[Vote, ...], Meta(max_length=VOTES_SHOWN_MAX)]
"""Some of the votes for a tenure. Empty: it was the first of its stage, or nobody was there to vote."""


def vote_bytes(run_digest: str, claim: Tenure, voter: Tenure) -> bytes:
    """What the voter signs."""
    return _DOMAIN + msgspec.msgpack.encode((run_digest, claim, voter))


IsOf = Callable[[PeerId, bytes, bytes, bytes], bool]
"""Whether a peer, with a public key, made of some bytes this signature (`Seal.is_of`)."""


def is_signed(run_digest: str, claim: Tenure, vote: Vote, is_of: IsOf) -> bool:
    """Whether the voter signed it for this claim."""
    return is_of(vote.voter, vote.public_key, vote_bytes(run_digest, claim, vote.tenure), vote.signature)
