"""One node, fed by hand: what the core does about what it is told, and what it never does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.seals import NamedSeal, signed, vote_of
from tests.sim.simulation import small_manifest
from understudy.protocol.actions import (
    Action,
    CloseLinks,
    Emit,
    Fetch,
    Read,
    ReadText,
    ReleaseStage,
    Run,
    Send,
    Stop,
    Store,
)
from understudy.protocol.core import Core
from understudy.protocol.events import (
    Fetched,
    FetchFailed,
    JobDone,
    MessageReceived,
    PeerUnreachable,
    RecordsRead,
    Started,
    StopRequested,
    TextRead,
    TimerFired,
)
from understudy.protocol.ids import Attempt, Microbatch, PeerId, Tenure
from understudy.protocol.jobs import Applied, ApplyJob, BackwardJob, BlendJob, ForwardJob, InitialiseJob, Job
from understudy.protocol.membership.failure_detector import RESERVE_READ_MIN
from understudy.protocol.membership.placement import FRONT_MAX
from understudy.protocol.text_check import TEXT_RETRY_S
from understudy.protocol.wire.fields import StageState
from understudy.protocol.wire.messages import (
    Announce,
    AnyMessage,
    Backward,
    Claim,
    Commit,
    CommitAck,
    Donation,
    Fenced,
    FetchEnd,
    FetchRequest,
    Forward,
    Grant,
    Heartbeat,
    Hello,
    Lost,
    Refusal,
    Withdraw,
)
from understudy.protocol.wire.records import (
    PROGRESS_KEY,
    SPARES_KEY,
    AnyRecord,
    ManifestRecord,
    ProgressRecord,
    SpareRecord,
    StageRecord,
    stage_key,
    weights_key,
)
from understudy.protocol.wire.votes import Vote

ME, OTHER = PeerId("me"), PeerId("other")
MANIFEST = small_manifest(stages=5, steps=10, microbatches=2, method="checkfree")
SIGNED_MANIFEST = ManifestRecord("founder", b"manifest", b"key", b"signature")
FIRST = Attempt(1, 0)
T = TypeVar("T")


def peer(stage: int) -> PeerId:
    return PeerId(f"peer-{stage}")


class Node:
    """A core with a clock of its own."""

    def __init__(self) -> None:
        self.core = Core(NamedSeal(ME), MANIFEST, signed_manifest=SIGNED_MANIFEST, check_every=1)
        self.now = 100.0

    def do(self, event: Any) -> list[Action]:
        return self.core.handle(event, self.now)

    def hear(self, sender: PeerId, message: AnyMessage, payload: Any = None) -> list[Action]:
        """A grant comes with its sender's vote."""
        if isinstance(message, Grant) and message.vote is None:
            message = signed(message, self.tenure_of(sender), ME, MANIFEST.digest())
        return self.do(MessageReceived(sender, message, payload))

    def tenure_of(self, sender: PeerId) -> Tenure:
        seats = self.core.state.membership.seats_of(sender)
        return Tenure(seats[0].stage, seats[0].incarnation, sender) if seats else Tenure(0, 1, sender)

    def read(self, records: Sequence[AnyRecord]) -> list[Action]:
        """Read every key of the run, as found with these records."""
        actions: list[Action] = []
        for stage in range(MANIFEST.stage_count):
            found = tuple(r for r in records if isinstance(r, StageRecord) and r.stage == stage)
            actions += self.do(RecordsRead(stage_key(stage), found))
        return actions

    def wait(self, seconds: float) -> list[Action]:
        """Let time pass tick by tick."""
        actions, until = [], self.now + seconds
        while self.now < until:
            self.now += 0.25
            actions += self.do(TimerFired())
        return actions


def of(kind: type[T], actions: Sequence[Action]) -> list[T]:
    return [action for action in actions if isinstance(action, kind)]


def said(kind: type[T], actions: Sequence[Action]) -> list[T]:
    return [send.message for send in of(Send, actions) if isinstance(send.message, kind)]


def claims(actions: Sequence[Action]) -> list[Claim]:
    """What is claimed, however many owners are asked."""
    return list(dict.fromkeys(said(Claim, actions)))


def names(actions: Sequence[Action]) -> list[str]:
    return [emit.name for emit in of(Emit, actions)]


def jobs(kind: type[T], actions: Sequence[Action]) -> list[T]:
    return [run.job for run in of(Run, actions) if isinstance(run.job, kind)]


def served(*stages: int, step: int = 5) -> list[StageRecord]:
    return [StageRecord(peer(stage), stage, 1, "serving", step) for stage in stages]


def votes(*voters: int, claim: Tenure | None = None) -> tuple[Vote, ...]:
    """Of the first owners of these stages for a claim; those for our own, in the order in which they are shown."""
    return tuple(
        vote_of(Tenure(s, 1, peer(s)), claim or Tenure(2, 2, ME), MANIFEST.digest()) for s in voters or (1, 3, 4)
    )


def donation(stage: int, norm: float = 1.0) -> Donation:
    return Donation("stage", stage, 5, norm, 8, f"weights of S{stage}")


def spare() -> Node:
    """A spare of a swarm in which S2's owner left, and which is about to be asked to take it."""
    node = Node()
    node.do(Started())
    return node


