"""Faults as a person writes them."""

from __future__ import annotations

import pytest

from understudy.bootstrap.local.faults import Fault, check_faults, demo_fault, parse_faults
from understudy.protocol.errors import SettingsError


def test_faults_come_in_order_of_their_steps() -> None:
    found = parse_faults(["3@20", "1@8"], ["2@9:1.5", "0@8:30"])
    assert found == [Fault(1, 8), Fault(0, 8, 30.0), Fault(2, 9, 1.5), Fault(3, 20)]
    assert [str(fault) for fault in found[:2]] == ["kill S1 at step 8", "pause for 30 s S0 at step 8"]


@pytest.mark.parametrize(
    "text", ["", "2", "2@", "@3", "a@3", "2@b", "-1@3", "2@3:4", " 2@3", "2@3\n", "2@" + "9" * 5000]
)
def test_a_kill_that_is_none_is_told_how_to_be_one(text: str) -> None:
    with pytest.raises(SettingsError, match="use STAGE@STEP, for example 2@15"):
        parse_faults([text], [])


@pytest.mark.parametrize("text", ["", "2@3", "2@3:", "2@3:x", "2@3:-1", "2@3:1e9", "2@3:1.", "2@3:" + "9" * 5000])
def test_a_pause_that_is_none_is_told_how_to_be_one(text: str) -> None:
    with pytest.raises(SettingsError, match="use STAGE@STEP:SECONDS, for example 2@15:30"):
        parse_faults([], [text])


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (Fault(5, 3), "cannot kill S5 at step 3: the stages are 0 to 4"),
        (Fault(2, 0), "cannot kill S2 at step 0: choose a step from 1 to 39, the run has 40"),
        (Fault(2, 40, 2.0), "cannot pause for 2 s S2 at step 40: choose a step from 1 to 39"),
    ],
)
def test_a_fault_that_cannot_happen_is_refused(fault: Fault, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        check_faults([Fault(1, 1), fault], last_stage=4, total_steps=40)


def test_a_run_too_short_for_faults_says_so() -> None:
    check_faults([], last_stage=4, total_steps=1)
    with pytest.raises(SettingsError, match="use --steps 2 or more"):
        check_faults([Fault(1, 1)], last_stage=4, total_steps=1)


@pytest.mark.parametrize("last_stage", [1, 2, 4, 6])
@pytest.mark.parametrize("total_steps", [2, 3, 29, 40, 1000])
def test_the_demos_fault_can_happen(last_stage: int, total_steps: int) -> None:
    check_faults([demo_fault(last_stage, total_steps)], last_stage, total_steps)
