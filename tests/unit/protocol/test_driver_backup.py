"""Who keeps copies of S0, what is copied together, and what a holder has."""

from __future__ import annotations

from typing import Any

import pytest

from tests.seals import NamedSeal
from understudy.protocol.actions import CancelFetches, Emit, Fetch, ReleaseSnapshot, Send
from understudy.protocol.events import Fetched, FetchFailed
from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.jobs import SnapshotJob
from understudy.protocol.manifest import ModelSettings, RecoverySettings, RunManifest
from understudy.protocol.membership.groups import Group
from understudy.protocol.membership.seats import Seat, Status
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.recovery.driver_backup import (
    RESEND_S,
    DriverBackupHolder,
    DriverBackupSource,
    holders_of,
    holding_stages,
)
from understudy.protocol.wire.fields import Part
from understudy.protocol.wire.messages import EdgeCopy, EdgeCopyKept, FetchRequest


def run_of(block_stages: int, keepers: int = 2, every: int = 1) -> RunManifest:
    settings = RecoverySettings(edge_keepers=keepers, edge_copy_every=every)
    return RunManifest(name="copied", model=ModelSettings(block_stages=block_stages), recovery=settings)


@pytest.mark.parametrize(
    ("block_stages", "keepers", "embedding", "head"),
    [
        (6, 1, (1,), (6,)),
        (6, 2, (1, 6), (6, 1)),
        (6, 3, (1, 6, 2), (6, 1, 5)),
        (3, 3, (1, 3, 2), (3, 1, 2)),
        (2, 3, (1, 2), (2, 1)),
        (1, 2, (1,), (1,)),
    ],
)
def test_the_nearest_keep_each_part(
    block_stages: int, keepers: int, embedding: tuple[int, ...], head: tuple[int, ...]
) -> None:
    run = run_of(block_stages, keepers)
    assert (holders_of("embedding", run), holders_of("head", run)) == (embedding, head)
    assert holding_stages(run) == {*embedding, *head}


def test_nobody_keeps_what_is_not_copied() -> None:
    assert holding_stages(run_of(6, every=0)) == set()


def peer(stage: int) -> PeerId:
    return PeerId(f"peer-{stage}")


class Copying:
    """S0 of four stages, two keepers of each part."""

    def __init__(self) -> None:
        run = run_of(3)
        self.state = NodeState(NamedSeal(peer(0)), run, Membership(run.stage_count, run.timing), now=10.0)
        self.state.tenure, self.state.tenure_state = Tenure(0, 1, peer(0)), "serving"
        for stage in (1, 2, 3):
            self.serve(stage, peer(stage))
        self.queue = WorkQueue()
        self.source = DriverBackupSource(self.state, self.queue)

    def serve(self, stage: int, owner: PeerId) -> None:
        self.state.membership.groups[stage] = Group([Seat(stage, owner, 1, "serving", 0, Status.ALIVE, 10.0)])

    def commit(self, step: int) -> None:
        self.state.committed = step
        self.source.applied(step)

    def ordered(self) -> list[Any]:
        jobs = []
        while (job := self.queue.pop()) is not None:
            self.queue.finished()
            jobs.append(job)
        return jobs

    def copy(self, name: str) -> None:
        self.source.on_snapshots(("embedding", "head"), ((4, f"e{name}"), (4, f"h{name}")))

    def keep(self, stage: int, *digests: str) -> None:
        for digest in digests:
            part: Part = "embedding" if digest.startswith("e") else "head"
            self.source.on_kept(self.state.membership.groups[stage].first.peer, EdgeCopyKept(part, 1, digest))

    def taken(self, kind: type) -> list[Any]:
        found = [act for act in self.state.actions if isinstance(act, kind)]
        self.state.actions = [act for act in self.state.actions if act not in found]
        return found

    def offers(self) -> set[tuple[str, str]]:
        return {(send.peer, send.message.digest) for send in self.taken(Send) if isinstance(send.message, EdgeCopy)}


ALL_OF_A = {(peer(stage), digest) for stage in (1, 3) for digest in ("ea", "ha")}


@pytest.fixture
def copying() -> Copying:
    """The first pair is offered."""
    found = Copying()
    found.commit(1)
    assert found.ordered() == [SnapshotJob(1, ("embedding", "head"))], "one job, so that no update falls between"
    found.copy("a")
    assert found.offers() == ALL_OF_A
    return found


def test_the_next_pair_waits_until_all_keep_this_one(copying: Copying) -> None:
    copying.commit(2)
    copying.keep(1, "ea", "ha")
    copying.keep(3, "ha")
    assert copying.ordered() == []
    copying.keep(3, "ea")
    assert copying.ordered() == [SnapshotJob(2, ("embedding", "head"))]
    assert [(emit.fields["part"], emit.fields["to_stage"]) for emit in copying.taken(Emit)] == [
        ("embedding", 1),
        ("head", 1),
        ("head", 3),
        ("embedding", 3),
    ]


def test_what_a_stranger_or_a_former_keeper_confirms_counts_for_nothing(copying: Copying) -> None:
    copying.commit(2)
    copying.keep(2, "ea", "ha")
    copying.keep(1, "ex")
    assert copying.taken(Emit) == []


def test_what_is_not_confirmed_is_offered_again(copying: Copying) -> None:
    copying.keep(1, "ea")
    copying.state.now += RESEND_S
    copying.source.advance()
    assert copying.offers() == ALL_OF_A - {(peer(1), "ea")}


