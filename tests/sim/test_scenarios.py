"""Golden transcripts: what a swarm reports in stories that matter. UPDATE_SCENARIOS=1 writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.sim.transcripts import read

SCENARIOS = sorted((Path(__file__).parents[1] / "scenarios").glob("*.txt"))


def test_there_are_scenarios() -> None:
    assert SCENARIOS


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    scenario = read(path)
    transcript = scenario.play()
    if os.environ.get("UPDATE_SCENARIOS"):
        path.write_text(scenario.rewritten(transcript), encoding="utf-8")
    else:
        assert transcript.splitlines() == scenario.transcript.splitlines()


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_says_what_it_shows(path: Path) -> None:
    assert "Invariant" in read(path).prose
