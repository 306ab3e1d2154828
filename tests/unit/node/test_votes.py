"""Votes in records that are read: whoever only looks on must not be shown forged ones."""

from __future__ import annotations

from understudy.node.dht.votes import with_valid_votes
from understudy.node.p2p.identity import Identity
from understudy.protocol.ids import Tenure
from understudy.protocol.wire.records import SpareRecord, StageRecord
from understudy.protocol.wire.votes import Vote, vote_bytes

DIGEST = "d" * 64


def vote(identity: Identity, claim: Tenure, signed_for: str = DIGEST) -> Vote:
    own = Tenure(1, 1, identity.peer_id)
    signature = identity.sign(vote_bytes(signed_for, claim, own))
    return Vote(own.peer, own.stage, own.incarnation, identity.public_key_bytes, signature)


def test_votes_that_their_voters_did_not_sign_are_left_out() -> None:
    voter, owner = Identity.generate(), Identity.generate()
    claim = Tenure(2, 3, owner.peer_id)
    good, of_another_run = vote(voter, claim), vote(voter, claim, "e" * 64)
    of_another_claim = vote(voter, Tenure(2, 4, owner.peer_id))
    record = StageRecord(owner.peer_id, 2, 3, "serving", 5, proof=(of_another_run, good, of_another_claim))
    read = with_valid_votes(record, DIGEST)
    assert isinstance(read, StageRecord)
    assert read.proof == (good,)


def test_other_records_are_as_they_were() -> None:
    record = SpareRecord("spare", 1.0)
    assert with_valid_votes(record, DIGEST) is record
