"""Every stage is killed in the middle of a forward and of a backward pass, and no step is lost."""

from __future__ import annotations

import signal
from itertools import pairwise
from typing import Any

import pytest

from tests.swarm.nursery import Death, Nursery
from tests.swarm.processes import Brood

START_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 150.0
MICROBATCHES = 4
RUN = f"""
name = "moments"
[model]
hidden_size = 32
intermediate_size = 48
attention_heads = 2
context_length = 32
[recovery]
method = "checkfree+"
standby_every = 0
swapped_pairs = "average"
[step]
microbatches = {MICROBATCHES}
microbatch_size = 2
[timing]
suspect_after_s = 6.0
dead_after_s = 12.0
"""
"""Deaths are noticed by refused connections; a busy machine's silence is none."""
STAGES = (1, 2, 3, 4, 0)
SOURCES = {
    0: ("standby", [1, 4]),
    1: ("mirror", [2]),
    2: ("checkfree", [1, 3]),
    3: ("checkfree", [2, 4]),
    4: ("mirror", [3]),
}
# Each owner of a stage dies in its second such job: one microbatch is behind it, others are in flight.
DEATHS = tuple(
    death
    for place, stage in enumerate(STAGES, start=1)
    for death in (Death(stage, "forward", 4 * place - 2, count=2), Death(stage, "backward", 4 * place, count=2))
)
STEPS = 4 * len(STAGES) + 2

Event = dict[str, Any]


def test_ten_deaths_in_the_middle_of_a_job(brood: Brood, nursery: Nursery) -> None:
    source = brood.folder / "run.toml"
    source.write_text(RUN, encoding="utf-8")
    join = nursery.found(str(source), STEPS)
    for stage in STAGES:
        nursery.join(f"stage-{stage}", join, stage, DEATHS)
    brood.until(lambda: says(nursery.events("stage-0"), "swarm.complete"), "every stage to be served", START_TIMEOUT_S)
    for number in range(len(DEATHS)):
        nursery.join(f"spare-{number}", join, None, DEATHS)
        # One after the other: the seed pings each back within a second, which ten at once make hard for a slow machine.
        brood.until(lambda name=f"spare-{number}": nursery.events(name), "the spare to be there", START_TIMEOUT_S)
    nodes = len(STAGES) + len(DEATHS)
    brood.until(lambda: len(nursery.statuses()) == nodes, "the end of all nodes", RUN_TIMEOUT_S)

    statuses = sorted(nursery.statuses().values())
    assert statuses == [-signal.SIGKILL] * len(DEATHS) + [0] * (nodes - len(DEATHS))
    events = [event for path in brood.folder.glob("*.jsonl") for event in nursery.events(path.stem)]
    events.sort(key=lambda event: event["time"])
    assert_all_committed(says(events, "step.committed"))
    for death in DEATHS:
        assert_recovered(events, death, nursery.incarnation_at(death))
    assert len(says(events, "stage.recovered")) == len(DEATHS)


def says(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event["event"] == name]


def assert_all_committed(commits: list[Event]) -> None:
    """Each driver commits a step once and leaves none out; a new one may decide its predecessor's last again."""
    for before, after in pairwise(commits):
        is_of_new_driver = before["incarnation"] < after["incarnation"]
        assert after["step"] - before["step"] in ((0, 1) if is_of_new_driver else (1,)), (before, after)
    assert (commits[0]["step"], commits[-1]["step"]) == (1, STEPS)


def assert_recovered(events: list[Event], death: Death, incarnation: int | None) -> None:
    """The tenure ended within the step, and its successor stands at the step before."""
    assert incarnation is not None, death
    lost = [event for event in of_stage(events, "peer.dead", death.stage) if event["incarnation"] == incarnation]
    assert lost, death
    later = [event for event in of_stage(events, "stage.recovered", death.stage) if event["incarnation"] > incarnation]
    recovered = min(later, key=lambda event: int(event["incarnation"]))
    # A driver's last word may have died with it: then the stages know of one step less.
    assert recovered["step"] in ((death.step - 1, death.step - 2) if death.stage == 0 else (death.step - 1,)), death
    assert (recovered["method"], recovered["donors"]) == SOURCES[death.stage]
    if recovered["method"] == "checkfree":
        assert recovered["coefficients"] == pytest.approx(by_the_formula(events, recovered), rel=1e-12)
    reissued = [event for event in says(events, "microbatch.reissued") if event["step"] == death.step]
    assert {event["index"] for event in reissued} <= set(range(MICROBATCHES))
    assert reissued or death.stage == 0, death


def by_the_formula(events: list[Event], recovered: Event) -> list[float]:
    """The coefficients, from the norms that the donors published with the weights of that step."""
    published = {
        event["stage"]: event["squared_gradient_norm"]
        for event in says(events, "weights.published")
        if (event["for_stage"], event["step"]) == (recovered["stage"], recovered["step"])
    }
    norms = [published[donor] for donor in recovered["donors"]]
    return [norm / sum(norms) for norm in norms]


def of_stage(events: list[Event], name: str, stage: int) -> list[Event]:
    return [event for event in says(events, name) if event["stage"] == stage]