def claimant() -> tuple[Node, list[Action]]:
    """A spare that has found S2 lost and asks the four owners that are left."""
    node = spare()
    left = StageRecord(peer(2), 2, 1, "left", 5)
    return node, node.read([*served(0, 1, 3, 4), left])


def gathering() -> tuple[Node, list[Action]]:
    """A claimant that three of five recognised, its neighbours with norms 1 and 3."""
    node, _ = claimant()
    node.hear(peer(4), Grant(2, 2, 5, ()))
    node.hear(peer(1), Grant(2, 2, 5, (donation(1, 1.0),)))
    return node, node.hear(peer(3), Grant(2, 2, 5, (donation(3, 3.0),)))


def owner() -> Node:
    """The owner of S2/2 at step 5, rebuilt from S1 and S3."""
    node, _ = gathering()
    for stage in (1, 3):
        actions = node.do(Fetched((2, 2), peer(stage), f"weights of S{stage}", f"W{stage}"))
    (job,) = jobs(BlendJob, actions)
    node.do(JobDone(job))
    assert node.core.state.is_serving
    return node


def forward(index: int = 0, step: int = 6, attempt: Attempt = FIRST) -> Forward:
    return Forward(step, index, attempt, 1, 1)


def backward(index: int = 0, step: int = 6, attempt: Attempt = FIRST) -> Backward:
    return Backward(step, index, attempt, 3, 1)


# --- a spare ---


def test_a_node_begins_by_saying_that_it_is_there_and_looking_around() -> None:
    actions = Node().do(Started())
    assert [store.record for store in of(Store, actions)] == [SpareRecord(ME, 1.0)]
    assert of(Read, actions)


def test_a_spare_ranks_itself_as_the_others_rank_it() -> None:
    """One that only a relay gets to leaves a hole to a slower one: had it ranked itself first, both would claim."""
    node = Node()
    node.do(Started(None, 9.0, "relayed"))
    node.do(RecordsRead("spares", (SpareRecord("peer-9", 1.0),)))
    actions = node.read([*served(0, 1, 3, 4), StageRecord(peer(2), 2, 1, "left", 5)])
    assert said(Claim, actions) == []
    assert said(Claim, node.wait(3.0)) != []


def test_a_spare_does_nothing_before_it_has_looked_everywhere() -> None:
    node = spare()
    actions = node.do(RecordsRead(stage_key(2), (StageRecord(peer(2), 2, 1, "left", 5),)))
    assert names(actions) == ["peer.left"]
    assert of(Send, actions) == []


def test_a_spare_with_nothing_to_do_says_so_once() -> None:
    node = spare()
    assert names(node.read(served(0, 1, 2, 3, 4))) == ["peer.spare"]
    assert names(node.read(served(0, 1, 2, 3, 4))) == []


def test_a_claimant_asks_every_owner_at_once() -> None:
    _, actions = claimant()
    asked = [(send.peer, send.message) for send in of(Send, actions)]
    assert asked == [(peer(stage), Claim(2, 2, (1, 3))) for stage in (0, 1, 3, 4)]


@pytest.mark.parametrize("order", [(1, 3, 4), (1, 4, 3), (4, 3, 1), (0, 4, 1, 3)])
def test_a_claim_is_public_only_when_a_majority_and_the_nearest_recognised_it(order: tuple[int, ...]) -> None:
    node, _ = claimant()
    *before, last = order
    for stage in before:
        assert of(Store, node.hear(peer(stage), Grant(2, 2, 5, (donation(stage),)))) == []
    fully = node.hear(peer(last), Grant(2, 2, 5, (donation(last),)))
    shown = votes(*(stage for stage in (0, 1, 3, 4) if stage in order))
    assert [store.record for store in of(Store, fully)] == [StageRecord(ME, 2, 2, "recovering", 0, proof=shown)]
    (claimed,) = [emit.fields for emit in of(Emit, fully) if emit.name == "stage.claimed"]
    assert (claimed["witnesses"], claimed["votes"], claimed["passed_over"]) == ([1, 3], sorted(order), [])


def test_a_neighbour_that_still_copies_its_weights_is_waited_for() -> None:
    node, _ = claimant()
    for stage in (0, 1, 4):
        node.hear(peer(stage), Grant(2, 2, 5, (donation(stage),)))
    node.hear(peer(3), Grant(2, 2, 5, (), is_preparing=True))
    for _ in range(20):
        for stage in (0, 1, 3, 4):
            node.hear(peer(stage), Heartbeat(stage, 1, "serving", 5))
        assert "stage.claimed" not in names(node.wait(1.0))
    assert "stage.claimed" in names(node.hear(peer(3), Grant(2, 2, 5, (donation(3),))))


def test_a_grant_of_who_was_not_asked_counts_for_nothing() -> None:
    node, _ = claimant()
    assert node.hear(OTHER, Grant(2, 2, 5, (donation(1),))) == []


def test_a_stranger_to_the_majority_has_its_vote_only_while_it_owns_its_stage() -> None:
    """Whoever took its stage since remembers nothing of it, and may recognise another."""
    node, _ = claimant()
    node.hear(peer(4), Grant(2, 2, 5, ()))
    shown = votes(0, 3, claim=Tenure(4, 2, PeerId("next-4")))
    node.do(RecordsRead(stage_key(4), (StageRecord("next-4", 4, 2, "serving", 5, proof=shown),)))
    node.hear(peer(1), Grant(2, 2, 5, (donation(1),)))
    assert "stage.claimed" not in names(node.hear(peer(3), Grant(2, 2, 5, (donation(3),))))
    assert "stage.claimed" in names(node.hear(PeerId("next-4"), Grant(2, 2, 5, ())))


