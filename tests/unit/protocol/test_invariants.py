"""Each invariant of the core is found where it is broken: by hand, one by one, and by code that forgets something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.protocol.test_core import (
    FIRST,
    MANIFEST,
    ME,
    OTHER,
    Node,
    backward,
    claimant,
    forward,
    gathering,
    jobs,
    lose_a_neighbour,
    owner,
    peer,
    spare,
)
from tests.unit.protocol.test_transitions import building, fenced, vouched
from understudy.protocol.actions import Run, Stop
from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.events import (
    FetchFailed,
    JobDone,
    PeerUnreachable,
    RecordsRead,
    Started,
    StopRequested,
    TextRead,
)
from understudy.protocol.export.lease import LEASES_PER_SNAPSHOT_MAX, SNAPSHOTS_MAX, LeasedSnapshot
from understudy.protocol.ids import Attempt, Microbatch, PeerId, Tenure
from understudy.protocol.invariants import node as of_nodes
from understudy.protocol.invariants import stage as of_stages
from understudy.protocol.jobs import Applied, ApplyJob, BackwardJob, ForwardJob, InitialiseJob
from understudy.protocol.membership.groups import Group
from understudy.protocol.membership.seats import Seat, Status
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline import queue as queues
from understudy.protocol.pipeline.ledger import EdgePhase, Phase, StageEntry, StageLedger
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.pipeline.stage_io import StageIO
from understudy.protocol.pipeline.updates import Updates
from understudy.protocol.recovery.asking import Asking
from understudy.protocol.recovery.claim import OpenClaim
from understudy.protocol.recovery.claimant import Claimant
from understudy.protocol.recovery.lifecycle import Lifecycle
from understudy.protocol.recovery.phases import ClaimPhase
from understudy.protocol.standby.shelf import KeptCopy
from understudy.protocol.standby.source import Image, Offered
from understudy.protocol.wire.fields import Part
from understudy.protocol.wire.messages import Commit, CopyOffer, Forward, Grant, Heartbeat
from understudy.protocol.wire.records import stage_key

NOTHING = PeerUnreachable(PeerId("nobody"))
"""An event from which nothing follows."""
SOMETHING = SimpleNamespace(host=object())
MINE, NEXT = Tenure(2, 2, ME), Microbatch(6, 0)


def driver() -> Node:
    """The first S0 of a swarm whose other stages serve; both microbatches of step 1 are on their way out."""
    node = Node()
    node.do(Started(0))
    node.read([])
    node.do(TextRead(1))
    node.wait(1.0)
    (run,) = [action for action in node.do(RecordsRead(stage_key(0), ())) if isinstance(action, Run)]
    assert isinstance(run.job, InitialiseJob)
    node.do(JobDone(run.job))
    for stage in range(1, MANIFEST.stage_count):
        node.hear(peer(stage), Heartbeat(stage, 1, "serving", 0))
    for index in range(2):
        node.do(JobDone(ForwardJob(Microbatch(1, index), FIRST), "activation"))
    return node


def gather() -> Node:
    return gathering()[0]


def build() -> Node:
    return building()[0]


def gone() -> Node:
    node = owner()
    node.do(StopRequested())
    return node


def state(node: Node) -> NodeState:
    return node.core.state


def lifecycle(node: Node) -> Lifecycle:
    return node.core._lifecycle


def claimant_of(node: Node) -> Claimant:
    return lifecycle(node).claimant


def claim(node: Node) -> OpenClaim:
    found = claimant_of(node).claim
    assert found is not None
    return found


def owned(node: Node) -> Any:
    return lifecycle(node)._owned


def ledger(node: Node) -> Any:
    """Of the block stage."""
    return owned(node).host._ledger


def edge(node: Node) -> Any:
    """The ledger of the edge host."""
    return owned(node).host.ledger


def steps(node: Node) -> Any:
    """The ledger of the coordinator."""
    return owned(node).coordinator._ledger


def queue(node: Node) -> Any:
    return owned(node)._queue


# --- what goes wrong ---


def set_on(part: Callable[[Node], Any], name: str, value: Any) -> Callable[[Node], None]:
    return lambda node: setattr(part(node), name, value)


def act(*actions: Any) -> Callable[[Node], None]:
    return lambda node: state(node).actions.extend(actions)


def lease(step: int, *peers: str, ordered_at: float | None = None) -> Callable[[Node], None]:
    leased = LeasedSnapshot(100.0, {PeerId(name): 200.0 for name in peers}, ordered_at)
    return lambda node: owned(node)._leases._snapshots.update({step: leased})


def enter(phase: Phase, attempt: Attempt) -> Callable[[Node], None]:
    return lambda node: ledger(node)._entries.update({0: StageEntry(attempt, phase)})


def park(message: Forward) -> Callable[[Node], None]:
    return lambda node: owned(node).host.io._parked.update({3: {message.index: (message, None)}})


def seat(stage: int, *, owner_of: PeerId = ME, status: Status = Status.ALIVE) -> Callable[[Node], None]:
    found = Seat(stage, owner_of, 2, "serving", 5, status, 100.0)
    return lambda node: state(node).membership.groups.update({stage: Group([found])})


def offer(image: Image) -> Callable[[Node], None]:
    return lambda node: owned(node)._copies._offered.update({("head", peer(4)): Offered(image, 0.0, 0.0, 0.0)})


def hold_copies(embedding: int, head: int) -> Callable[[Node], None]:
    images = {"embedding": Image(embedding, "E", 8), "head": Image(head, "H", 8)}
    return lambda node: owned(node)._copies._held.update(images)


def grant_twice(node: Node) -> None:
    for claimant_of_3 in (OTHER, peer(0)):
        state(node).send(claimant_of_3, Grant(3, 2, 5, ()))


def forget_incarnations(node: Node) -> None:
    state(node).membership.groups.clear()
    state(node).membership._accepted.clear()


def stop_and_go_on(node: Node) -> None:
    state(node).is_stopped = True
    state(node).actions += [Stop("done"), Stop("done")]


def settle_unseen(node: Node) -> None:
    claim(node).phase, claim(node).asked_at = ClaimPhase.SETTLING, None


def keep_three_copies(node: Node) -> None:
    lifecycle(node).shelf._copies[0, "embedding"] = [copy(0, "embedding", step) for step in range(3)]


def copy(stage: int, part: Part, step: int) -> KeptCopy:
    return KeptCopy(CopyOffer(stage, 1, part, step, 8, f"S{stage} at {step}"), None)


def keep(*stages: int) -> Callable[[Node], None]:
    copies = {(stage, "stage"): [copy(stage, "stage", 1)] for stage in stages}
    return lambda node: lifecycle(node).shelf._copies.update(copies)


def come_home_uncounted(node: Node) -> None:
    edge(node)._entries[0].phase = EdgePhase.DONE
    del edge(node)._in_flight[0]


@dataclass(frozen=True)
class Break:
    """Something goes wrong in a node that was in order before."""

    name: str
    begin: Callable[[], Node]
    happens: Callable[[Node], Any]


BREAKS = [
    # a node whose standing changed
    Break("a role leads where the table says", spare, set_on(state, "tenure", MINE)),
    Break("an owner keeps its tenure and its host", owner, set_on(state, "tenure", Tenure(2, 3, ME))),
    Break(
        "a host exactly for the stage that is served",
        spare,
        set_on(lifecycle, "_owned", SOMETHING),
    ),
    Break("a host exactly for the stage that is served", gather, set_on(state, "tenure_state", "serving")),
    Break("a claim exactly without an owner's tenure", vouched, set_on(claimant_of, "claim", None)),
    Break("only a tenure is public, and an owner's is", spare, set_on(state, "is_recognised", True)),
    # a node that holds a stage
    Break("its own tenure is in its view", owner, seat(2, status=Status.DEAD)),
    Break("its own tenure is in its view", owner, seat(2, owner_of=OTHER)),
    Break("its own tenure is in its view", owner, lambda node: state(node).membership.groups.pop(2)),
    Break("its own tenure is in its view", gather, seat(2)),
    Break("no commit is undone", owner, set_on(state, "committed", 4)),
    # a node that ends
    Break("to stop is the last that it does", owner, set_on(state, "is_stopped", True)),
    Break("to stop is the last that it does", owner, stop_and_go_on),
    Break("who said goodbye does nothing", gone, act(Stop("done"))),
    # a claim
    Break("owners are asked exactly while asking", gather, set_on(claim, "asked_at", 1.0)),
    Break("owners are asked exactly while asking", vouched, set_on(claim, "asked_at", None)),
    Break("a plan exactly while fetching and building", gather, set_on(claim, "plan", None)),
    Break("a plan exactly while fetching and building", vouched, set_on(claim, "plan", object())),
    Break("weights are asked for again only while fetching", build, set_on(claim, "retry_at", 1.0)),
    Break("the stage is built from what is here", build, lambda node: claim(node).payloads.clear()),
    Break("who recognised the claim was told of it", vouched, lambda node: claim(node).told.discard(peer(1))),
    Break("who gave weights recognised the claim", vouched, lambda node: claim(node).votes.clear()),
    Break("enough recognise a claim that gathers weights", gather, set_on(claim, "needed", 4)),
    Break("the tenure that is held is the claim's", vouched, set_on(claim, "incarnation", 3)),
    Break("only a claim that was asked for is not public", lambda: claimant()[0], settle_unseen),
    # what it sees and does
    Break("accepted incarnations never fall", lambda: claimant()[0], forget_incarnations),
    Break("it sees itself nowhere else", owner, seat(4)),
    Break("it says nothing to itself", owner, lambda node: state(node).send(ME, Heartbeat(2, 2, "serving", 5))),
    Break("updates come in the order of their steps", owner, act(Run(ApplyJob(7, 2)))),
    Break("updates come in the order of their steps", owner, act(Run(ApplyJob(6, 2)), Run(ApplyJob(6, 2)))),
    Break("a witness recognises one claimant of a stage and incarnation", owner, grant_twice),
    Break("a holder has two copies of a part at most", owner, keep_three_copies),
    Break("a holder follows few block stages", owner, keep(1, 3, 4)),
    Break("nobody holds a copy of what it serves", owner, keep(2)),
    # any host
    Break("at most two jobs are at the compute thread", owner, lambda node: queue(node).finished()),
    Break("at most two jobs are at the compute thread", owner, set_on(queue, "_running", 3)),
    Break(
        "no job waits while the compute thread has room", owner, lambda node: queue(node).push(ForwardJob(NEXT, FIRST))
    ),
    Break("nothing of a closed step waits", owner, park(forward(step=5))),
    Break("nothing of an ended attempt waits", owner, park(forward(step=6))),
    Break("one step is open, and at most one update under way", owner, set_on(ledger, "step", 8)),
    Break("one step is open, and at most one update under way", owner, set_on(ledger, "step", 5)),
    Break("copies for exporters are few and leased", owner, lease(7)),
    Break("copies for exporters are few and leased", owner, lease(7, *map(str, range(LEASES_PER_SNAPSHOT_MAX + 1)))),
    Break(
        "copies for exporters are few and leased",
        owner,
        lambda node: [lease(7 + number, str(number))(node) for number in range(SNAPSHOTS_MAX + 1)],
    ),
    Break("an exporter has one wish", owner, lambda node: [lease(step, "exporter")(node) for step in (7, 8)]),
    Break("a copy is ordered when its step closes", owner, lease(5, "exporter")),
    Break("a copy is ordered when its step closes", owner, lease(6, "exporter", ordered_at=1.0)),
    # a block stage
    Break("a stage counts microbatches that exist", owner, lambda node: ledger(node).counted.add(2)),
    Break("a stage's attempts are of one driver", owner, enter(Phase.FORWARDED, Attempt(2, 0))),
    Break("a gradient that was passed on is counted", owner, enter(Phase.FINISHED, Attempt(0, 0))),
    # S0
    Break("microbatches are issued in order", driver, lambda node: edge(node)._entries.pop(0)),
    Break("in flight is what did not come home", driver, lambda node: edge(node)._in_flight.pop(1)),
    Break("what came home is counted in both sums", driver, lambda node: edge(node).count_embedding(0)),
    Break("what came home is counted in both sums", driver, lambda node: edge(node).count_head(2)),
    Break("what came home is counted in both sums", driver, come_home_uncounted),
    Break("the driver's attempts are its own", driver, set_on(edge, "incarnation", 2)),
    Break("no more are issued than the step has", driver, set_on(steps, "_microbatches", 1)),
    Break("what was given out was issued", driver, set_on(steps, "_given_out", 1)),
    Break("what came home is of the step", driver, lambda node: steps(node).came_home(0, 1.0)),
    Break("what came home is of the step", driver, set_on(steps, "step", 2)),
    Break("both parts of a copy of S0 are of one commit", driver, hold_copies(4, 5)),
    Break("what is offered is what is held", driver, offer(Image(5, "H", 8))),
]
"""For each invariant something that breaks it, and none of those that are asked before it."""

TABLES = [
    *(
        of_nodes.STANDING,
        of_nodes.TENURE,
        of_nodes.LEAVING,
        of_nodes.GONE,
        of_nodes.CLAIM,
        of_nodes.VIEW,
        of_nodes.DEEDS,
    ),
    *(of_stages.STAGE, of_stages.SHELF, of_stages.SOURCE, of_stages.BLOCK_STAGE, of_stages.EDGE, of_stages.COORDINATOR),
]


def test_every_invariant_can_be_broken() -> None:
    assert {name for table in TABLES for name in table} == {broken.name for broken in BREAKS}


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.name)
def test_what_is_broken_is_named(broken: Break) -> None:
    node = broken.begin()
    assert node.do(NOTHING) == []
    broken.happens(node)
    with pytest.raises(LocalProtocolError, match=broken.name):
        node.core._invariants.check()


def test_a_node_that_is_not_tested_asks_what_costs_little() -> None:
    node = owner()
    node.core._invariants._check_every = 0
    seat(4)(node)
    node.do(NOTHING)
    set_on(state, "committed", 4)(node)
    with pytest.raises(LocalProtocolError, match="no commit is undone"):
        node.do(NOTHING)


def test_what_is_costly_is_asked_every_so_often() -> None:
    node = owner()
    node.core._invariants._check_every, node.core._invariants._events = 3, 0
    seat(4)(node)
    node.do(NOTHING)
    node.do(NOTHING)
    with pytest.raises(LocalProtocolError, match="it sees itself nowhere else"):
        node.do(NOTHING)


# --- code that forgets something ---


def plan_anew_with_the_old_plan(part: Claimant, claim: OpenClaim) -> None:
    plan = claim.plan
    PLAN_ANEW(part, claim)
    claim.plan = plan


def lose_but_keep_the_host(part: Lifecycle, reason: str) -> None:
    owned = part._owned
    LOSE(part, reason)
    part._owned = owned


def send_and_tell_nobody(part: Asking, claim: OpenClaim, owner: PeerId) -> None:
    SEND_CLAIM(part, claim, owner)
    if claim.votes:
        claim.told.clear()


def ask_again() -> None:
    vouched().wait(1.5)


def leave_with_a_last_word(part: Lifecycle, reason: Any) -> None:
    LEAVE(part, reason)
    part._state.emit("peer.spare")


def take_a_commit_back(part: Updates, step: int, result: Applied, first: Any = None) -> None:
    part._state.committed = step - 2


PLAN_ANEW, LOSE, LEAVE, SEND_CLAIM = Claimant._plan_anew, Lifecycle.lose, Lifecycle.leave, Asking._send_claim


def without_the_next_owner() -> Node:
    """S2 is done with a microbatch, and nobody serves S3."""
    node = owner()
    node.hear(peer(1), forward(), "tokens")
    node.do(PeerUnreachable(peer(3)))
    node.do(JobDone(ForwardJob(NEXT, FIRST, "tokens"), "activation"))
    return node


def there_and_back() -> None:
    node = owner()
    node.hear(peer(1), forward(), "tokens")
    node.do(JobDone(ForwardJob(NEXT, FIRST, "tokens"), "activation"))
    for job in jobs(BackwardJob, node.hear(peer(3), backward(), "gradient")):
        node.do(JobDone(job, "gradient"))


def one_step() -> None:
    node = owner()
    (job,) = jobs(ApplyJob, node.hear(peer(0), Commit(1, 6)))
    node.do(JobDone(job, Applied()))


def full_hands() -> None:
    """Two microbatches and a snapshot for a lost neighbour."""
    node = owner()
    for index in range(2):
        node.hear(peer(1), forward(index), "tokens")
    lose_a_neighbour(node)


@dataclass(frozen=True)
class Mutant:
    where: Any
    name: str
    broken: Any
    story: Callable[[], object]
    found_by: str


MUTANTS = {
    "a claimant keeps its plan when it asks anew": Mutant(
        Claimant,
        "_plan_anew",
        plan_anew_with_the_old_plan,
        lambda: gather().do(FetchFailed((2, 2), peer(3), "weights of S3", "cut off")),
        "a plan exactly while fetching and building",
    ),
    "who loses its stage keeps the host": Mutant(
        Lifecycle, "lose", lose_but_keep_the_host, fenced, "a host exactly for the stage that is served"
    ),
    "a claimant forgets whom it asked": Mutant(
        Asking, "_send_claim", send_and_tell_nobody, ask_again, "who recognised the claim was told of it"
    ),
    "who leaves goes on talking": Mutant(
        Lifecycle,
        "leave",
        leave_with_a_last_word,
        lambda: owner().do(StopRequested()),
        "to stop is the last that it does",
    ),
    "spent incarnations are forgotten": Mutant(
        Membership,
        "forget_deaths",
        lambda view: view._accepted.clear(),
        fenced,
        "accepted incarnations never fall",
    ),
    "the compute thread is given too much": Mutant(
        queues, "JOBS_AHEAD", 3, full_hands, "at most two jobs are at the compute thread"
    ),
    "work that came is left lying": Mutant(
        BlockStage, "pump", lambda stage: None, there_and_back, "no job waits while the compute thread has room"
    ),
    "what waits for an owner outlives its step": Mutant(
        StageIO,
        "forget_before",
        lambda io, step: None,
        lambda: without_the_next_owner().hear(peer(0), Commit(1, 6)),
        "nothing of a closed step waits",
    ),
    "what waits for an owner outlives its attempt": Mutant(
        StageIO,
        "forget_attempts",
        lambda io, index: None,
        lambda: without_the_next_owner().hear(peer(1), forward(attempt=Attempt(1, 1)), "tokens"),
        "nothing of an ended attempt waits",
    ),
    "a gradient is passed on and not counted": Mutant(
        StageLedger, "count", lambda ledger, index: True, there_and_back, "a gradient that was passed on is counted"
    ),
    "an update takes a commit back": Mutant(Updates, "applied", take_a_commit_back, one_step, "no commit is undone"),
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_code_that_forgets_something_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.story()
    monkeypatch.setattr(mutant.where, mutant.name, mutant.broken)
    with pytest.raises(LocalProtocolError, match=mutant.found_by):
        mutant.story()
