"""The table of a claim's phases: it is what the documentation says, and what is not in it is refused."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.recovery import phases
from understudy.protocol.recovery.claim import OpenClaim
from understudy.protocol.recovery.phases import CLAIM_TRANSITIONS, ClaimPhase, ClaimStep, next_phase

PROTOCOL = Path(__file__).parents[3] / "docs" / "protocol.md"
ALL_STEPS = list(product([None, *ClaimPhase], ClaimStep))
ILLEGAL = [step for step in ALL_STEPS if step not in CLAIM_TRANSITIONS]


def told(section: str) -> set[tuple[str, str]]:
    """From and to, of every row of the first table of a section of docs/protocol.md."""
    table = PROTOCOL.read_text(encoding="utf-8").partition(f"### {section} ")[2].split("\n\n")[1]
    return set(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", table, re.MULTILINE)[1:])


def test_the_table_is_the_one_that_is_documented() -> None:
    def name(phase: ClaimPhase | None, step: ClaimStep) -> str:
        nothing = "(serving)" if step is ClaimStep.BUILT else "(none)"
        return nothing if phase is None else f"`{phase.name}`"

    table = set()
    for (before, step), after in CLAIM_TRANSITIONS.items():
        is_end = step is ClaimStep.ABANDONED
        table.add(("any" if is_end else name(before, step), name(after, step)))
    assert told("A claim") == table


def test_a_claim_can_be_abandoned_from_everywhere() -> None:
    assert {phase for phase, step in CLAIM_TRANSITIONS if step is ClaimStep.ABANDONED} == set(ClaimPhase)


def test_every_step_and_every_phase_has_its_use() -> None:
    assert {step for _, step in CLAIM_TRANSITIONS} == set(ClaimStep)
    assert {*CLAIM_TRANSITIONS.values()} == {None, *ClaimPhase}


@pytest.mark.parametrize(("phase", "step"), ILLEGAL)
def test_a_step_that_has_no_place_in_a_phase_is_refused(phase: ClaimPhase | None, step: ClaimStep) -> None:
    with pytest.raises(LocalProtocolError, match=step.name):
        next_phase(phase, step)


def test_nothing_of_a_claim_that_ended_goes_on() -> None:
    claim = OpenClaim(2, 2, "S2 was lost", 0.0, ClaimPhase.FETCHING, 0.0)
    with pytest.raises(LocalProtocolError, match="ABANDONED ends a claim"):
        claim.enter(ClaimStep.ABANDONED, 1.0)
    assert claim.phase is ClaimPhase.FETCHING


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        phases.CLAIM_TRANSITIONS[None, ClaimStep.BUILT] = None  # type: ignore[index]