@pytest.mark.parametrize(("stage", "incarnation"), [(3, 2), (2, 3)])
def test_who_recognises_a_claim_that_is_not_made_any_more_is_told_so(stage: int, incarnation: int) -> None:
    """The last copy of the claim came late: the witness would keep the stage for us until it missed our heartbeats."""
    node, _ = claimant()
    (sent,) = node.hear(peer(1), Grant(stage, incarnation, 5, (donation(1),)))
    assert sent == Send(peer(1), Withdraw(stage, incarnation))


def test_a_grant_that_comes_twice_withdraws_nothing() -> None:
    node = owner()
    assert node.hear(peer(1), Grant(2, 2, 5, (donation(1),))) == []


def test_a_refused_claimant_gives_up_and_knows_better_next_time() -> None:
    """Of five three must recognise it: with two refusals four minus two are left."""
    node, _ = claimant()
    node.hear(peer(1), Refusal(2, 2, 7, "superseded"))
    assert node.core.self_view().role == "claimant"
    assert said(Claim, node.hear(peer(0), Refusal(2, 2, 7, "superseded"))) == []
    assert node.core.self_view().role == "spare"
    assert {claim.incarnation for claim in said(Claim, node.wait(2.5))} == {8}


def test_whoever_heard_of_a_claim_is_told_that_it_is_withdrawn() -> None:
    """Not so the witness that refused: it would take the incarnation for spent, and refuse our next claim as well."""
    node, _ = claimant()
    node.hear(peer(1), Grant(2, 2, 5, (donation(1),)))
    node.hear(peer(0), Refusal(2, 2, 2, "superseded"))
    actions = node.hear(peer(3), Refusal(2, 2, 2, "superseded"))
    told = [(send.peer, send.message) for send in of(Send, actions)]
    assert told == [(peer(1), Withdraw(2, 2)), (peer(4), Withdraw(2, 2))]
    assert names(actions) == ["claim.withdrawn"]


def test_donations_are_fetched_side_by_side() -> None:
    _, actions = gathering()
    assert [(fetch.donor, fetch.digest) for fetch in of(Fetch, actions)] == [
        (peer(1), "weights of S1"),
        (peer(3), "weights of S3"),
    ]


def test_the_blend_waits_for_all_donors_and_keeps_their_order() -> None:
    node, _ = gathering()
    assert jobs(BlendJob, node.do(Fetched((2, 2), peer(3), "weights of S3", "W3"))) == []
    actions = node.do(Fetched((2, 2), peer(1), "weights of S1", "W1"))
    assert jobs(BlendJob, actions) == [BlendJob(2, 2, ("W1", "W3"), (0.25, 0.75), 1.1)]


def test_a_donor_that_fails_is_asked_anew_and_then_given_up() -> None:
    node, _ = gathering()
    for digest in ("weights of S3", "newer", "newest"):
        actions = node.do(FetchFailed((2, 2), peer(3), digest, "cut off"))
        assert names(actions) == ["fetch.failed"]
        asked = [(send.peer, send.message) for send in of(Send, actions) if send.peer != peer(0)]
        if digest != "newest":
            assert asked == [(peer(3), Claim(2, 2, (1, 3)))]
            renewed = {"weights of S3": "newer", "newer": "newest"}[digest]
            actions = node.hear(peer(3), Grant(2, 2, 5, (Donation("stage", 3, 5, 3.0, 8, renewed),)))
            assert (peer(3), renewed) in [(fetch.donor, fetch.digest) for fetch in of(Fetch, actions)]
    assert asked == [(peer(4), Claim(2, 2, (1, 4), (3,)))]


def test_a_failure_that_nobody_waits_for_is_ignored() -> None:
    node, _ = gathering()
    assert node.do(FetchFailed((2, 2), peer(3), "weights of long ago", "cut off")) == []
    node.do(Fetched((2, 2), peer(3), "weights of S3", "W3"))
    assert node.do(FetchFailed((2, 2), peer(3), "weights of S3", "cut off")) == []


def test_a_witness_that_lives_but_never_answers_ends_the_claim() -> None:
    node, _ = claimant()
    actions: list[Action] = []
    for _ in range(70):
        node.hear(peer(1), Heartbeat(1, 1, "serving", 5))
        actions += node.wait(1.0)
    asked = [claim.incarnation for claim in claims(actions)]
    assert asked == list(range(2, asked[-1] + 1))
    assert len(asked) == pytest.approx(70 / 6, abs=4), "four seconds each, and one to two until the next"


def test_who_is_not_next_to_the_stage_recognises_its_claimant_and_has_nothing_to_give() -> None:
    node = owner()
    node.hear(peer(1), Lost(4, 1))
    node.hear(OTHER, Announce(4, 2, "recovering", 0))
    vote = vote_of(Tenure(2, 2, ME), Tenure(4, 2, OTHER), MANIFEST.digest())
    assert said(Grant, node.hear(OTHER, Claim(4, 2, (0, 3)))) == [Grant(4, 2, 5, (), vote=vote)]


