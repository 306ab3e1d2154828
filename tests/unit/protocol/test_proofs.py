"""Votes: which of them prove a tenure to whom, and which a claimant takes and shows."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.seals import NamedSeal, vote_of
from tests.unit.protocol.test_core import MANIFEST, OTHER, claimant, donation, gathering, names, of, owner, successor
from tests.unit.protocol.test_core import peer as peer_of_core
from understudy.protocol.actions import CloseLinks
from understudy.protocol.events import MessageReceived, RecordsRead
from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.manifest import ModelSettings, RecoverySettings, RunManifest
from understudy.protocol.membership.proofs import VOTES_NEEDED, Proofs
from understudy.protocol.membership.seats import Seat, Status
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.recovery.claim import OpenClaim
from understudy.protocol.recovery.phases import ClaimPhase
from understudy.protocol.wire.messages import Grant
from understudy.protocol.wire.records import stage_key
from understudy.protocol.wire.votes import VOTES_SHOWN_MAX, Vote, vote_bytes

ME, NEW = PeerId("me"), PeerId("new")
RUN = RunManifest(name="proven", model=ModelSettings(block_stages=5))
CLAIM = Tenure(2, 2, NEW)
LIFETIME_S = RUN.timing.record_lifetime_s


def peer(stage: int) -> PeerId:
    return PeerId(f"peer-{stage}")


def first(stage: int) -> Tenure:
    return Tenure(stage, 1, peer(stage))


class Reader:
    """Who knows the first owners of all stages, each at ``step``, and votes for none: is a proof enough for it?"""

    def __init__(self, run: RunManifest = RUN, step: int = 5) -> None:
        self.run, self.step = run, step
        self.state = NodeState(NamedSeal(ME), run, Membership(run.stage_count, run.timing), now=100.0)
        for stage in range(run.stage_count):
            self.know(first(stage))

    def know(self, tenure: Tenure) -> None:
        known = Seat(tenure.stage, tenure.peer, tenure.incarnation, "serving", self.step, Status.ALIVE, self.state.now)
        self.state.membership.titles.note_proven(tenure)
        self.state.membership.observe(known, is_direct=True)

    def lose(self, vacant_s: float) -> None:
        """S2 has had no owner for so long."""
        self.state.membership.mark_dead(2, 1, self.state.now - vacant_s)

    def vote(self, voter: Tenure, claim: Tenure = CLAIM, digest: str = "") -> Vote:
        return vote_of(voter, claim, digest or self.run.digest())

    def believes(self, *votes: Vote, claim: Tenure = CLAIM) -> bool:
        """Of this proof, and of no earlier one."""
        self.state.membership.titles._proven.clear()
        Proofs(self.state).weigh(claim, votes)
        return self.state.membership.titles.is_proven(claim)


@pytest.fixture
def reader() -> Reader:
    return Reader()


# --- what is enough ---


@pytest.mark.parametrize("vacant_s", [None, 0.5])
def test_two_votes_of_owners_that_we_know_are_enough_and_one_is_not(reader: Reader, vacant_s: float | None) -> None:
    """Whether we know the owner to be gone or not: they know better."""
    if vacant_s is not None:
        reader.lose(vacant_s)
    assert VOTES_NEEDED == 2
    assert reader.believes(reader.vote(first(0)), reader.vote(first(4)))
    assert not reader.believes(reader.vote(first(0)))
    assert not reader.believes()


def test_a_voter_that_was_succeeded_since_was_an_owner(reader: Reader) -> None:
    reader.know(Tenure(3, 2, PeerId("next-3")))
    assert reader.believes(reader.vote(first(0)), reader.vote(first(3)))


def test_more_votes_than_needed_harm_nobody(reader: Reader) -> None:
    bad = [reader.vote(first(1), digest="another run"), reader.vote(Tenure(4, 9, OTHER))]
    assert reader.believes(bad[0], reader.vote(first(0)), bad[1], reader.vote(first(3)))


def forged(reader: Reader) -> Vote:
    """OTHER writes in the name of S3's owner, and signs."""
    made_up = reader.vote(Tenure(3, 1, OTHER))
    return msgspec.structs.replace(made_up, voter=peer(3))


