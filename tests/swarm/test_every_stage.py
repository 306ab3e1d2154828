"""No stage is special: the driver and both edge stages are lost one after the other."""

from __future__ import annotations

from tests.swarm.processes import Brood
from tests.swarm.test_local import Event, LocalRun, assert_all_committed, of, only


def test_the_driver_and_both_edge_stages_come_back(brood: Brood) -> None:
    faults = ("--kill", "0@5", "--kill", "1@9", "--kill", "4@13")
    events = LocalRun(brood, "tiny", "--steps", "16", "--spares", "3", *faults).finish()

    assert_all_committed(events, 16)
    assert [event["stage"] for event in of(events, "stage.recovered")] == [0, 1, 4]
    assert_exact_copy(events, only(events, "stage.recovered", stage=0))
    assert_mirrored(only(events, "stage.recovered", stage=1), partner=2)
    assert_mirrored(only(events, "stage.recovered", stage=4), partner=3)
    by_drivers = [event["incarnation"] for event in of(events, "step.committed")]
    assert sorted(set(by_drivers)) == [1, 2]
    assert by_drivers == sorted(by_drivers)


def assert_exact_copy(events: list[Event], recovered: Event) -> None:
    """S0 stands on the bytes of the last commit of which both keepers confirmed their copy, or of a later one."""
    assert recovered["method"] == "edge copy"
    assert recovered["donors"] == [1, 4]
    killed = only(events, "fault.killed", stage=0)
    confirmed = [event for event in of(events, "edge.copied", incarnation=1) if event["time"] <= killed["time"]]
    by_part = {part: {e["step"] for e in confirmed if e["part"] == part} for part in ("embedding", "head")}
    last_confirmed = max(by_part["embedding"] & by_part["head"])
    of_that_commit = {event["digest"] for event in confirmed if event["step"] == last_confirmed}
    if set(recovered["digests"]) != of_that_commit:
        # A copy can have reached both keepers while its confirmation died with S0.
        assert f"as of step {last_confirmed + 1}" in recovered["reason"]
        assert not of_that_commit & set(recovered["digests"])
    assert "exactly" in recovered["reason"]


def assert_mirrored(recovered: Event, partner: int) -> None:
    assert recovered["method"] == "mirror"
    assert recovered["donors"] == [partner]
    assert recovered["coefficients"] == [1.0]
