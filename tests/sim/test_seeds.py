"""Many random runs, those that failed once, and proof that the simulator sees what it is there to see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.sim.faults import Weather
from tests.sim.node import Violation
from tests.sim.schedules import Schedule, harsh_schedule, schedule, seeds
from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.ids import Attempt
from understudy.protocol.membership.groups import Group
from understudy.protocol.membership.seats import Observation, Seat
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.coordinator import Coordinator
from understudy.protocol.pipeline.edge_host import EdgeHost
from understudy.protocol.pipeline.ledger import EdgeLedger, EdgePhase, StageLedger, StepLedger
from understudy.protocol.pipeline.paths import Path
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.recovery.ladder import weigh
from understudy.protocol.recovery.lifecycle import Lifecycle
from understudy.protocol.recovery.witness import Witness

CHUNK = 25
SEEDS = {"checkfree": seeds(10_000, 125), "checkfree+": seeds(10_000, 75)}
HARSH_SEEDS = seeds(10_000, 25)

REGRESSION_SEEDS = [
    ("checkfree", 3, "a spare that had stopped still claimed a stage"),
    ("checkfree", 10, "failed while the core was first written"),
    ("checkfree", 16, "failed while the core was first written"),
    ("checkfree", 22, "failed while the core was first written"),
    ("checkfree", 23, "failed while the core was first written"),
    ("checkfree", 81, "failed while the core was first written"),
    ("checkfree", 89, "the record of a claim that one mistaken witness granted deposed a healthy owner"),
    ("checkfree", 186, "failed while the core was first written"),
    ("checkfree", 217, "the record of a claim that one mistaken witness granted deposed a healthy owner"),
    ("checkfree", 218, "failed while the core was first written"),
    ("checkfree", 248, "failed while the core was first written"),
    ("checkfree", 265, "failed while the core was first written"),
    ("checkfree", 288, "failed while the core was first written"),
    ("checkfree", 571, "who was cut off at the end never learned that the run was over"),
    ("checkfree", 637, "who was cut off at the end never learned that the run was over"),
    ("checkfree", 813, "who was cut off at the end never learned that the run was over"),
    ("checkfree", 914, "a witness granted a claim that left another witness out"),
    ("checkfree+", 2745, "a former owner received what was meant for its successor and took it for misbehaviour"),
]
"""Runs that failed once: method, seed, and what was wrong."""


def run_seed(seed: int, method: str, generator: Callable[[int, str], Schedule] = schedule) -> None:
    """The failure names the seed: running its schedule again is all that it takes to see it again."""
    try:
        generator(seed, method).run()
    except Violation as violation:
        raise Violation(f"{generator.__name__}({seed}, {method!r}): {violation}") from violation


def chunks(seeds_by_method: dict[str, range]) -> list[Any]:
    return [
        pytest.param(method, found[first : first + CHUNK], id=f"{method}-{found[first]}")
        for method, found in seeds_by_method.items()
        for first in range(0, len(found), CHUNK)
    ]


@pytest.mark.parametrize(("method", "chunk"), chunks(SEEDS))
def test_no_schedule_of_faults_breaks_an_invariant(method: str, chunk: range) -> None:
    for seed in chunk:
        run_seed(seed, method)


@pytest.mark.parametrize(("method", "chunk"), chunks(dict.fromkeys(SEEDS, HARSH_SEEDS)))
def test_no_harsh_schedule_breaks_an_invariant(method: str, chunk: range) -> None:
    for seed in chunk:
        run_seed(seed, method, harsh_schedule)


HARSH_REGRESSION_SEEDS = [
    ("checkfree", 2, "an owner clung to its stage: it saw only the goodbye of the owner after it"),
    ("checkfree", 3, "a stage held activations of a lost driver's attempts"),
    ("checkfree", 5, "a node that stopped in the middle of a reading still reported on others"),
    ("checkfree", 30, "a stage held activations of a lost driver's attempts"),
    ("checkfree", 500019, "an owner whose own record was missing took itself for dead"),
    ("checkfree", 10034, "two owners that only believed each other's accusations kept a living stage dead"),
    ("checkfree", 30289, "a claim of S0 that got nowhere outdated the news that the run was over"),
    ("checkfree", 30440, "a split with a spare on each side: the side that lost did not end at the last step"),
    ("checkfree", 31279, "forgiving a stall moved words heard on waking up into the future"),
    ("checkfree", 31734, "an embedding of S0/1 and a head of S0/2 were taken for one commit"),
    ("checkfree+", 31079, "a fetch that failed once left a recovery waiting for ever"),
    (
        "checkfree",
        1000720,
        "owners that were cut off together at the end never stopped",
    ),
    ("checkfree", 31117, "stood still after a split"),
    ("checkfree", 60362, "stood still after a split"),
    ("checkfree+", 30633, "one owner that was cut off at the end never stopped"),
    ("checkfree+", 2000042, "an S0 that had been succeeded at the end never stopped"),
    ("checkfree+", 2000824, "stood still after a split"),
    ("checkfree+", 2001008, "stood still after a split"),
    ("checkfree+", 2001191, "stood still after a split"),
    ("checkfree+", 30569, "a snapshot was released while the next one of the same weights was being taken"),
]


@pytest.mark.parametrize(("method", "seed", "why"), HARSH_REGRESSION_SEEDS)
def test_what_failed_once_in_a_harsh_schedule_does_not_fail_again(method: str, seed: int, why: str) -> None:
    run_seed(seed, method, harsh_schedule)


@pytest.mark.parametrize(("method", "seed", "why"), REGRESSION_SEEDS)
def test_what_failed_once_does_not_fail_again(method: str, seed: int, why: str) -> None:
    run_seed(seed, method)


# --- the simulator can see ---


def count_always(ledger: StageLedger, index: int) -> bool:
    ledger.counted.add(index)
    return True


def accept_every_forward(ledger: StageLedger, index: int, attempt: Attempt, path: Path = ()) -> bool:
    ledger._entries.pop(index, None)
    return ACCEPT_FORWARD(ledger, index, attempt, path)


def move_whatever_attempt(ledger: EdgeLedger, index: int, attempt: Attempt, before: EdgePhase) -> bool:
    entry = ledger._entries.get(index)
    return entry is not None and MOVE(ledger, index, entry.attempt, before)


def observe_everybody(view: Membership, group: Group | None, seat: Seat, *, is_direct: bool) -> Observation:
    view.groups[seat.stage] = Group([seat])
    return Observation.NEW_OWNER


def issue_once(edge: EdgeHost, index: int, reason: str | None = None, *, is_late: bool = False) -> None:
    if reason is None:
        ISSUE(edge, index)


def outdated_by_its_own_index(ledger: StageLedger, index: int, attempt: Attempt) -> list[tuple[int, Attempt]]:
    current = ledger.attempt_of(index)
    return [] if current is None else [(index, current)]


ACCEPT_FORWARD, ISSUE, MOVE, WEIGH = StageLedger.accept_forward, EdgeHost.issue, EdgeLedger.move, weigh


@dataclass(frozen=True)
class Mutant:
    """A guard of the protocol, broken on purpose."""

    where: type | str
    name: str
    broken: Any
    weather: Weather | None = None

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        if isinstance(self.where, str):
            patch.setattr(f"{self.where}.{self.name}", self.broken)
        else:
            patch.setattr(self.where, self.name, self.broken, raising=False)

    def run_until_seen(self, tried: range) -> None:
        for seed in tried:
            found = harsh_schedule(seed, "checkfree")
            (replace(found, weather=self.weather, faults=found.faults[:2]) if self.weather else found).run()


SYRUP = Weather(straggling=0.2, duplication=0.3)
"""Messages so late that several attempts of a microbatch are under way."""

MUTANTS = {
    "a stage counts every gradient": Mutant(StageLedger, "count", count_always),
    "a stage accepts older activations": Mutant(StageLedger, "accept_forward", accept_every_forward, SYRUP),
    "the driver takes results of older attempts": Mutant(EdgeLedger, "move", move_whatever_attempt, SYRUP),
    "the driver never re-issues": Mutant(EdgeHost, "issue", issue_once),
    "the driver never repeats a commit": Mutant(Coordinator, "resend_commits", lambda coordinator: None),
    "the driver commits too early": Mutant(
        StepLedger, "is_complete", property(lambda ledger: not ledger.in_flight_count)
    ),
    "a lower incarnation deposes a higher one": Mutant(Membership, "_observe_other", observe_everybody),
    "a fenced owner stays": Mutant(Lifecycle, "lose", lambda lifecycle, reason: None),
    "a witness recognises everybody": Mutant(Witness, "_objection", lambda witness, peer, claim: None),
    "a message of the next step implies nothing": Mutant(BlockStage, "_reach", lambda stage, step: None),
    "silence is never judged": Mutant(Membership, "_judge", lambda view, seat, now: False),
    "the blend is uniform": Mutant(
        "understudy.protocol.recovery.ladder", "weigh", lambda norms, exponent: WEIGH(norms, 0)
    ),
    "a lost driver's attempts stay": Mutant(StageLedger, "outdated_by", outdated_by_its_own_index),
    "a stopped node goes on": Mutant(NodeState, "is_stopped", property(lambda state: False, lambda state, value: None)),
}


@pytest.mark.parametrize("guard", MUTANTS)
def test_the_simulator_sees_a_broken_guard(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either the judge sees it, or the core itself that it broke a rule."""
    MUTANTS[guard].apply(monkeypatch)
    with pytest.raises((Violation, LocalProtocolError)):
        MUTANTS[guard].run_until_seen(range(120))