def with_its_key(reader: Reader) -> Vote:
    """The key is S3's own, the signature is not."""
    made_up = reader.vote(Tenure(3, 1, OTHER))
    return msgspec.structs.replace(made_up, voter=peer(3), public_key=reader.vote(first(3)).public_key)


def of_its_later_tenure(reader: Reader) -> Vote:
    """Signed as the owner of S3/1, shown as of S4/1, which it is not."""
    return msgspec.structs.replace(reader.vote(first(3)), stage=4)


WORTHLESS: dict[str, Any] = {
    "forged": forged,
    "forged with its key": with_its_key,
    "of another tenure than signed": of_its_later_tenure,
    "of another run": lambda reader: reader.vote(first(3), digest="another run"),
    "for another stage": lambda reader: reader.vote(first(3), Tenure(1, 2, NEW)),
    "for another incarnation": lambda reader: reader.vote(first(3), Tenure(2, 3, NEW)),
    "for another claimant": lambda reader: reader.vote(first(3), Tenure(2, 2, OTHER)),
    "by the same voter": lambda reader: reader.vote(first(0)),
    "by the owner of the stage itself": lambda reader: reader.vote(first(2)),
    "by a stranger": lambda reader: reader.vote(Tenure(3, 1, OTHER)),
    "by an owner in another's name": lambda reader: reader.vote(Tenure(3, 1, peer(4))),
    "by an owner under another incarnation": lambda reader: reader.vote(Tenure(3, 2, peer(3))),
}


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("name", WORTHLESS)
def test_a_vote_that_is_none_adds_nothing(reader: Reader, name: str, is_first: bool) -> None:
    good, bad = reader.vote(first(0)), WORTHLESS[name](reader)
    assert not reader.believes(*((bad, good) if is_first else (good, bad)))
    assert reader.believes(bad, good, reader.vote(first(1)))


@pytest.mark.parametrize("name", sorted(set(WORTHLESS) - {"by a stranger", "by an owner under another incarnation"}))
def test_no_vacancy_makes_a_vote_of_none(reader: Reader, name: str) -> None:
    """Of those that are not signed by whoever they name, or for something else."""
    reader.lose(LIFETIME_S + 1.0)
    if name == "by an owner in another's name":  # signed by itself, as the owner of a stage that we knew as another's
        return
    assert not reader.believes(reader.vote(first(0)), WORTHLESS[name](reader))


def test_who_votes_for_itself_adds_nothing(reader: Reader) -> None:
    """An owner claims another stage with the vote of its own."""
    claim = Tenure(2, 2, peer(4))
    mine, other = reader.vote(first(4), claim), reader.vote(first(0), claim)
    assert not reader.believes(mine, other, claim=claim)
    assert reader.believes(mine, other, reader.vote(first(1), claim), claim=claim)


def test_two_votes_of_one_peer_are_one(reader: Reader) -> None:
    """It held another stage before."""
    moved = Tenure(3, 2, peer(4))
    reader.know(moved)
    assert not reader.believes(reader.vote(first(4)), reader.vote(moved))
    assert reader.believes(reader.vote(first(4)), reader.vote(moved), reader.vote(first(0)))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_votes_of_one_stage_are_one(reader: Reader, order: tuple[int, int]) -> None:
    """Each stage has one vote, whoever holds it: else whoever takes it over and over has as many as it likes."""
    following = Tenure(3, 2, PeerId("next-3"))
    reader.know(following)
    both = [reader.vote(first(3)), reader.vote(following)]
    assert not reader.believes(*(both[index] for index in order))


# --- votes of whom we do not know ---


