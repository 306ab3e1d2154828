"""Who holds copies of which stage, what is copied together, and what a holder has."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.seals import NamedSeal
from understudy.protocol.actions import CancelFetches, Emit, Fetch, ReleaseCopy, ReleaseSnapshot, Send
from understudy.protocol.events import Fetched, FetchFailed
from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.jobs import ImageJob
from understudy.protocol.manifest import ModelSettings, RecoverySettings, RunManifest
from understudy.protocol.membership.groups import Group
from understudy.protocol.membership.seats import Seat, Status
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.standby.holders import (
    choose_holders,
    keepers_of,
    keeping_stages,
    may_hold,
    spare_for,
    spare_for_driver,
)
from understudy.protocol.standby.shelf import IDLE_S as FORGOTTEN_AFTER_S
from understudy.protocol.standby.shelf import Shelf
from understudy.protocol.standby.source import DRIVER_FLOOR_S, FLOOR_S, IDLE_S, RESEND_S, CopySource, copies_apart
from understudy.protocol.wire.fields import Part
from understudy.protocol.wire.messages import CopyKept, CopyOffer, FetchRequest
from understudy.protocol.wire.records import SpareRecord


def run_of(block_stages: int, keepers: int = 2, every: int = 1) -> RunManifest:
    settings = RecoverySettings(edge_keepers=keepers, edge_copy_every=every, standby_every=0)
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
    assert (keepers_of("embedding", run), keepers_of("head", run)) == (embedding, head)
    assert keeping_stages(run) == {*embedding, *head}


def test_nobody_keeps_what_is_not_copied() -> None:
    assert keeping_stages(run_of(6, every=0)) == set()


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
        self.source = CopySource(self.state, self.queue)

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
        self.source.on_images(("embedding", "head"), ((4, f"e{name}"), (4, f"h{name}")))

    def keep(self, stage: int, *digests: str) -> None:
        for digest in digests:
            part: Part = "embedding" if digest.startswith("e") else "head"
            self.source.on_kept(self.state.membership.groups[stage].first.peer, CopyKept(0, 1, part, 1, digest))

    def taken(self, kind: type) -> list[Any]:
        found = [act for act in self.state.actions if isinstance(act, kind)]
        self.state.actions = [act for act in self.state.actions if act not in found]
        return found

    def offers(self) -> set[tuple[str, str]]:
        return {(send.peer, send.message.digest) for send in self.taken(Send) if isinstance(send.message, CopyOffer)}


ALL_OF_A = {(peer(stage), digest) for stage in (1, 3) for digest in ("ea", "ha")}


@pytest.fixture
def copying() -> Copying:
    """The first pair is offered."""
    found = Copying()
    found.commit(1)
    assert found.ordered() == [ImageJob(1, ("embedding", "head"))], "one job, so that no update falls between"
    found.copy("a")
    assert found.offers() == ALL_OF_A
    return found


def test_the_next_pair_waits_until_all_keep_this_one(copying: Copying) -> None:
    copying.commit(2)
    copying.keep(1, "ea", "ha")
    copying.keep(3, "ha")
    assert copying.ordered() == []
    copying.keep(3, "ea")
    assert copying.ordered() == [ImageJob(2, ("embedding", "head"))]
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
    copying.source.on_images(("embedding", "head"), ((4, "ea"), (4, "hb")))
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
    assert copying.source.may_fetch(peer(stage), FetchRequest(0, incarnation, digest, 0, piece_bytes=1)) == may


# --- keeping ---


class Keeping:
    """S1, which keeps both parts."""

    def __init__(self) -> None:
        run = run_of(3)
        self.state = NodeState(NamedSeal(peer(1)), run, Membership(run.stage_count, run.timing))
        self.state.tenure = Tenure(1, 1, peer(1))
        self.shelf = Shelf(self.state, lambda: None)

    def keep(self, part: Part, incarnation: int, step: int, digest: str | None = None) -> None:
        digest = digest or f"{part}@{incarnation}.{step}"
        self.shelf.on_offer(peer(0), CopyOffer(0, incarnation, part, step, 4, digest))
        if any(isinstance(act, Fetch) and act.digest == digest for act in self.state.actions):
            self.shelf.on_fetch_ended(Fetched((0, incarnation), peer(0), digest, "weights"))

    def held(self, part: Part) -> list[tuple[int, int]]:
        return [(held.incarnation, held.step) for held in self.shelf.donations(0) if held.part == part]

    def released(self) -> list[str]:
        return [act.digest for act in self.state.actions if isinstance(act, ReleaseCopy)]


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
        keeping.shelf.on_offer(peer(0), CopyOffer(0, 1, "embedding", number, 4, f"copy {number}"))
    keeping.shelf.on_offer(peer(0), CopyOffer(0, 1, "head", 1, 4, "head"))
    assert [act.digest for act in keeping.state.actions if isinstance(act, Fetch)] == ["copy 0", "head"]
    keeping.shelf.on_fetch_ended(FetchFailed((0, 1), peer(0), "copy 0", "it broke"))
    keeping.keep("embedding", 1, 1001)
    assert keeping.held("embedding") == [(1, 1001)]


def test_a_new_driver_does_not_wait_for_a_copy_of_the_last_one() -> None:
    keeping = Keeping()
    keeping.shelf.on_offer(peer(0), CopyOffer(0, 1, "embedding", 5, 4, "of the last"))
    keeping.keep("embedding", 2, 6)
    assert keeping.held("embedding") == [(2, 6)]
    assert CancelFetches((0, 1)) in keeping.state.actions
    keeping.shelf.on_fetch_ended(Fetched((0, 1), peer(0), "of the last", "weights"))
    assert keeping.held("embedding") == [(2, 6)]


def test_a_stage_far_from_s0_keeps_nothing() -> None:
    keeping = Keeping()
    keeping.state.tenure = Tenure(2, 1, peer(1))
    keeping.keep("embedding", 1, 5)
    assert keeping.shelf.donations(0) == ()


# --- block stages: who holds what ---

SPARES = [PeerId(f"spare-{number}") for number in range(3)]


@pytest.mark.parametrize(
    ("spares", "followed"),
    [
        (0, [None] * 6),
        (1, [0, 0, None, None, None, None]),
        (2, [0, 1, 0, 1, None, None]),
        (3, [0, 1, 2, 0, 1, 2]),
    ],
)
def test_each_spare_follows_two_stages_at_most(spares: int, followed: list[int | None]) -> None:
    found = [spare_for(stage, SPARES[:spares]) for stage in range(1, 7)]
    assert found == [None if number is None else SPARES[number] for number in followed]


@pytest.mark.parametrize(
    ("stage", "block_stages", "stages"),
    [(1, 6, (3, 2)), (3, 6, (5, 1, 4, 2)), (6, 6, (4, 5)), (2, 2, (1,)), (1, 1, ())],
)
def test_the_next_but_one_holds_rather_than_a_neighbour(stage: int, block_stages: int, stages: tuple[int, ...]) -> None:
    run = msgspec.structs.replace(run_of(block_stages), recovery=RecoverySettings())
    assert may_hold(stage, run) == stages
    assert may_hold(stage, run_of(block_stages)) == (), "nobody holds what is not copied"


def test_s0_may_be_with_its_keepers() -> None:
    assert may_hold(0, run_of(6)) == (1, 6)


@pytest.mark.parametrize(
    ("copies", "spares", "current", "chosen"),
    [
        (1, SPARES, (), ("spare-1",)),
        (1, SPARES, ("spare-2",), ("spare-2",)),
        (1, SPARES, ("owner-4",), ("spare-1",)),
        (1, [], (), ("owner-4",)),
        (1, [], ("owner-0",), ("owner-0",)),
        (2, SPARES, ("owner-0",), ("spare-1", "owner-0")),
        (2, [], (), ("owner-4", "owner-0")),
        (1, ["spare-9"], (), ("spare-9",)),
    ],
)
def test_a_spare_is_chosen_first_and_who_holds_it_goes_on(
    copies: int, spares: list[PeerId], current: tuple[PeerId, ...], chosen: tuple[str, ...]
) -> None:
    owners = [PeerId("owner-4"), PeerId("owner-0")]
    assert choose_holders(2, copies, spares, owners, current) == chosen


@pytest.mark.parametrize(
    ("spares", "current", "chosen"),
    [
        (0, (), ()),
        (1, (), ("spare-0",)),
        (3, (), ("spare-2",)),
        (3, ("spare-0",), ("spare-0",)),
        (3, ("gone",), ("spare-2",)),
    ],
)
def test_s0_lies_with_the_spare_that_follows_the_fewest(
    spares: int, current: tuple[PeerId, ...], chosen: tuple[str, ...]
) -> None:
    assert spare_for_driver(SPARES[:spares], 6, current) == chosen
    assert spare_for_driver([*SPARES, PeerId("spare-3")], 2, ()) == ("spare-2",)


def test_a_young_run_is_copied_more_often() -> None:
    assert [copies_apart(step, 20) for step in (1, 7, 8, 40, 80, 1000)] == [1, 1, 2, 10, 20, 20]


class CopyingBlock(Copying):
    """S2 of five block stages; a spare waits."""

    def __init__(self) -> None:
        run = msgspec.structs.replace(run_of(5), recovery=RecoverySettings())
        self.state = NodeState(NamedSeal(peer(2)), run, Membership(run.stage_count, run.timing), now=10.0)
        self.state.tenure, self.state.tenure_state = Tenure(2, 1, peer(2)), "serving"
        for stage in (0, 1, 2, 3, 4, 5):
            self.serve(stage, peer(stage))
        self.wait("spare")
        self.queue = WorkQueue()
        self.source = CopySource(self.state, self.queue)

    def wait(self, *names: str) -> None:
        self.state.idle_spares = tuple(SpareRecord(name, 1.0) for name in names)

    def image(self, name: str) -> None:
        self.source.on_images(("stage",), ((4, name),))

    def confirm(self, holder: str, digest: str, *, is_full: bool = False) -> None:
        self.source.on_kept(PeerId(holder), CopyKept(2, 1, "stage", 1, digest, is_full))


@pytest.fixture
def block() -> CopyingBlock:
    found = CopyingBlock()
    found.commit(1)
    assert found.ordered() == [ImageJob(1, ("stage", "moments"))]
    found.image("a")
    assert found.offers() == {("spare", "a")}
    return found


def test_a_block_stage_is_copied_to_a_spare(block: CopyingBlock) -> None:
    block.confirm("spare", "a")
    block.commit(2)
    assert block.ordered() == [ImageJob(2, ("stage",))], "moments come with every tenth copy"
    assert block.state.copied == 1


def test_a_holder_without_room_is_passed_over(block: CopyingBlock) -> None:
    block.confirm("spare", "a", is_full=True)
    assert block.offers() == {("peer-4", "a")}
    assert block.state.copied == 0


def test_a_spare_that_does_nothing_is_not_waited_for(block: CopyingBlock) -> None:
    block.commit(2)
    block.state.now += IDLE_S / 2
    assert block.source.may_fetch(PeerId("spare"), FetchRequest(2, 1, "a", 0, piece_bytes=1)), "it is at work"
    block.state.now += IDLE_S / 2
    block.source.advance()
    assert block.offers() == {("spare", "a")}, "nobody else yet"
    block.state.now += IDLE_S
    block.source.advance()
    assert block.offers() == {("peer-4", "a")}
    block.confirm("peer-4", "a")
    assert block.ordered() == [ImageJob(2, ("stage",))]


def test_a_spare_that_is_gone_is_followed_by_another_holder(block: CopyingBlock) -> None:
    block.confirm("spare", "a")
    block.wait()
    block.source.advance()
    assert block.offers() == {("peer-4", "a")}


def test_nobody_copies_for_nobody() -> None:
    alone = CopyingBlock()
    alone.wait()
    for stage in (1, 3, 4):
        del alone.state.membership.groups[stage]
    alone.commit(1)
    assert alone.ordered() == []


# --- a shelf ---


class Following(Keeping):
    """A spare."""

    def __init__(self) -> None:
        super().__init__()
        self.state.tenure = None

    def follow(self, stage: int, step: int, part: Part = "stage", incarnation: int = 1) -> None:
        digest = f"S{stage}/{incarnation}@{step} {part}"
        self.shelf.on_offer(peer(stage), CopyOffer(stage, incarnation, part, step, 4, digest))
        if any(isinstance(act, Fetch) and act.digest == digest for act in self.state.actions):
            self.shelf.on_fetch_ended(Fetched((stage, incarnation), peer(stage), digest, "weights"))

    def refused(self) -> list[int]:
        sent = [act.message for act in self.state.actions if isinstance(act, Send)]
        return [message.stage for message in sent if isinstance(message, CopyKept) and message.is_full]


def test_a_spare_holds_the_newest_copy_and_fetches_the_difference() -> None:
    spare = Following()
    spare.follow(2, 5)
    spare.follow(2, 9)
    fetched = [act for act in spare.state.actions if isinstance(act, Fetch)]
    assert [(fetch.base, fetch.share) for fetch in fetched] == [("", 1), ("S2/1@5 stage", 1)]
    assert [copy.offer.step for copy in spare.shelf.copies(2)] == [9]
    assert spare.released() == ["S2/1@5 stage"]
    assert [(given.is_copy, given.step) for given in spare.shelf.donations(2)] == [(True, 9)]


def test_moments_alone_bring_no_stage_back() -> None:
    spare = Following()
    spare.follow(2, 5, "moments")
    assert spare.shelf.stages == ()
    spare.follow(2, 5)
    assert spare.shelf.stages == (2,)
    assert {copy.offer.part for copy in spare.shelf.copies(2)} == {"stage", "moments"}


def test_there_is_room_for_two_stages_and_for_s0() -> None:
    spare = Following()
    for stage in (1, 2, 3):
        spare.follow(stage, 5)
    spare.keep("embedding", 1, 5)
    assert spare.shelf.stages == (0, 1, 2)
    assert spare.refused() == [3]


def test_what_its_owner_does_not_speak_of_any_more_makes_room() -> None:
    spare = Following()
    spare.follow(1, 5)
    spare.follow(2, 5)
    spare.state.now += FORGOTTEN_AFTER_S
    spare.follow(3, 6)
    assert spare.refused() == [3], "both are lost, so their copies are needed"
    for stage in (1, 2):
        seat = Seat(stage, peer(stage), 1, "serving", 5, Status.ALIVE, 10.0)
        spare.state.membership.groups[stage] = Group([seat])
    spare.follow(2, 6)
    spare.follow(3, 6)
    assert spare.shelf.stages == (2, 3)
    assert "S1/1@5 stage" in spare.released()


def test_nobody_needs_a_copy_of_its_own_stage_or_of_what_there_is_not() -> None:
    owner = Keeping()
    for offer in (
        CopyOffer(1, 1, "stage", 5, 4, "own"),
        CopyOffer(2, 1, "embedding", 5, 4, "a block stage has none"),
        CopyOffer(0, 1, "stage", 5, 4, "S0 has two parts"),
        CopyOffer(2, 1, "initial", 5, 4, "nobody's"),
    ):
        owner.shelf.on_offer(peer(offer.stage), offer)
    assert owner.state.actions == []


def test_what_was_forgotten_while_it_came_is_not_kept() -> None:
    spare = Following()
    spare.shelf.on_offer(peer(2), CopyOffer(2, 1, "stage", 5, 4, "late"))
    spare.shelf.forget(2)
    assert CancelFetches((2, 1)) in spare.state.actions
    assert not spare.shelf.on_fetch_ended(Fetched((2, 1), peer(2), "late", "weights"))
    assert spare.shelf.stages == ()


def test_copies_of_a_history_that_was_beaten_go_when_the_owner_of_the_lower_incarnation_speaks() -> None:
    spare = Following()
    spare.follow(2, 450, incarnation=2)
    spare.follow(2, 400, incarnation=1)
    assert [copy.commit for copy in spare.shelf.copies(2)] == [(1, 400)]
    assert spare.released() == ["S2/2@450 stage"]


def test_what_lies_here_twice_is_not_released_once() -> None:
    """Somebody offers another's digest as its own."""
    spare = Following()
    for stage in (1, 2):
        spare.shelf.on_offer(peer(stage), CopyOffer(stage, 1, "stage", 5, 4, "same"))
        spare.shelf.on_fetch_ended(Fetched((stage, 1), peer(stage), "same", "weights"))
    spare.shelf.forget(1)
    assert spare.released() == []
    spare.shelf.forget(2)
    assert spare.released() == ["same"]