def test_who_heard_of_a_claim_recognises_no_other_under_its_incarnation() -> None:
    """What others recognised is no vote of ours; what we recognised is, whatever we see later."""
    node = owner()
    node.hear(peer(1), Lost(4, 1))
    assert said(Grant, node.hear(OTHER, Claim(4, 2, (0, 3))))
    node.hear(OTHER, Withdraw(4, 2))
    node.hear(PeerId("third"), Announce(4, 2, "recovering", 0))
    assert [refusal.reason for refusal in said(Refusal, node.hear(PeerId("third"), Claim(4, 2, (0, 3))))] == [
        "superseded"
    ]


def test_a_donor_that_dies_is_not_waited_for() -> None:
    node, _ = gathering()
    actions = node.do(PeerUnreachable(peer(3)))
    assert "fetch.failed" in names(actions)
    assert [claim.witnesses for claim in claims(actions)] == [(1, 4)]


def test_a_donor_that_dies_after_it_delivered_is_not_missed() -> None:
    node, _ = gathering()
    node.do(Fetched((2, 2), peer(3), "weights of S3", "W3"))
    assert "fetch.failed" not in names(node.do(PeerUnreachable(peer(3))))
    assert jobs(BlendJob, node.do(Fetched((2, 2), peer(1), "weights of S1", "W1")))


def test_weights_of_another_claim_are_ignored() -> None:
    node, _ = gathering()
    assert node.do(Fetched((2, 1), peer(1), "weights of S1", "W1")) == []


def test_unusable_weights_lead_to_the_next_source() -> None:
    node, _ = gathering()
    for stage in (1, 3):
        actions = node.do(Fetched((2, 2), peer(stage), f"weights of S{stage}", f"W{stage}"))
    (job,) = jobs(BlendJob, actions)
    actions = node.do(JobDone(job, "tensor 0 holds NaN"))
    assert names(actions) == ["blend.failed"]
    assert jobs(BlendJob, actions) == [BlendJob(2, 2, ("W1",), (1.0,), 1.1)]


def test_a_recovery_is_reported_with_donors_and_coefficients() -> None:
    node, _ = gathering()
    for stage in (1, 3):
        actions = node.do(Fetched((2, 2), peer(stage), f"weights of S{stage}", f"W{stage}"))
    actions = node.do(JobDone(jobs(BlendJob, actions)[0]))
    (recovered,) = [emit.fields for emit in of(Emit, actions) if emit.name == "stage.recovered"]
    assert (recovered["method"], recovered["donors"], recovered["coefficients"]) == ("checkfree", [1, 3], [0.25, 0.75])
    assert (recovered["stage"], recovered["incarnation"], recovered["step"]) == (2, 2, 5)
    assert said(Announce, actions)[0] == Announce(2, 2, "serving", 5, votes())


def test_a_peer_that_holds_a_seat_is_no_rival_for_the_next_hole() -> None:
    node = spare()
    node.do(RecordsRead("spares", (SpareRecord("peer-1", 9.0), SpareRecord("peer-3", 9.0), SpareRecord("me", 1.0))))
    left = StageRecord(peer(2), 2, 1, "left", 5)
    assert claims(node.read([*served(0, 1, 3, 4), left])) == [Claim(2, 2, (1, 3))]


def front() -> tuple[SpareRecord, ...]:
    """As many spares as it takes, all before us."""
    return tuple(SpareRecord(f"spare-{number}", 9.0) for number in range(FRONT_MAX))


def reserve() -> Node:
    """A spare of a whole swarm that many others are ranked before."""
    node = spare()
    node.read(served(0, 1, 2, 3, 4))
    node.do(RecordsRead(SPARES_KEY, front()))
    return node


def test_a_spare_in_reserve_publishes_nothing_and_reads_of_spares_progress_and_holes() -> None:
    actions = reserve().wait(60.0)
    assert of(Store, actions) == []
    reads = of(Read, actions)
    offers = map(weights_key, range(MANIFEST.stage_count))
    assert {read.keys for read in reads} == {(SPARES_KEY, PROGRESS_KEY, *offers)}
    looks = 60.0 / MANIFEST.timing.record_refresh_s
    assert looks - 1 <= len(reads) <= looks / RESERVE_READ_MIN


@pytest.mark.parametrize("still_there", [FRONT_MAX - 1, 0])
def test_a_spare_in_reserve_moves_up_and_looks_around_before_it_decides(still_there: int) -> None:
    node = reserve()
    actions = node.do(RecordsRead(SPARES_KEY, front()[:still_there]))
    assert [store.record for store in of(Store, actions)] == [SpareRecord(ME, 1.0)]
    assert {stage_key(stage) for stage in range(5)} <= set(of(Read, actions)[0].keys)
    gone = StageRecord(peer(2), 2, 1, "left", 5)
    assert said(Claim, node.do(RecordsRead(stage_key(2), (gone,)))) == []
    found = claims(node.read([*served(0, 1, 3, 4), gone]))
    assert found == ([] if still_there else [Claim(2, 2, (1, 3))])


def test_whoever_cannot_drive_is_no_rival_for_s0() -> None:
    node = spare()
    rivals = tuple(SpareRecord(f"spare-{number}", 9.0, can_drive=False) for number in range(3))
    node.do(RecordsRead(SPARES_KEY, rivals))
    left = StageRecord(peer(0), 0, 1, "left", 5)
    assert of(ReadText, node.read([left, *served(1, 2, 3, 4)])) == [ReadText(6)]
    assert [claim.stage for claim in claims(node.do(TextRead(6)))] == [0]