def strangers(reader: Reader) -> tuple[Vote, Vote]:
    return reader.vote(Tenure(0, 7, PeerId("late-0"))), reader.vote(Tenure(4, 5, PeerId("late-4")))


def test_votes_of_strangers_count_where_nobody_was_there_for_longer_than_a_record_lives(reader: Reader) -> None:
    """Who slept through many recoveries knows none of the voters."""
    assert not reader.believes(*strangers(reader))
    reader.lose(LIFETIME_S)
    assert not reader.believes(*strangers(reader))
    reader.lose(LIFETIME_S + 0.1)
    assert not reader.believes(*strangers(reader)), "it was declared dead once, and not again"
    reader.state.now += 0.2
    assert reader.believes(*strangers(reader))
    assert not reader.believes(strangers(reader)[0]), "two all the same"


def test_a_stage_whose_dead_owner_was_forgotten_is_long_vacant(reader: Reader) -> None:
    reader.lose(1.0)
    reader.state.membership.forget_deaths()
    assert reader.believes(*strangers(reader))


# --- where one vote is enough ---


def test_of_a_stage_that_nobody_trained_one_vote_is_enough() -> None:
    reader = Reader(step=0)
    assert reader.believes(reader.vote(first(4)))
    assert not reader.believes(forged(reader))
    reader.state.membership.titles.note_trained(2)
    assert not reader.believes(reader.vote(first(4)))


@pytest.mark.parametrize(("without_s", "is_enough"), [(60.0, True), (61.0, False), (0.0, False)])
def test_one_vote_is_enough_after_so_long_without_a_majority_as_the_run_says(without_s: float, is_enough: bool) -> None:
    reader = Reader(msgspec.structs.replace(RUN, recovery=RecoverySettings(without_majority_after_s=without_s)))
    reader.lose(60.0)
    assert reader.believes(reader.vote(first(4))) is is_enough
    assert reader.believes(reader.vote(first(4)), reader.vote(first(0)))


def test_of_two_stages_one_vote_is_enough() -> None:
    """There is but one other that could vote."""
    reader = Reader(RunManifest(name="two", model=ModelSettings(block_stages=1)))
    claim = Tenure(1, 2, NEW)
    assert reader.believes(reader.vote(first(0), claim), claim=claim)
    assert not reader.believes(reader.vote(first(1), claim), claim=claim)
    assert not Reader(RunManifest(name="three", model=ModelSettings(block_stages=2))).believes(
        vote_of(first(0), CLAIM, RunManifest(name="three", model=ModelSettings(block_stages=2)).digest())
    )


def test_of_three_stages_both_others_have_to_vote() -> None:
    reader = Reader(RunManifest(name="three", model=ModelSettings(block_stages=2)))
    assert reader.believes(reader.vote(first(0)), reader.vote(first(1)))


def test_votes_are_checked_only_if_there_is_need(reader: Reader) -> None:
    """A signature costs 0.1 ms, and every announcement shows some."""
    asked: list[PeerId] = []
    reader.state.seal.is_of = lambda voter, *rest: asked.append(voter) or True  # type: ignore[method-assign,func-returns-value]
    votes = (reader.vote(first(0)), reader.vote(first(4)))
    Proofs(reader.state).weigh(first(2), votes)
    assert asked == [], "its owner, as we know it"
    Proofs(reader.state).weigh(CLAIM, votes)
    assert asked == [peer(0), peer(4)]
    Proofs(reader.state).weigh(CLAIM, votes)
    assert asked == [peer(0), peer(4)], "once"


def test_what_is_signed_names_the_run_the_claim_and_the_voter() -> None:
    """Each of them, so that a vote proves nothing else, and no other signature is one."""
    signed = {
        vote_bytes(digest, claim, voter)
        for digest in ("run", "another")
        for claim in (CLAIM, Tenure(1, 2, NEW), Tenure(2, 3, NEW), Tenure(2, 2, OTHER))
        for voter in (first(3), first(4), Tenure(3, 2, peer(3)), Tenure(3, 1, peer(4)))
    }
    assert len(signed) == 2 * 4 * 4
    assert all(data.startswith(b"understudy vote\0") for data in signed)