# --- holders that crawl ---


def test_a_holder_that_fetches_for_ever_is_done_without(block: CopyingBlock) -> None:
    block.commit(2)
    for _ in range(20):
        assert block.ordered() == []
        assert block.source.may_fetch(PeerId("spare"), FetchRequest(2, 1, "a", 0, piece_bytes=1))
        block.state.now += FLOOR_S / 20
    block.state.now += 1.0
    block.source.advance()
    assert block.offers() >= {("peer-4", "a")}
    assert not block.source.may_fetch(PeerId("spare"), FetchRequest(2, 1, "a", 0, piece_bytes=1))


def test_a_spare_holds_the_copies_of_s0_up_for_seconds(copying: Copying) -> None:
    copying.state.idle_spares = (SpareRecord("spare", 1.0),)
    copying.source.advance()
    for stage in (1, 3):
        copying.keep(stage, "ea", "ha")
    copying.commit(2)
    assert copying.ordered() == []
    copying.state.now += DRIVER_FLOOR_S / 2
    assert copying.source.may_fetch(PeerId("spare"), FetchRequest(0, 1, "ea", 0, piece_bytes=1))
    copying.state.now += DRIVER_FLOOR_S / 2 + 1.0
    copying.source.advance()
    assert copying.ordered() == [ImageJob(2, ("embedding", "head"))]


