"""What a node can say about itself."""

from __future__ import annotations

import pytest

from tests.seals import NamedSeal
from understudy.protocol.core import Core
from understudy.protocol.events import RecordsRead
from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.manifest import ModelSettings, RunManifest, StepSettings
from understudy.protocol.membership.failure_detector import FailureDetector
from understudy.protocol.membership.groups import Group
from understudy.protocol.membership.seats import Seat, Status
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.observe.node_status import Hearing, SelfView, self_view
from understudy.protocol.observe.ways import Ways
from understudy.protocol.recovery.case import NO_STAGE, Plan, Source
from understudy.protocol.recovery.claim import OpenClaim
from understudy.protocol.recovery.claimant import Claimant
from understudy.protocol.recovery.phases import ClaimPhase
from understudy.protocol.recovery.spare import SparePolicy
from understudy.protocol.standby.shelf import Shelf
from understudy.protocol.wire.fields import StageState
from understudy.protocol.wire.messages import Donation
from understudy.protocol.wire.records import PROGRESS_KEY, ProgressRecord

ME = PeerId("me")
RUN = RunManifest(name="seen", model=ModelSettings(block_stages=4), step=StepSettings(total_steps=9))


def peer(stage: int) -> PeerId:
    return PeerId(f"peer-{stage}")


def state_of(*present: int) -> NodeState:
    """A node that knows the owners of these stages, heard two seconds ago."""
    state = NodeState(NamedSeal(ME), RUN, Membership(RUN.stage_count, RUN.timing), now=10.0, committed=5)
    for stage in present:
        state.membership.groups[stage] = Group([Seat(stage, peer(stage), 1, "serving", 5, Status.ALIVE, 8.0)])
    return state


def seen(state: NodeState, claim: OpenClaim | None = None) -> SelfView:
    shelf = Shelf(state, lambda: None)
    claimant = Claimant(state, SparePolicy(state, 1.0, None, shelf), shelf)
    claimant.claim = claim
    return self_view(state, FailureDetector(state), claimant, Ways(state))


def owner(stage: int, *present: int) -> NodeState:
    state = state_of(*present)
    state.tenure, state.tenure_state = Tenure(stage, 3, ME), "serving"
    state.membership.observe(state.my_seat(), is_direct=True)
    return state


def test_a_spare_listens_to_nobody_and_sees_the_holes() -> None:
    view = seen(state_of(0, 1, 2, 4))
    assert (view.role, view.stage, view.incarnation, view.doing) == ("spare", None, 0, "")
    assert (view.neighbours, view.missing) == ((), (3,))
    assert (view.step, view.total_steps, view.loss, view.run_id) == (5, 9, None, RUN.run_id())


def test_an_owner_sees_whether_its_neighbours_answer() -> None:
    view = seen(owner(2, 0, 1, 3, 4))
    assert (view.role, view.stage, view.incarnation, view.missing) == ("owner", 2, 3, ())
    assert {neighbour.stage for neighbour in view.neighbours} >= {1, 3}
    first = next(neighbour for neighbour in view.neighbours if neighbour.stage == 1)
    assert (first.hearing, first.peer, first.incarnation, first.silence_s) == ("answers", peer(1), 1, 2.0)


@pytest.mark.parametrize(
    ("status", "state", "hearing"),
    [
        (Status.ALIVE, "serving", "answers"),
        (Status.ALIVE, "recovering", "recovering"),
        (Status.SUSPECT, "serving", "silent"),
        (Status.DEAD, "serving", "dead"),
        (Status.LEFT, "left", "left"),
        (None, "serving", "nobody"),
    ],
)
def test_a_neighbour_is_as_it_is_believed_to_be(status: Status | None, state: StageState, hearing: Hearing) -> None:
    mine = owner(2, 0, 1, 3, 4)
    if status is None:
        del mine.membership.groups[3]
    else:
        mine.membership.groups[3].first.status, mine.membership.groups[3].first.state = status, state
    assert next(neighbour.hearing for neighbour in seen(mine).neighbours if neighbour.stage == 3) == hearing
    assert seen(mine).missing == (() if hearing in ("answers", "silent") else (3,))


def plan() -> Plan:
    sources = tuple(Source(stage, peer(stage), Donation("stage", stage, 5, 1.0, 8, "d")) for stage in (1, 3))
    return Plan("checkfree", "because", 5, sources, (0.5, 0.5))


@pytest.mark.parametrize(
    ("phase", "doing"),
    [
        (ClaimPhase.ASKING, "asking the owners to vouch: 1 of 3 do"),
        (ClaimPhase.SETTLING, "waiting for objections"),
        (ClaimPhase.FETCHING, "fetching weights of S1 and S3"),
        (ClaimPhase.BUILDING, "building the stage"),
    ],
)
def test_a_claimant_says_what_it_is_at(phase: ClaimPhase, doing: str) -> None:
    claim = OpenClaim(2, 4, "S2 was lost", 9.0, phase, 9.0, plan=plan(), needed=3, votes={1: PeerId("P1")})
    view = seen(state_of(0, 1, 3, 4), claim)
    assert (view.role, view.stage, view.incarnation, view.doing) == ("claimant", 2, 4, doing)


def test_a_claimant_of_a_stage_with_initial_weights_fetches_them_from_the_founder() -> None:
    founder = Source(NO_STAGE, PeerId("founder"), Donation("initial", 2, 0, 0.0, 8, "d"))
    initial = Plan("initial", "because", 0, (founder,), (1.0,))
    claim = OpenClaim(2, 1, "S2 was never owned", 9.0, ClaimPhase.FETCHING, 9.0, plan=initial)
    assert seen(state_of(0, 1, 3, 4), claim).doing == "fetching weights of the founder"


def test_a_node_that_said_goodbye_is_gone() -> None:
    state = owner(2, 0, 1)
    state.is_stopped = True
    assert seen(state).role == "gone"


def test_the_loss_is_the_drivers_last_word() -> None:
    core = Core(NamedSeal(ME), RUN, check_every=1)
    for step, loss in ((4, 3.0), (5, 2.5), (3, 9.0)):
        record = ProgressRecord(peer(0), 1, step, loss, step * 10, 1.0)
        assert core.handle(RecordsRead(PROGRESS_KEY, (record,)), 1.0) == []
    assert core.self_view().loss == 2.5


def test_looking_changes_nothing() -> None:
    state = owner(2, 0, 1, 3, 4)
    before = repr(state)
    assert seen(state) == seen(state)
    assert repr(state) == before