def test_whoever_has_no_room_for_a_block_stage_takes_none_and_is_no_rival_for_one() -> None:
    left = StageRecord(peer(2), 2, 1, "left", 5)
    for can_hold_blocks in (True, False):
        node = spare()
        node.core.state.can_hold_blocks = can_hold_blocks
        rivals = tuple(SpareRecord(f"spare-{number}", 9.0, can_hold_blocks=False) for number in range(3))
        node.do(RecordsRead(SPARES_KEY, rivals))
        claims = said(Claim, node.read([*served(0, 1, 3, 4), left]))
        assert {claim.stage for claim in claims} == ({2} if can_hold_blocks else set())
    assert said(Claim, node.wait(30.0)) == []


def test_s0_is_claimed_with_the_text_of_the_step_that_is_due_and_not_without() -> None:
    node = spare()
    left = StageRecord(peer(0), 0, 1, "left", 5)
    node.read([left, *served(1, 2, 3, 4)])
    assert said(Claim, node.wait(3.0)) == [], "before it is known"
    actions = node.do(TextRead(6, "row 7 of a.jsonl"))
    assert said(Claim, actions) == []
    assert [store.record for store in of(Store, actions)] == [SpareRecord(ME, 1.0, can_drive=False)]
    assert [dict(emit.fields) for emit in of(Emit, actions)] == [{"peer": ME, "step": 6, "reason": "row 7 of a.jsonl"}]
    assert of(ReadText, node.wait(TEXT_RETRY_S - 2.0)) == []
    assert of(ReadText, node.wait(4.0)) == [ReadText(6)], "the text may be there again"
    assert [claim.stage for claim in claims(node.do(TextRead(6)))] == [0]


def test_a_claim_on_s0_whose_text_fails_is_withdrawn() -> None:
    """It was there when it was tried, and gone when the stage was built."""
    node = spare()
    node.read([StageRecord(peer(0), 0, 1, "left", 5), *served(1, 2, 3, 4)])
    (claim,) = claims(node.do(TextRead(6)))
    for stage in (1, 2):
        node.hear(peer(stage), Grant(0, claim.incarnation, 5, ()))
    assert len(jobs(InitialiseJob, node.hear(peer(4), Grant(0, claim.incarnation, 5, ())))) == 1
    actions = node.do(TextRead(6, "gone"))
    assert len(said(Withdraw, actions)) == 4
    assert [store.record.can_drive for store in of(Store, actions) if isinstance(store.record, SpareRecord)] == [False]
    assert names(actions) == ["text.failed", "claim.withdrawn"]


def test_the_witnesses_know_better_which_text_is_due() -> None:
    node = spare()
    node.read([StageRecord(peer(0), 0, 1, "left", 5), *served(1, 2, 3, 4)])
    (claim,) = claims(node.do(TextRead(6)))
    for stage in (1, 2):
        node.hear(peer(stage), Grant(0, claim.incarnation, 8, ()))
    actions = node.hear(peer(4), Grant(0, claim.incarnation, 8, ()))
    assert (of(ReadText, actions), jobs(InitialiseJob, actions)) == ([ReadText(9)], [])
    assert len(jobs(InitialiseJob, node.do(TextRead(9)))) == 1


def test_a_stage_that_was_never_owned_is_built_from_the_seed_when_nobody_objects() -> None:
    node = Node()
    node.do(Started(3))
    actions = node.read([])
    assert [store.record for store in of(Store, actions)] == [StageRecord(ME, 3, 1, "recovering", 0)]
    node.wait(1.0)
    actions = node.do(RecordsRead(stage_key(3), (StageRecord(ME, 3, 1, "recovering", 0),)))
    assert jobs(InitialiseJob, actions) == [InitialiseJob(3, 1)]


# --- an owner ---


def test_an_owner_passes_an_activation_on() -> None:
    node = owner()
    (job,) = jobs(Job.__args__[0], node.hear(peer(1), forward(), "tokens"))  # type: ignore[attr-defined]
    actions = node.do(JobDone(job, "activation"))
    assert of(Send, actions) == [Send(peer(3), Forward(6, 0, FIRST, 2, 2), "activation")]


def test_a_repeated_message_makes_no_work() -> None:
    node = owner()
    assert len(of(Run, node.hear(peer(1), forward(), "tokens"))) == 1
    assert of(Run, node.hear(peer(1), forward(), "tokens")) == []


@pytest.mark.parametrize("step", [4, 5, 9])
def test_a_message_of_another_step_makes_no_work(step: int) -> None:
    assert of(Run, owner().hear(peer(1), forward(step=step), "tokens")) == []


def test_a_message_of_the_next_step_waits_for_the_commit() -> None:
    """What our neighbour says of the next step closes none: that is for the driver to say, while there is one."""
    node = owner()
    assert of(Run, node.hear(peer(1), forward(step=7), "tokens")) == []
    assert node.core.state.committed == 5
    ran = [run.job for run in of(Run, node.hear(peer(0), Commit(1, 6)))]
    assert ran == [ApplyJob(6, 0), ForwardJob(Microbatch(7, 0), FIRST, "tokens", Tenure(1, 1, peer(1)))]


def test_a_message_of_the_next_step_implies_the_commit_while_nobody_drives() -> None:
    node = owner()
    node.do(PeerUnreachable(peer(0)))
    actions = node.hear(peer(1), forward(step=7), "tokens")
    assert jobs(ApplyJob, actions) == [ApplyJob(6, 0)]


