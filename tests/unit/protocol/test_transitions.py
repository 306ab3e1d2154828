"""Every row of the tables of phases and roles is needed: without it the story that it stands for cannot be told."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import pytest

from tests.unit.node.test_initial_weights import FOUNDER, Newcomer
from tests.unit.protocol.test_core import (
    MANIFEST,
    ME,
    OTHER,
    Node,
    claimant,
    donation,
    front,
    gathering,
    jobs,
    owner,
    peer,
    reserve,
    served,
    spare,
    successor,
    votes,
)
from understudy.protocol.actions import Fetch, Send
from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.events import Fetched, FetchFailed, JobDone, RecordsRead, Started, StopRequested, TimerFired
from understudy.protocol.ids import Tenure
from understudy.protocol.jobs import BlendJob, InitialiseJob
from understudy.protocol.recovery.gathering import INITIAL_RETRY_S
from understudy.protocol.recovery.phases import CLAIM_TRANSITIONS, ClaimPhase, ClaimStep
from understudy.protocol.recovery.roles import ROLE_TRANSITIONS, Role
from understudy.protocol.standby.shelf import KeptCopy
from understudy.protocol.wire.messages import Claim, CopyOffer, Fenced, Grant, Heartbeat, Lost, Refusal
from understudy.protocol.wire.records import SPARES_KEY, StageRecord, stage_key

Story = Callable[[], object]


def settling() -> Node:
    """The first of a swarm that begins: nobody can vouch for it."""
    node = Node()
    node.do(Started(2))
    node.read([])
    return node


def settled() -> Node:
    node = settling()
    node.wait(1.0)
    node.do(RecordsRead(stage_key(2), (StageRecord(ME, 2, 1, "recovering", 0),)))
    return node


def vouched() -> Node:
    """A claimant that the first of two witnesses recognised."""
    node, _ = claimant()
    node.hear(peer(1), Grant(2, 2, 5, (donation(1),)))
    return node


def building() -> tuple[Node, BlendJob]:
    node, _ = gathering()
    for stage in (1, 3):
        actions = node.do(Fetched((2, 2), peer(stage), f"weights of S{stage}", f"W{stage}"))
    (job,) = jobs(BlendJob, actions)
    return node, job


def recognised_by_the_only_witness() -> None:
    """All but S4 are lost, this machine has no text to drive with, and nobody else came for as long as the run says."""
    node = spare()
    node.core.state.can_drive = False
    node.read([*(StageRecord(peer(stage), stage, 1, "left", 5) for stage in range(4)), *served(4)])
    node.wait(MANIFEST.recovery.without_majority_after_s + 1.0)
    node.hear(peer(4), Grant(1, 2, 5, (donation(4),)))
    assert node.core.state.is_recognised


def refused(node: Node) -> None:
    for stage in (0, 3):
        node.hear(peer(stage), Refusal(2, 2, 2, "superseded"))


def superseded(node: Node) -> None:
    """Somebody else has claimed S2 later, for all to see, and shows votes."""
    shown = votes(1, 3, claim=Tenure(2, 9, OTHER))
    node.do(RecordsRead(stage_key(2), (StageRecord(OTHER, 2, 9, "recovering", 5, proof=shown),)))


def superseded_where_others_wait(node: Node) -> None:
    node.do(RecordsRead(SPARES_KEY, front()))
    superseded(node)
    assert node.core.state.is_in_reserve


def superseded_where_another_stage_is_lost(node: Node) -> None:
    node.do(RecordsRead(stage_key(4), (StageRecord(peer(4), 4, 1, "left", 5),)))
    superseded(node)
    assert node.core.self_view().stage == 4


def stopped(node: Node) -> None:
    node.do(StopRequested())


def waiting_for_the_founder() -> None:
    node = Newcomer()
    node.do(FetchFailed((1, 1), FOUNDER, node.digests[1], "gone"))
    node.now += INITIAL_RETRY_S
    node.do(TimerFired())


def unusable() -> None:
    node, job = building()
    node.do(JobDone(job, "tensor 0 holds NaN"))


def building_from_its_copy() -> tuple[Node, InitialiseJob]:
    """A spare that holds S2 as it was at step 4: the owners next to it need not have their weights ready."""
    node = spare()
    kept = KeptCopy(CopyOffer(2, 1, "stage", 4, 8, "S2 at 4"), "W2")
    node.core._lifecycle.shelf._copies[2, "stage"] = [kept]
    node.read([*served(0, 1, 3, 4), StageRecord(peer(2), 2, 1, "left", 5)])
    node.hear(peer(4), Grant(2, 2, 5, ()))
    node.hear(peer(1), Grant(2, 2, 5, (), is_preparing=True))
    (job,) = jobs(InitialiseJob, node.hear(peer(3), Grant(2, 2, 5, (), is_preparing=True)))
    assert job.parts == (("stage", "W2"),)
    return node, job


def with_an_unusable_copy() -> None:
    """Its neighbours' weights do as well, and they are asked for them now."""
    node, job = building_from_its_copy()
    asked = node.do(JobDone(job, "tensor 0 holds NaN"))
    assert [act.message for act in asked if isinstance(act, Send) and isinstance(act.message, Claim)]
    assert node.core._lifecycle.shelf.stages == ()
    node.hear(peer(1), Grant(2, 2, 5, (donation(1),)))
    fetches = [act for act in node.hear(peer(3), Grant(2, 2, 5, (donation(3),))) if isinstance(act, Fetch)]
    assert {fetch.donor for fetch in fetches} == {peer(1), peer(3)}


