"""The exporter's decisions, fed by hand: what it does about owners that lie, fall silent or have no room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.seals import vote_of
from tests.sim.simulation import small_manifest
from understudy.protocol.actions import CancelFetches, Emit, Fetch, Send
from understudy.protocol.events import Fetched, FetchFailed, MessageReceived, RecordsRead, Started, TimerFired
from understudy.protocol.export.actions import BeginExport, ExportWish, FailExport, FinishExport
from understudy.protocol.export.exporter import (
    FETCH_TRIES,
    FETCHES_AT_ONCE,
    LEASE_RENEW_S,
    NOBODY_S,
    Exporter,
    best_tenure,
)
from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.wire.fields import LeaseState
from understudy.protocol.wire.messages import LeaseRelease, LeaseRequest, LeaseStatus
from understudy.protocol.wire.records import PROGRESS_KEY, ProgressRecord, StageRecord, stage_key

MANIFEST = small_manifest(stages=3, steps=0)


def peer(stage: int, incarnation: int = 1) -> PeerId:
    return PeerId(f"peer-{stage}-{incarnation}")


def record(stage: int, incarnation: int = 1, step: int = 5, state: Any = "serving") -> StageRecord:
    """A tenure after the first shows the votes for it."""
    claim, others = Tenure(stage, incarnation, peer(stage, incarnation)), [s for s in range(5) if s != stage][:2]
    votes = tuple(vote_of(Tenure(other, 1, peer(other, 1)), claim, MANIFEST.digest()) for other in others)
    return StageRecord(claim.peer, stage, incarnation, state, step, proof=votes if incarnation > 1 else ())


class Export:
    """An exporter with a clock of its own."""

    def __init__(self, **wish: Any) -> None:
        self.core = Exporter(PeerId("me"), MANIFEST, ExportWish(**wish))
        self.now = 100.0
        self.do(Started())

    def do(self, event: Any) -> list[Any]:
        return list(self.core.handle(event, self.now))

    def read(self, *records: StageRecord, progress: int = 5) -> list[Any]:
        actions = []
        for stage in range(3):
            found = tuple(record for record in records if record.stage == stage)
            actions += self.do(RecordsRead(stage_key(stage), found))
        return actions + self.do(RecordsRead(PROGRESS_KEY, (ProgressRecord("p", 1, progress, 1.0, 1, 1.0),)))

    def answer(
        self, stage: int, step: int, status: LeaseState = "held", committed: int = 5, **changed: Any
    ) -> list[Any]:
        what = {"payload_bytes": MANIFEST.model.stage_bytes(stage), "digest": f"S{stage}@{step}"}
        fields = {**(what if status == "held" else {}), **changed}
        return self.do(MessageReceived(peer(stage), LeaseStatus(stage, 1, step, status, committed, **fields)))

    def wait(self, seconds: float) -> list[Any]:
        actions, until = [], self.now + seconds
        while self.now < until:
            self.now += 0.25
            actions += self.do(TimerFired())
        return actions


def of(kind: Any, actions: Sequence[Any]) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def asked(actions: Sequence[Any]) -> list[tuple[PeerId, int]]:
    return [(send.peer, send.message.step) for send in of(Send, actions) if isinstance(send.message, LeaseRequest)]


def names(actions: Sequence[Any]) -> list[str]:
    return [emit.name for emit in of(Emit, actions)]


def aimed() -> Export:
    """All owners are known, and were asked for step 5."""
    export = Export()
    actions = export.read(record(0), record(1), record(2))
    assert of(BeginExport, actions) == [BeginExport(5)]
    assert asked(actions) == [(peer(0), 5), (peer(1), 5), (peer(2), 5)]
    return export


def held() -> tuple[Export, list[Any]]:
    export = aimed()
    return export, [action for stage in range(3) for action in export.answer(stage, 5)]


def test_nothing_is_aimed_at_before_every_stage_has_an_owner() -> None:
    export = Export()
    actions = export.read(record(0), record(2), record(1, state="recovering"), progress=7)
    assert of(BeginExport, actions) == []
    assert [emit.fields["stages"] for emit in of(Emit, actions)] == [[1]]
    assert of(BeginExport, export.read(record(0), record(1), record(2), progress=7)) == [BeginExport(5)]


def test_only_the_word_of_who_serves_a_stage_says_how_far_the_run_is() -> None:
    """Anybody can sign a record of any step: aiming there, an export would wait for ever."""
    export = Export()
    liar = StageRecord("liar", 1, 3, "serving", 2**53)
    gone = StageRecord("gone", 2, 3, "left", 2**53)
    actions = export.read(record(0), record(1), liar, record(2, state="recovering"), progress=2**53)
    assert of(BeginExport, actions) == []
    assert of(BeginExport, export.read(record(0), record(1), record(2), gone, progress=2**53)) == [BeginExport(5)]


def test_the_driver_knows_best_how_far_the_run_is() -> None:
    export = Export()
    export.do(RecordsRead(PROGRESS_KEY, (ProgressRecord(peer(0), 1, 7, 1.0, 1, 1.0),)))
    assert of(BeginExport, export.read(record(0), record(1), record(2))) == [BeginExport(7)]


def test_nothing_is_fetched_before_every_owner_holds_its_weights() -> None:
    export = aimed()
    assert of(Fetch, export.answer(0, 5) + export.answer(1, 5)) == []
    fetches = of(Fetch, export.answer(2, 5))
    assert [fetch.claim for fetch in fetches] == [(0, 1), (1, 1)]
    assert len(fetches) == FETCHES_AT_ONCE


def test_what_is_fetched_is_let_go_and_the_whole_is_finished() -> None:
    export, _ = held()
    first = export.do(Fetched((0, 1), peer(0), "S0@5", "W0"))
    assert of(Send, first) == [Send(peer(0), LeaseRelease(5))]
    assert [fetch.claim for fetch in of(Fetch, first)] == [(2, 1)]
    export.do(Fetched((1, 1), peer(1), "S1@5", "W1"))
    assert of(FinishExport, export.do(Fetched((2, 1), peer(2), "S2@5", "W2"))) == [FinishExport(5)]
    assert export.core.is_over
    assert export.do(TimerFired()) == []


def test_an_owner_beyond_the_step_moves_all_of_it_and_the_lead_grows() -> None:
    export = aimed()
    export.answer(0, 5)
    actions = export.answer(1, 5, "passed", committed=9)
    assert of(BeginExport, actions) == [BeginExport(10)]
    assert [(send.peer, send.message) for send in of(Send, actions)][:3] == [
        (peer(s), LeaseRelease(5)) for s in range(3)
    ]
    assert asked(actions) == [(peer(0), 10), (peer(1), 10), (peer(2), 10)]
    assert of(BeginExport, export.answer(0, 5)) == [], "an answer about another step is no news"
    assert of(BeginExport, export.answer(1, 10, "passed", committed=20)) == [BeginExport(22)]
    assert of(BeginExport, export.answer(1, 22, "passed", committed=22)) == [BeginExport(26)]


def test_a_wish_is_repeated_until_its_stage_is_there() -> None:
    export, _ = held()
    export.do(Fetched((0, 1), peer(0), "S0@5", "W0"))
    assert asked(export.wait(LEASE_RENEW_S)) == [(peer(1), 5), (peer(2), 5)]


def test_a_new_owner_is_asked_and_the_fetch_from_the_old_one_ends() -> None:
    export, _ = held()
    actions = export.read(record(0), record(1, incarnation=2), record(2))
    assert of(CancelFetches, actions) == [CancelFetches((1, 1))]
    assert asked(actions) == [(peer(1, 2), 5)]
    assert of(FinishExport, export.do(Fetched((1, 1), peer(1), "S1@5", "W1"))) == []
    news = LeaseStatus(1, 2, 5, "held", 5, MANIFEST.model.stage_bytes(1), "S1/2@5")
    (fetch,) = of(Fetch, export.do(MessageReceived(peer(1, 2), news)))
    assert (fetch.claim, fetch.donor, fetch.digest) == ((1, 2), peer(1, 2), "S1/2@5")


def test_only_the_owner_answers_for_a_stage() -> None:
    export = aimed()
    for sender, incarnation, stage in ((peer(1), 1, 0), (peer(0), 2, 0), (peer(0), 1, 9)):
        news = LeaseStatus(stage, incarnation, 5, "passed", 99)
        assert export.do(MessageReceived(sender, news)) == []


@pytest.mark.parametrize("payload_bytes", [0, 1, 2**50])
def test_an_owner_that_offers_other_than_its_stage_ends_the_export(payload_bytes: int) -> None:
    (failure,) = of(FailExport, aimed().answer(1, 5, payload_bytes=payload_bytes))
    assert str(peer(1)) in failure.reason


def test_an_owner_that_does_not_deliver_is_asked_again_and_then_given_up() -> None:
    export, _ = held()
    for attempt in range(FETCH_TRIES):
        actions = export.do(FetchFailed((0, 1), peer(0), "S0@5", "other bytes"))
        if attempt < FETCH_TRIES - 1:
            assert asked(actions) == [(peer(0), 5)]
            assert [fetch.claim for fetch in of(Fetch, export.answer(0, 5))] == [(0, 1)]
    (failure,) = of(FailExport, actions)
    assert "S0 cannot be fetched" in failure.reason
    assert "other bytes" in failure.reason


def test_full_and_silent_owners_are_told_about() -> None:
    export = aimed()
    assert names(export.answer(0, 5, "full")) == ["export.queued"]
    assert names(export.answer(0, 5, "full")) == []
    export.answer(1, 5, "noted")
    (silent,) = [emit for emit in of(Emit, export.wait(10.0)) if emit.name == "export.silent"]
    assert silent.fields["stages"] == [2]


def test_a_run_that_nobody_serves_is_given_up() -> None:
    export = Export()
    export.read()
    assert of(FailExport, export.wait(NOBODY_S - 1.0)) == []
    (failure,) = of(FailExport, export.wait(2.0))
    assert "nobody serves any stage" in failure.reason


def test_a_stage_without_an_owner_is_waited_for_as_long_as_the_run_goes_on() -> None:
    export = Export()
    export.read(record(0), record(2))
    assert of(FailExport, export.wait(5 * NOBODY_S)) == []


def test_an_interrupted_export_asks_only_for_what_is_missing() -> None:
    export = Export(step=4, there={0: "S0@4"})
    actions = export.read(record(0), record(1), record(2))
    assert of(BeginExport, actions) == []
    assert asked(actions) == [(peer(1), 4), (peer(2), 4)]


def test_who_wants_the_last_step_does_not_go_on_with_another() -> None:
    manifest = small_manifest(stages=3, steps=9)
    wish = ExportWish(is_last=True, step=4, there={0: "S0@4"})
    export = Export()
    export.core = Exporter(PeerId("me"), manifest, wish)
    assert of(BeginExport, export.read(record(0), record(1), record(2))) == [BeginExport(9)]
    export.core = Exporter(PeerId("me"), manifest, ExportWish(is_last=True, step=9, there={0: "S0@9"}))
    assert asked(export.read(record(0), record(1), record(2))) == [(peer(1), 9), (peer(2), 9)]


def test_the_better_tenure_is_the_owner() -> None:
    assert best_tenure([]) is None
    assert best_tenure([record(1), record(1, 3, state="recovering"), record(1, 2)]) == record(1, 3, state="recovering")