def counted() -> Node:
    """An owner that counted every microbatch of its step, and was not told that it is decided."""
    node = owner()
    for index in range(2):
        (job,) = jobs(ForwardJob, node.hear(peer(1), forward(index), "tokens"))
        node.do(JobDone(job, "activation"))
        (back,) = jobs(BackwardJob, node.hear(peer(3), backward(index), "gradient"))
        node.do(JobDone(back, "gradient"))
    return node


@pytest.mark.parametrize("is_driver_there", [True, False])
@pytest.mark.parametrize("word", [Heartbeat(1, 1, "serving", 6), Announce(3, 1, "serving", 6)])
def test_a_neighbour_closes_our_step_only_while_nobody_drives(
    word: Heartbeat | Announce, is_driver_there: bool
) -> None:
    """Its word may be a lie, and the driver repeats its own."""
    node = counted()
    if not is_driver_there:
        node.do(PeerUnreachable(peer(0)))
    closed = jobs(ApplyJob, node.hear(peer(word.stage), word))
    assert closed == ([] if is_driver_there else [ApplyJob(6, 2)])


def test_the_drivers_own_step_closes_ours() -> None:
    node = counted()
    assert jobs(ApplyJob, node.hear(peer(0), Heartbeat(0, 1, "serving", 6))) == [ApplyJob(6, 2)]


@pytest.mark.parametrize("is_known", [True, False])
def test_an_attempt_of_a_driver_that_nobody_knows_is_no_work_and_outdates_none(is_known: bool) -> None:
    node = owner()
    if not is_known:
        node.do(PeerUnreachable(peer(0)))
    made_up = node.hear(peer(1), forward(attempt=Attempt(2**53, 0)), "tokens")
    assert len(jobs(ForwardJob, made_up)) == (0 if is_known else 1)
    if not is_known:
        shown = votes(1, 3, claim=Tenure(0, 2, OTHER))
        node.hear(OTHER, Announce(0, 2, "serving", 5, shown))
    honest = Attempt(1 if is_known else 2, 0)
    assert [job.attempt for job in jobs(ForwardJob, node.hear(peer(1), forward(attempt=honest), "tokens"))] == [honest]


def test_how_far_the_driver_is_by_its_progress_tells_that_the_run_is_trained() -> None:
    """Its heartbeats reach its neighbours alone; a spare knows it by what it leaves in the DHT."""
    node = spare()
    node.read([StageRecord(peer(0), 0, 1, "serving", 0)])
    assert not node.core.state.membership.titles.is_trained(0)
    node.do(RecordsRead(PROGRESS_KEY, (ProgressRecord(peer(0), 1, 3, 1.0, 1, 1.0),)))
    assert node.core.state.membership.titles.is_trained(0)


def test_whom_we_recognised_needs_no_votes_of_others() -> None:
    """Ours is one of those that it has."""
    node = owner()
    lose_a_neighbour(node)
    node.hear(OTHER, Claim(3, 2, (2, 4)))
    node.hear(OTHER, Heartbeat(3, 2, "serving", 5))
    assert node.core.state.membership.serving_peer(3) == OTHER
    node.hear(peer(3), Heartbeat(3, 1, "serving", 5))
    node.hear(PeerId("third"), Heartbeat(3, 3, "serving", 5))
    assert node.core.state.membership.serving_peer(3) == OTHER


def test_an_owner_of_before_deposes_nobody_by_claiming_to_be_far_ahead() -> None:
    """It was replaced, perhaps because it lies: one word shall not give it the stage back."""
    node = owner()
    node.hear(OTHER, Announce(3, 2, "serving", 6, votes(0, 1, claim=Tenure(3, 2, OTHER))))
    assert node.core.state.membership.serving_peer(3) == OTHER
    node.hear(peer(3), Heartbeat(3, 1, "serving", 2**52))
    assert node.core.state.membership.serving_peer(3) == OTHER
    assert said(Fenced, node.hear(OTHER, Heartbeat(3, 2, "serving", 6))) == []


def test_a_claim_that_we_recognised_and_lost_sight_of_is_still_proven() -> None:
    """Withdrawn, as we were told; served all the same, as others know."""
    node = owner()
    lose_a_neighbour(node)
    node.hear(OTHER, Claim(3, 2, (2, 4)))
    node.hear(OTHER, Withdraw(3, 2))
    node.hear(OTHER, Heartbeat(3, 2, "serving", 5))
    assert node.core.state.membership.serving_peer(3) == OTHER


def test_a_commit_is_acknowledged_when_it_is_applied() -> None:
    node = owner()
    (job,) = jobs(ApplyJob, node.hear(peer(0), Commit(1, 6)))
    assert said(CommitAck, node.do(JobDone(job, Applied(2.0)))) == [CommitAck(2, 2, 6)]
    assert said(CommitAck, node.hear(peer(0), Commit(1, 6))) == [CommitAck(2, 2, 6)]


def test_a_gradient_of_an_attempt_that_we_do_not_know_makes_no_work() -> None:
    assert of(Run, owner().hear(peer(3), backward(), "gradient")) == []