def test_a_copy_that_is_older_than_we_thought_leaves_it_to_the_neighbours() -> None:
    """The witnesses are further than any record said."""
    node = spare()
    node.core._lifecycle.shelf._copies[2, "stage"] = [KeptCopy(CopyOffer(2, 1, "stage", 4, 8, "S2 at 4"), "W2")]
    node.read([*served(0, 1, 3, 4), StageRecord(peer(2), 2, 1, "left", 5)])
    for stage in (4, 1, 3):
        asked = node.hear(peer(stage), Grant(2, 2, 999, (), is_preparing=stage != 4))
    assert not jobs(InitialiseJob, asked)
    claim = node.core._lifecycle.claimant.claim
    assert claim is not None
    assert (claim.phase, claim.has_own_copy) == (ClaimPhase.ASKING, False)


def back_from_reserve() -> None:
    node = reserve()
    node.hear(peer(1), Lost(2, 1))
    assert not node.core.state.is_in_reserve


def fenced() -> None:
    """Somebody else claimed S2 with votes, and now serves it, we are told."""
    node = owner()
    node.do(RecordsRead(stage_key(2), (successor("recovering", 0),)))
    node.hear(peer(1), Fenced(2, 3, OTHER, 5))
    assert node.core.state.tenure is None


P, S, R = ClaimPhase, ClaimStep, Role

CLAIMS: dict[tuple[ClaimPhase | None, ClaimStep], Story] = {
    (None, S.ASK): claimant,
    (None, S.LIE_OPEN): settling,
    (P.ASKING, S.RECOGNISED): gathering,
    (P.ASKING, S.ABANDONED): lambda: refused(claimant()[0]),
    (P.SETTLING, S.SETTLED): settled,
    (P.SETTLING, S.ABANDONED): lambda: superseded(settling()),
    (P.FETCHING, S.GATHERED): building,
    (P.FETCHING, S.DONOR_FAILED): lambda: gathering()[0].do(FetchFailed((2, 2), peer(3), "weights of S3", "cut off")),
    (P.FETCHING, S.FOUNDER_ASKED): waiting_for_the_founder,
    (P.FETCHING, S.ABANDONED): lambda: superseded(gathering()[0]),
    (P.BUILDING, S.UNUSABLE): unusable,
    (P.BUILDING, S.COPY_UNUSABLE): with_an_unusable_copy,
    (P.BUILDING, S.BUILT): owner,
    (P.BUILDING, S.ABANDONED): lambda: superseded(building()[0]),
}

