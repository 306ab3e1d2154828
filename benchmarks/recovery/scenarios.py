"""What is killed in which swarm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Scenario:
    """One swarm, with a spare that waits, and the stage whose owner is killed."""

    name: str
    source: str
    """Preset or run.toml."""
    stage: int
    kill_step: int
    """Kill once this step is committed."""
    steps_after: int
    has_yardstick: bool
    """Measure what raw streams carry, before and after each swarm: where bytes are what a fetch takes."""


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("tiny", "tiny", 2, 12, 4, has_yardstick=False),
        Scenario("stage-200mb", str(_HERE / "stage-200mb.toml"), 2, 8, 3, has_yardstick=True),
    )
}