def test_an_outdated_owner_is_fenced_and_makes_no_work() -> None:
    node = owner()
    node.hear(OTHER, Announce(1, 2, "serving", 5, votes(0, 4, claim=Tenure(1, 2, OTHER))))
    actions = node.hear(peer(1), forward(), "tokens")
    assert of(Send, actions) == [Send(peer(1), Fenced(1, 2, OTHER, 5))]
    assert of(Run, actions) == []


def test_who_speaks_to_a_stage_that_we_do_not_hold_is_told_what_we_hold() -> None:
    node = owner()
    actions = node.hear(peer(4), Forward(6, 0, FIRST, 4, 1), "tokens")
    assert of(Send, actions) == [Send(peer(4), Announce(2, 2, "serving", 5, votes()))]


@pytest.mark.parametrize(
    ("sender", "message"),
    [
        (peer(1), Forward(6, 2, FIRST, 1, 1)),
        (peer(1), Forward(6, 0, FIRST, 1, 1, (peer(0), peer(1)))),
        (OTHER, Heartbeat(5, 1, "serving", 0)),
        (OTHER, Claim(5, 1, (0,))),
        (OTHER, CommitAck(900, 1, 1)),
        (OTHER, Hello(1, "digest")),
        (OTHER, FetchEnd()),
    ],
)
def test_who_breaks_the_rules_loses_its_connection_and_nothing_else_happens(
    sender: PeerId, message: AnyMessage
) -> None:
    actions = owner().hear(sender, message)
    assert of(CloseLinks, actions) == [CloseLinks(sender)]
    assert names(actions) == ["peer.misbehaved"]
    assert of(Run, actions) == []


def successor(state: StageState = "serving", step: int = 5) -> StageRecord:
    """Of our stage, with the votes of two whom we know."""
    return StageRecord(OTHER, 2, 3, state, step, proof=votes(1, 3, claim=Tenure(2, 3, OTHER)))


def test_a_fenced_owner_looks_for_its_successor_and_keeps_its_stage_until_it_is_proven() -> None:
    node = owner()
    actions = node.hear(peer(1), Fenced(2, 3, OTHER, 5))
    assert actions == [Read(tuple(map(stage_key, range(MANIFEST.stage_count))))]
    assert node.core.state.is_serving
    node.do(RecordsRead(stage_key(2), (msgspec.structs.replace(successor(), proof=()),)))
    assert node.core.state.is_serving


def test_an_owner_whose_successor_is_proven_forgets_its_stage_and_becomes_a_spare() -> None:
    node = owner()
    actions = node.do(RecordsRead(stage_key(2), (successor(),)))
    assert names(actions) == ["peer.retired"]
    assert of(ReleaseStage, actions)
    assert SpareRecord(ME, 1.0) in [store.record for store in of(Store, actions)]
    assert node.core.state.tenure is None


@pytest.mark.parametrize(
    ("sender", "message"),
    [
        (OTHER, Fenced(2, 3, OTHER, 5)),
        (peer(1), Fenced(2, 1, OTHER, 5)),
        (peer(1), Fenced(2, 2, ME, 5)),
        (peer(1), Fenced(2, 3, OTHER, 3)),
        (peer(1), Lost(2, 2)),
    ],
)
def test_an_owner_does_not_believe_everything(sender: PeerId, message: AnyMessage) -> None:
    node = owner()
    node.hear(sender, message)
    assert node.core.state.is_serving


def test_an_owner_whose_successor_has_left_retires_all_the_same() -> None:
    node = owner()
    node.do(RecordsRead(stage_key(2), (StageRecord(OTHER, 2, 3, "left", 6),)))
    assert node.core.state.is_serving, "anybody could say so"
    node.do(RecordsRead(stage_key(2), (successor("left", 6),)))
    assert node.core.state.tenure is None


def test_a_claim_of_a_living_stage_is_refused() -> None:
    assert said(Refusal, owner().hear(OTHER, Claim(3, 2, (2, 4)))) == [Refusal(3, 2, 1, "owner alive")]


def lose_a_neighbour(node: Node) -> None:
    """S3 is refused; the snapshot for whoever takes it is done."""
    actions = node.do(PeerUnreachable(peer(3)))
    for job in [run.job for run in of(Run, actions)]:
        node.do(JobDone(job, (8, "weights of S2")))


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        (Claim(3, 1, (2, 4)), "superseded"),
        (Claim(3, 2, (2,)), "asks too few"),
        (Claim(0, 2, (1, 4)), "owner alive"),
        (Claim(2, 3, (1, 3)), "owner alive"),
    ],
)
def test_a_claim_that_breaks_a_rule_is_refused(claim: Claim, reason: str) -> None:
    node = owner()
    lose_a_neighbour(node)
    assert [refusal.reason for refusal in said(Refusal, node.hear(OTHER, claim))] == [reason]


def test_one_claimant_is_recognised_for_good() -> None:
    node = owner()
    lose_a_neighbour(node)
    claim = Claim(3, 2, (2, 4))
    assert [(grant.step, len(grant.donations)) for grant in said(Grant, node.hear(OTHER, claim))] == [(5, 1)]
    assert [refusal.reason for refusal in said(Refusal, node.hear(PeerId("third"), claim))] == ["superseded"]
    assert said(Grant, node.hear(OTHER, claim)), "the first one may ask again"