ROLES: dict[tuple[Role, Role], Story] = {
    (R.SPARE, R.RESERVE): reserve,
    (R.SPARE, R.CLAIMANT): claimant,
    (R.SPARE, R.RECOGNISED): settling,
    (R.RESERVE, R.SPARE): back_from_reserve,
    (R.CLAIMANT, R.VOUCHED): vouched,
    (R.CLAIMANT, R.RECOGNISED): recognised_by_the_only_witness,
    (R.CLAIMANT, R.SPARE): lambda: refused(claimant()[0]),
    (R.CLAIMANT, R.RESERVE): lambda: superseded_where_others_wait(claimant()[0]),
    (R.VOUCHED, R.RECOGNISED): gathering,
    (R.VOUCHED, R.CLAIMANT): lambda: superseded_where_another_stage_is_lost(vouched()),
    (R.VOUCHED, R.SPARE): lambda: refused(vouched()),
    (R.VOUCHED, R.RESERVE): lambda: superseded_where_others_wait(vouched()),
    (R.RECOGNISED, R.OWNER): owner,
    (R.RECOGNISED, R.CLAIMANT): lambda: superseded_where_another_stage_is_lost(gathering()[0]),
    (R.RECOGNISED, R.SPARE): lambda: superseded(gathering()[0]),
    (R.RECOGNISED, R.RESERVE): lambda: superseded_where_others_wait(gathering()[0]),
    (R.OWNER, R.SPARE): fenced,
    (R.SPARE, R.GONE): lambda: stopped(spare()),
    (R.RESERVE, R.GONE): lambda: stopped(reserve()),
    (R.CLAIMANT, R.GONE): lambda: stopped(claimant()[0]),
    (R.VOUCHED, R.GONE): lambda: stopped(vouched()),
    (R.RECOGNISED, R.GONE): lambda: stopped(gathering()[0]),
    (R.OWNER, R.GONE): lambda: stopped(owner()),
}


def test_every_row_has_its_story() -> None:
    assert CLAIMS.keys() == CLAIM_TRANSITIONS.keys()
    assert ROLES.keys() == ROLE_TRANSITIONS.keys()


@pytest.mark.parametrize("row", CLAIMS, ids=str)
def test_a_claim_cannot_do_without_a_row(
    row: tuple[ClaimPhase | None, ClaimStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    CLAIMS[row]()
    without = MappingProxyType({known: after for known, after in CLAIM_TRANSITIONS.items() if known != row})
    monkeypatch.setattr("understudy.protocol.recovery.phases.CLAIM_TRANSITIONS", without)
    with pytest.raises(LocalProtocolError, match=f"{row[1].name} has no place in"):
        CLAIMS[row]()


@pytest.mark.parametrize("row", ROLES, ids=str)
def test_a_node_cannot_do_without_a_row(row: tuple[Role, Role], monkeypatch: pytest.MonkeyPatch) -> None:
    ROLES[row]()
    without = MappingProxyType({known: why for known, why in ROLE_TRANSITIONS.items() if known != row})
    monkeypatch.setattr("understudy.protocol.invariants.node.ROLE_TRANSITIONS", without)
    with pytest.raises(LocalProtocolError, match="a role leads where the table says"):
        ROLES[row]()


# --- what is not a row ---


def test_an_owner_of_before_that_speaks_again_ends_the_claim() -> None:
    """Our own view has given the seat back: to go on would be to hold a stage that is another's for us as well."""
    node = spare()
    node.read(served(0, 1, 2, 3, 4))
    node.hear(peer(1), Lost(2, 1))
    node.hear(peer(1), Grant(2, 2, 5, (donation(1),)))
    node.wait(2.5)  # until nobody's accusation holds any more
    node.hear(peer(2), Heartbeat(2, 1, "serving", 5))
    assert (node.core.state.tenure, node.core.self_view().role) == (None, "spare")
    assert node.core.state.membership.serving_peer(2) == peer(2)


def test_who_recognises_us_knows_better_than_a_record_that_the_owner_is_gone() -> None:
    """Read again after a while, the record of the lost owner brings it back in our view; our witness hears nothing."""
    node = spare()
    node.read(served(0, 1, 2, 3, 4))
    node.hear(peer(1), Lost(2, 1))
    claimant = node.core._lifecycle.claimant
    for second in range(40):
        node.wait(1.0)
        for stage in (0, 1, 3, 4):
            node.hear(peer(stage), Heartbeat(stage, 1, "serving", 5))
        if second > 16 and claimant.claim is not None:
            break
    node.read(served(0, 1, 2, 3, 4))
    assert node.core.state.membership.serving_peer(2) == peer(2)
    assert claimant.claim is not None
    for stage in (0, 1, 3):
        node.hear(peer(stage), Grant(2, claimant.claim.incarnation, 5, (donation(stage),) if stage else ()))
    assert node.core.state.membership.groups[2].first.peer == ME
    node.hear(peer(2), Heartbeat(2, 1, "serving", 5))
    assert node.core.state.membership.serving_peer(2) == peer(2)
    assert node.core.state.tenure is None