# --- what a claimant takes and shows ---


def grant(voter: Tenure, claim: Tenure | None = None, digest: str = "") -> Grant:
    signed = vote_of(voter, claim or Tenure(2, 2, ME), digest or MANIFEST.digest())
    return Grant(2, 2, 5, (donation(1),), vote=signed)


NO_GRANTS: dict[str, Any] = {
    "without a vote": Grant(2, 2, 5, (donation(1),)),
    "with another's vote": grant(Tenure(3, 1, peer_of_core(3))),
    "for another": grant(Tenure(1, 1, peer_of_core(1)), Tenure(2, 2, OTHER)),
    "of an earlier claim": grant(Tenure(1, 1, peer_of_core(1)), Tenure(2, 1, ME)),
    "of another run": grant(Tenure(1, 1, peer_of_core(1)), digest="another"),
    "unsigned": msgspec.structs.replace(
        grant(Tenure(1, 1, peer_of_core(1))),
        vote=msgspec.structs.replace(vote_of(first(1), Tenure(2, 2, ME), MANIFEST.digest()), signature=b"no"),
    ),
    "as the owner of another stage": grant(Tenure(4, 1, peer_of_core(1))),
}


@pytest.mark.parametrize("name", NO_GRANTS)
def test_a_grant_without_a_vote_of_its_sender_costs_it_the_link_and_is_none(name: str) -> None:
    node, _ = claimant()
    actions = node.do(MessageReceived(peer_of_core(1), NO_GRANTS[name], None))
    assert of(CloseLinks, actions) == [CloseLinks(peer_of_core(1))]
    assert names(actions) == ["peer.misbehaved"]
    claim = node.core._lifecycle.claimant.claim
    assert claim is not None
    assert (claim.votes, claim.witnesses) == ({}, {})


def test_a_grant_with_its_senders_vote_is_one() -> None:
    node, _ = claimant()
    node.do(MessageReceived(peer_of_core(1), grant(Tenure(1, 1, peer_of_core(1))), None))
    claim = node.core._lifecycle.claimant.claim
    assert claim is not None
    assert (list(claim.votes), list(claim.witnesses)) == ([1], [1])


def recognised_by(*stages: int) -> OpenClaim:
    claim = OpenClaim(3, 2, "lost", 0.0, ClaimPhase.ASKING, 0.0)
    claim.votes = {stage: vote_of(first(stage), Tenure(3, 2, ME), RUN.digest()) for stage in stages}
    return claim


@pytest.mark.parametrize(
    ("voters", "shown"),
    [
        ((5, 4, 2, 1, 0), (0, 2, 4, 1)),
        ((1, 5, 4, 2), (2, 4, 1, 5)),
        ((1, 5, 0), (0, 1, 5)),
        ((), ()),
    ],
)
def test_of_many_votes_those_are_shown_that_most_can_judge(voters: tuple[int, ...], shown: tuple[int, ...]) -> None:
    """S0's first, whom everybody hears, then those of the stages next to the claimed one."""
    proof = recognised_by(*voters).proof(survivors=[2, 4])
    assert tuple(vote.stage for vote in proof) == shown
    assert len(proof) <= VOTES_SHOWN_MAX


def test_who_is_recognised_shows_its_votes_until_its_tenure_is_over() -> None:
    for node in (gathering()[0], owner()):
        shown = node.core.state.my_announcement().proof
        assert [vote.stage for vote in shown] == [1, 3, 4]
        assert node.core.state.my_record().proof == shown
    node.do(RecordsRead(stage_key(2), (successor(),)))
    assert (node.core.state.tenure, node.core.state.proof) == (None, ())