def test_only_the_recognised_claimant_may_fetch_what_was_offered() -> None:
    node = owner()
    lose_a_neighbour(node)
    node.hear(OTHER, Claim(3, 2, (2, 4)))
    asked = FetchRequest(3, 2, "weights of S2", 0)
    assert node.core.may_fetch(OTHER, asked)
    assert not node.core.may_fetch(PeerId("third"), asked)
    assert not node.core.may_fetch(OTHER, FetchRequest(3, 1, "weights of S2", 0))
    assert not node.core.may_fetch(OTHER, FetchRequest(3, 2, "other weights", 0))


def test_an_owner_publishes_the_manifest_while_nobody_drives() -> None:
    """Otherwise no newcomer could take S0 once the founder is gone."""
    node, refresh_s = owner(), MANIFEST.timing.record_refresh_s
    assert not [store for store in of(Store, node.wait(refresh_s)) if isinstance(store.record, ManifestRecord)]
    node.hear(peer(1), Lost(0, 1))
    published = [store.record for store in of(Store, node.wait(refresh_s)) if isinstance(store.record, ManifestRecord)]
    assert published == [
        ManifestRecord(ME, SIGNED_MANIFEST.manifest, SIGNED_MANIFEST.founder_key, SIGNED_MANIFEST.signature)
    ]


def test_silence_is_reported_and_then_declared() -> None:
    node = owner()
    found = names(node.wait(5.0))
    assert found.count("peer.suspected") == found.count("peer.dead") == 2, "S1 and S3"
    assert found.index("peer.suspected") < found.index("peer.dead")


def test_an_owner_says_what_it_knows_and_repeats_it_in_time() -> None:
    actions = owner().wait(6.0)
    lifetimes = [store.lifetime_s for store in of(Store, actions) if isinstance(store.record, StageRecord)]
    assert lifetimes == [15.0]
    assert len(said(Heartbeat, actions)) >= 6


# --- the end ---


def test_who_is_asked_to_stop_says_goodbye() -> None:
    actions = owner().do(StopRequested())
    assert set(said(Announce, actions)) == {Announce(2, 2, "left", 5, votes())}
    assert StageRecord(ME, 2, 2, "left", 5, proof=votes()) in [store.record for store in of(Store, actions)]
    assert actions[-1] == Stop("asked")


def test_a_spare_learns_that_the_run_is_over_and_claims_nothing_more() -> None:
    node = spare()
    node.read(served(0, 1, 3, 4))
    assert of(Stop, node.do(RecordsRead("progress", (ProgressRecord("peer-0", 1, 10, 1.0, 1, 1.0),)))) == []
    both = tuple(ProgressRecord(peer, 1, 10, 1.0, 1, 1.0) for peer in ("peer-0", "peer-1"))
    actions = [*node.do(RecordsRead("progress", both)), *node.do(RecordsRead("progress", both))]
    assert actions[-1] == Stop("done"), (
        "at the latest when it reads again: the driver's word may be the first that is read"
    )


EVENTS = st.sampled_from(
    [
        TimerFired(),
        Started(),
        StopRequested(),
        PeerUnreachable(peer(1)),
        MessageReceived(peer(1), forward(), "tokens"),
        MessageReceived(peer(0), Commit(1, 6)),
        RecordsRead(stage_key(1), (StageRecord(OTHER, 1, 9, "serving", 6),)),
        Fetched((2, 2), peer(1), "weights of S1", "W1"),
    ]
)


@given(st.lists(EVENTS, max_size=10))
@settings(max_examples=50)
def test_who_stopped_does_nothing_whatever_happens(events: list[Any]) -> None:
    node = owner()
    node.do(StopRequested())
    assert [node.do(event) for event in events] == [[]] * len(events)


TEXTS = st.sampled_from(["me", "other", "peer-0", "peer-1", "peer-3"])
STAGES, INCARNATIONS, STEPS = st.integers(0, 6), st.integers(1, 4), st.integers(4, 8)
STATES = st.sampled_from(["recovering", "serving", "left"])
MESSAGES = st.one_of(
    st.builds(Heartbeat, STAGES, INCARNATIONS, STATES, STEPS),
    st.builds(Announce, STAGES, INCARNATIONS, STATES, STEPS),
    st.builds(Lost, STAGES, INCARNATIONS),
    st.builds(Fenced, STAGES, INCARNATIONS, TEXTS),
    st.builds(Claim, STAGES, INCARNATIONS, st.tuples(STAGES, STAGES)),
    st.builds(Withdraw, STAGES, INCARNATIONS),
    st.builds(Commit, INCARNATIONS, STEPS),
    st.builds(CommitAck, STAGES, INCARNATIONS, STEPS),
    st.builds(Grant, STAGES, INCARNATIONS, STEPS, st.just((donation(1),))),
    st.builds(Forward, STEPS, st.integers(0, 3), st.builds(Attempt, INCARNATIONS, STEPS), STAGES, INCARNATIONS),
    st.builds(Backward, STEPS, st.integers(0, 3), st.builds(Attempt, INCARNATIONS, STEPS), STAGES, INCARNATIONS),
)


@given(st.lists(st.tuples(TEXTS.map(PeerId), MESSAGES), max_size=25))
@settings(max_examples=200)
def test_no_message_from_anybody_breaks_the_core(words: list[tuple[PeerId, AnyMessage]]) -> None:
    for node in (spare(), claimant()[0], gathering()[0], owner()):
        for sender, message in words:
            if sender != ME:
                node.now += 0.3
                node.hear(sender, message, "payload")
        node.wait(1.0)