def test_keepers_of_s0_are_waited_for(copying: Copying) -> None:
    """Without one of them there would be no commit that all have; who is dead is replaced."""
    copying.keep(1, "ea", "ha")
    copying.commit(2)
    copying.state.now += 100 * IDLE_S
    copying.source.advance()
    assert copying.ordered() == []
    copying.keep(3, "ea", "ha")
    assert copying.ordered() == [ImageJob(2, ("embedding", "head"))]
    copying.copy("b")
    assert {holder for holder, _ in copying.offers()} >= {peer(1), peer(3)}


def test_who_confirms_late_is_a_holder_all_the_same(block: CopyingBlock) -> None:
    block.state.now += IDLE_S
    block.source.advance()
    assert ("peer-4", "a") in block.offers()
    block.confirm("spare", "a")
    block.confirm("peer-4", "a")
    block.commit(2)
    assert block.ordered() == [ImageJob(2, ("stage",))]


def test_a_holder_fetches_in_pieces_and_once(block: CopyingBlock) -> None:
    assert not block.source.may_fetch(PeerId("spare"), FetchRequest(2, 1, "a", 0)), "all at once is for claimants"
    assert block.source.may_fetch(PeerId("spare"), FetchRequest(2, 1, "a", 0, piece_bytes=1))
    block.confirm("spare", "a")
    assert not block.source.may_fetch(PeerId("spare"), FetchRequest(2, 1, "a", 0, piece_bytes=1)), "it has it"
