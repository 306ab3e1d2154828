"""An owner that answers heartbeats and computes nothing, or NaN: its stage goes to the spare that waits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from tests.swarm.nursery import Nursery, Sickness
from tests.swarm.processes import Brood
from tests.swarm.small_run import small_run

START_TIMEOUT_S = 90.0
RUN_TIMEOUT_S = 180.0
STEPS = 100_000
STEPS_AFTER = 5
DEAD_AFTER_S = 5.0
RUN = small_run("sick", 2.5, DEAD_AFTER_S, block_stages=3)
STAGES = (0, 1, 2, 3)

Event = dict[str, Any]


def says(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event["event"] == name]


def fall_ill(brood: Brood, nursery: Nursery, sickness: Sickness) -> int:
    """A swarm with a spare, whose owner of S2 falls ill after the step that is returned."""
    source = brood.folder / "run.toml"
    source.write_text(RUN, encoding="utf-8")
    join = nursery.found(str(source), STEPS)
    for stage in STAGES:
        nursery.join(f"stage-{stage}", join, stage, sickness=sickness if stage == 2 else None)
    brood.until(lambda: says(nursery.events("stage-0"), "swarm.complete"), "every stage to be served", START_TIMEOUT_S)
    nursery.join("spare", join)
    brood.until(lambda: says(nursery.events("spare"), "peer.spare"), "the spare to be there", START_TIMEOUT_S)
    seen = len(commits(nursery))
    brood.until(lambda: len(commits(nursery)) > seen + 50, "some steps with a spare", START_TIMEOUT_S)
    (brood.folder / sickness.kind).touch()
    return len(commits(nursery))


def commits(nursery: Nursery) -> list[Event]:
    return says(nursery.events("stage-0"), "step.committed")


def go_on(brood: Brood, nursery: Nursery) -> Event:
    """Wait until the spare has S2 and some more steps are committed. How S2 was recovered."""
    brood.until(lambda: says(nursery.events("spare"), "stage.recovered"), "S2 to be recovered", RUN_TIMEOUT_S)
    (recovered,) = says(nursery.events("spare"), "stage.recovered")
    brood.until(
        lambda: sum(commit["time"] > recovered["time"] for commit in commits(nursery)) >= STEPS_AFTER,
        "the swarm to go on",
        RUN_TIMEOUT_S,
    )
    return recovered


def test_an_owner_whose_compute_thread_hangs_loses_its_stage_and_comes_back_as_a_spare(
    brood: Brood, nursery: Nursery
) -> None:
    fall_ill(brood, nursery, Sickness("hangs"))
    recovered = go_on(brood, nursery)
    assert recovered["stage"] == 2

    told = nursery.events("stage-0")
    (sentenced,) = says(told, "peer.sentenced")
    assert sentenced["stage"] == 2
    assert sentenced["reason"].startswith("S2 keeps a microbatch, nothing moves for ")
    assert any("keeps a microbatch" in event.get("reason", "") for event in says(told, "peer.suspected"))
    sick = nursery.events("stage-2")
    assert [event["by"] for event in says(sick, "peer.accused")] == [told[0]["peer"]]
    assert len(says(sick, "peer.retired")) == 1
    assert not says(sick, "peer.spare"), "its compute thread still hangs: it is no spare"
    (brood.folder / "hangs").unlink()
    brood.until(lambda: says(nursery.events("stage-2"), "peer.spare"), "it to be a spare", START_TIMEOUT_S)
    times = [commit["time"] for commit in commits(nursery)]
    standstill_s = max(after - before for before, after in pairwise(times))
    assert 2 * DEAD_AFTER_S - 1.0 <= standstill_s <= 2 * DEAD_AFTER_S + 10.0


def test_an_owner_that_sends_nan_is_named_by_those_who_get_it_and_loses_its_stage(
    brood: Brood, nursery: Nursery
) -> None:
    step = fall_ill(brood, nursery, Sickness("spoils"))
    recovered = go_on(brood, nursery)
    assert recovered["stage"] == 2

    told = nursery.events("stage-0")
    lossless = [commit for commit in commits(nursery) if commit["loss"] is None]
    assert lossless[0]["step"] >= step
    # A word that comes after the commit is counted, and too late for its message: that names who passed it on.
    assert all(commit["why_no_loss"].startswith("what S") for commit in lossless)
    assert any(commit["why_no_loss"].startswith("what S2 (") for commit in lossless)
    assert all(commit["loss"] is not None for commit in commits(nursery) if commit["time"] > recovered["time"] + 1.0)
    (sentenced,) = says(told, "peer.sentenced")
    assert (sentenced["stage"], sentenced["peer"]) == (2, nursery.events("stage-2")[0]["peer"])
    # S1 gets NaN from S2 alone, on the swapped route before any other stage. S3 gets what S1 passes on there, too.
    senders = {stage: {event["sender_stage"] for event in skips(nursery, stage)} for stage in (1, 3)}
    assert senders[1] == {2}
    assert senders[3]
    assert senders[3] <= {1, 2}
    assert {event["sender"] for event in skips(nursery, 1)} == {sentenced["peer"]}


def skips(nursery: Nursery, stage: int) -> list[Event]:
    return says(nursery.events(f"stage-{stage}"), "update.skipped")
