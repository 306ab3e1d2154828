"""What a spare makes of offers: news of a death, unless it is its own from when it was cut off."""

from __future__ import annotations

import pytest

from understudy.protocol.core import Core
from understudy.protocol.events import RecordsRead, Started
from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import preset
from understudy.protocol.records import OfferRecord, StageRecord, stage_key, weights_key

ME, OWNER, WITNESS = PeerId("QmMe"), PeerId("QmOwner"), PeerId("QmWitness")


def offer_by(peer: PeerId) -> OfferRecord:
    return OfferRecord(peer, 1, 1, stage=2, step=3, squared_gradient_norm=None, payload_bytes=0, digest="")


@pytest.mark.parametrize(("author", "is_believed"), [(WITNESS, True), (ME, False)])
def test_an_offer_of_our_own_from_before_kills_nobody(author: PeerId, is_believed: bool) -> None:
    core = Core(ME, preset("tiny"))
    core.handle(Started(None), 0.0)
    core.handle(RecordsRead(stage_key(1), (StageRecord(OWNER, 1, 1, "serving", 3),)), 0.1)
    assert core.state.membership.is_serving(1)
    core.handle(RecordsRead(weights_key(1), (offer_by(author),)), 0.2)
    assert core.state.membership.is_serving(1) is not is_believed
