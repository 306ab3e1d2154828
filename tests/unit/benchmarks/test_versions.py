"""What the comparison of two checkouts makes of a swarm's events."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.versions.measuring import COLD_STEPS, KILL_STEP, ratio_line, swarm_from


def commit(step: int, time: float, seconds: float) -> dict[str, Any]:
    return {"event": "step.committed", "step": step, "time": time, "seconds": seconds}


def test_cold_and_interrupted_steps_are_no_measure() -> None:
    cold = [commit(step, step, 9.0) for step in range(1, COLD_STEPS + 1)]
    warm = [commit(step, step, 0.5) for step in range(COLD_STEPS + 1, KILL_STEP)]
    killed = [commit(KILL_STEP, 15.0, 9.0), {"event": "fault.killed", "time": 15.25}]
    again = [commit(step, 2.25 + step, 9.0) for step in range(KILL_STEP + 1, KILL_STEP + COLD_STEPS + 2)]
    later = [commit(step, 3.0 + step, 0.5) for step in range(KILL_STEP + COLD_STEPS + 2, 30)]
    swarm = swarm_from([*cold, *warm, *killed, *again, *later])
    assert swarm.step_s == 0.5
    assert swarm.standstill_s == 3.0


def test_a_swarm_that_did_not_go_on_is_no_result() -> None:
    with pytest.raises(RuntimeError, match="no step was committed after a kill"):
        swarm_from([commit(1, 1.0, 0.5), {"event": "fault.killed", "time": 2.0}])


def test_a_ratio_is_of_each_round() -> None:
    line = ratio_line("step", [1.0, 2.0, 4.0], [1.1, 2.0, 4.4])
    assert line == "step: 2.0000 s before, 2.0000 s after, ratio 1.100 (1.100, 1.000, 1.100)"
