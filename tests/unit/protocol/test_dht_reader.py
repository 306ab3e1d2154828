"""What a spare makes of offers: news of a death or of a return, as long as their author holds a stage."""

from __future__ import annotations

import msgspec
import pytest

from tests.seals import NamedSeal
from understudy.protocol.actions import Run
from understudy.protocol.core import Core
from understudy.protocol.events import JobDone, RecordsRead, Started, TimerFired
from understudy.protocol.ids import PeerId
from understudy.protocol.presets import preset
from understudy.protocol.wire.records import OfferRecord, StageRecord, stage_key, weights_key

ME, OWNER, WITNESS, RETIRED = PeerId("QmMe"), PeerId("QmOwner"), PeerId("QmWitness"), PeerId("QmRetired")


def offer_by(peer: PeerId) -> OfferRecord:
    return OfferRecord(peer, 1, 1, stage=2, step=3, squared_gradient_norm=None, payload_bytes=0, digest="")


def spare() -> Core:
    core = Core(NamedSeal(ME), preset("tiny"), check_every=1)
    core.handle(Started(None), 0.0)
    core.handle(RecordsRead(stage_key(1), (StageRecord(OWNER, 1, 1, "serving", 3),)), 0.1)
    core.handle(RecordsRead(stage_key(2), (StageRecord(WITNESS, 2, 1, "serving", 3),)), 0.1)
    assert core.state.membership.is_serving(1)
    return core


@pytest.mark.parametrize(("author", "is_believed"), [(WITNESS, True), (RETIRED, False), (ME, False)])
def test_who_holds_no_stage_any_more_kills_nobody_by_an_offer_of_before(author: PeerId, is_believed: bool) -> None:
    """Cut off, it took the others for dead; the offer outlasts its return by seconds."""
    core = spare()
    core.handle(RecordsRead(weights_key(1), (offer_by(author),)), 0.2)
    assert core.state.membership.is_serving(1) is not is_believed


@pytest.mark.parametrize("incarnation", [1, 2])
def test_an_offer_that_is_taken_back_brings_the_owner_back(incarnation: int) -> None:
    core = spare()
    core.handle(RecordsRead(weights_key(1), (offer_by(WITNESS),)), 0.2)
    taken_back = msgspec.structs.replace(offer_by(WITNESS), is_taken_back=True, lost_incarnation=incarnation)
    core.handle(RecordsRead(weights_key(1), (taken_back,)), 0.3)
    assert core.state.membership.is_serving(1) is (incarnation == 1)


def test_of_two_witnesses_the_one_that_hears_nothing_counts() -> None:
    core = spare()
    core.handle(RecordsRead(stage_key(0), (StageRecord(RETIRED, 0, 1, "serving", 3),)), 0.1)
    taken_back = msgspec.structs.replace(offer_by(RETIRED), is_taken_back=True)
    core.handle(RecordsRead(weights_key(1), (offer_by(WITNESS), taken_back)), 0.3)
    assert not core.state.membership.is_serving(1)


def test_an_owner_does_not_take_itself_for_dead_when_its_own_record_is_missing() -> None:
    """A machine that slept for longer than its record lives reads the stage's key before it stored the next one."""
    core = Core(NamedSeal(ME), preset("tiny"), check_every=1)
    core.handle(Started(1), 0.0)
    for stage in range(preset("tiny").stage_count):
        core.handle(RecordsRead(stage_key(stage), ()), 0.1)
    core.handle(TimerFired(), 2.0)
    (run,) = [action for action in core.handle(RecordsRead(stage_key(1), ()), 2.1) if isinstance(action, Run)]
    core.handle(JobDone(run.job), 2.2)
    assert core.state.is_serving
    core.handle(RecordsRead(stage_key(1), ()), 2.3 + preset("tiny").timing.record_lifetime_s)
    assert core.state.membership.serving_peer(1) == ME


def test_a_newcomer_believes_the_likeliest_of_several_records() -> None:
    """A liar's PeerID may come first; a later tenure without votes is less likely than the stage's first owner."""
    core = Core(NamedSeal(ME), preset("tiny"), check_every=1)
    liar, honest = StageRecord("a-liar", 2, 40, "serving", 5), StageRecord("owner", 2, 1, "serving", 5)
    core.handle(RecordsRead(stage_key(2), (liar, honest)), 10.0)
    assert core.state.membership.serving_peer(2) == "owner"
