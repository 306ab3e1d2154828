"""The votes in the records that are read: whoever asks by them must not be shown forged ones."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from understudy.node.p2p.identity import Identity
from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.wire.records import AnyRecord, StageRecord
from understudy.protocol.wire.votes import Vote, is_signed

REMEMBERED = 4096
"""Votes that were checked: the same records are read again and again."""


def with_valid_votes(record: AnyRecord, run_digest: str) -> AnyRecord:
    """The record without votes that their voters did not sign for it."""
    if not isinstance(record, StageRecord) or not record.proof:
        return record
    claim = Tenure(record.stage, record.incarnation, PeerId(record.peer))
    valid = tuple(vote for vote in record.proof if _is_signed(run_digest, claim, vote))
    return msgspec.structs.replace(record, proof=valid)


@lru_cache(REMEMBERED)
def _is_signed(run_digest: str, claim: Tenure, vote: Vote) -> bool:
    return is_signed(run_digest, claim, vote, Identity.is_of)