def test_a_new_keeper_gets_the_pair_that_the_others_have(copying: Copying) -> None:
    copying.keep(1, "ea", "ha")
    copying.keep(3, "ea", "ha")
    copying.commit(2)
    copying.serve(3, PeerId("spare"))
    copying.source.owner_changed(3)
    assert copying.offers() == {("spare", "ea"), ("spare", "ha")}
    copying.source.owner_changed(2)
    assert copying.offers() == set()


def test_a_pair_is_let_go_when_the_next_is_there(copying: Copying) -> None:
    copying.source.on_snapshots(("embedding", "head"), ((4, "ea"), (4, "hb")))
    assert copying.taken(ReleaseSnapshot) == [ReleaseSnapshot("ha")], "the embedding did not change"


@pytest.mark.parametrize(
    ("stage", "incarnation", "digest", "may"),
    [
        (1, 1, "ea", True),
        (1, 1, "ha", True),
        (3, 1, "ea", True),
        (2, 1, "ea", False),
        (1, 2, "ea", False),
        (1, 1, "x", False),
    ],
)
def test_a_copy_is_for_its_keepers(copying: Copying, stage: int, incarnation: int, digest: str, may: bool) -> None:
    assert copying.source.may_fetch(peer(stage), FetchRequest(0, incarnation, digest, 0)) == may


# --- keeping ---


class Keeping:
    """S1, which keeps both parts."""

    def __init__(self) -> None:
        run = run_of(3)
        self.state = NodeState(NamedSeal(peer(1)), run, Membership(run.stage_count, run.timing))
        self.state.tenure = Tenure(1, 1, peer(1))
        self.holder = DriverBackupHolder(self.state, lambda: None)

    def keep(self, part: Part, incarnation: int, step: int, digest: str | None = None) -> None:
        digest = digest or f"{part}@{incarnation}.{step}"
        self.holder.on_offer(peer(0), EdgeCopy(part, incarnation, step, 4, digest))
        if any(isinstance(act, Fetch) and act.digest == digest for act in self.state.actions):
            self.holder.on_fetched(Fetched((0, incarnation), peer(0), digest, "weights"))

    def held(self, part: Part) -> list[tuple[int, int]]:
        return [(held.incarnation, held.step) for held in self.holder.donations() if held.part == part]

    def released(self) -> list[str]:
        return [act.digest for act in self.state.actions if isinstance(act, ReleaseSnapshot)]


def test_a_keeper_holds_the_last_two_pairs() -> None:
    keeping = Keeping()
    for step in (1, 2, 3):
        keeping.keep("embedding", 1, step)
        keeping.keep("head", 1, step)
    assert keeping.held("embedding") == keeping.held("head") == [(1, 2), (1, 3)]
    assert keeping.released() == ["embedding@1.1", "head@1.1"]


def test_a_pair_is_kept_until_there_is_another() -> None:
    """Two drivers died one after the other, each after only one part of its first copy was here."""
    keeping = Keeping()
    for part, incarnation, step in (("embedding", 1, 5), ("head", 1, 5), ("embedding", 2, 6), ("embedding", 3, 7)):
        keeping.keep(part, incarnation, step)  # type: ignore[arg-type]
    assert keeping.held("embedding") == [(1, 5), (3, 7)]
    assert keeping.held("head") == [(1, 5)]


def test_weights_that_did_not_change_are_of_the_later_commit_too() -> None:
    keeping = Keeping()
    keeping.keep("embedding", 1, 5, "same")
    keeping.keep("embedding", 1, 6, "same")
    assert keeping.held("embedding") == [(1, 5), (1, 6)]
    keeping.keep("embedding", 1, 7)
    assert keeping.held("embedding") == [(1, 6), (1, 7)]
    assert keeping.released() == [], "the earlier label is gone, the weights are still held"


def test_one_copy_of_a_part_is_on_its_way_at_a_time() -> None:
    """A driver that offers ever new ones costs the memory of one."""
    keeping = Keeping()
    for number in range(1000):
        keeping.holder.on_offer(peer(0), EdgeCopy("embedding", 1, number, 4, f"copy {number}"))
    keeping.holder.on_offer(peer(0), EdgeCopy("head", 1, 1, 4, "head"))
    assert [act.digest for act in keeping.state.actions if isinstance(act, Fetch)] == ["copy 0", "head"]
    keeping.holder.on_fetch_failed(FetchFailed((0, 1), peer(0), "copy 0", "it broke"))
    keeping.keep("embedding", 1, 1001)
    assert keeping.held("embedding") == [(1, 1001)]


def test_a_new_driver_does_not_wait_for_a_copy_of_the_last_one() -> None:
    keeping = Keeping()
    keeping.holder.on_offer(peer(0), EdgeCopy("embedding", 1, 5, 4, "of the last"))
    keeping.keep("embedding", 2, 6)
    assert keeping.held("embedding") == [(2, 6)]
    assert CancelFetches((0, 1)) in keeping.state.actions
    keeping.holder.on_fetched(Fetched((0, 1), peer(0), "of the last", "weights"))
    assert keeping.held("embedding") == [(2, 6)]


def test_a_stage_far_from_s0_keeps_nothing() -> None:
    keeping = Keeping()
    keeping.state.tenure = Tenure(2, 1, peer(1))
    keeping.keep("embedding", 1, 5)
    assert keeping.holder.donations() == ()
