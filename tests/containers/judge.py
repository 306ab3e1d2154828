"""What must be true of the event files of a whole swarm, whatever was done to it."""

from __future__ import annotations

import math
from itertools import pairwise

from tests.containers.fleet import Event, of


def assert_one_owner_per_tenure(events: list[Event]) -> None:
    """No two peers ever served one stage under one incarnation."""
    owners: dict[tuple[int, int], set[str]] = {}
    for event in of(events, "peer.serving"):
        owners.setdefault((event["stage"], event["incarnation"]), set()).add(event["peer"])
    assert [tenure for tenure, peers in owners.items() if len(peers) > 1] == []


def assert_no_step_lost(events: list[Event]) -> None:
    """Every step was committed, in order, once by each driver; a new driver repeats the last one at most."""
    commits = of(events, "step.committed")
    assert all(math.isfinite(commit["loss"]) for commit in commits)
    assert {commit["step"] for commit in commits} == set(range(1, max(commit["step"] for commit in commits) + 1))
    for before, after in pairwise(commits):
        is_same_driver = (before["peer"], before["incarnation"]) == (after["peer"], after["incarnation"])
        assert after["step"] - before["step"] in ({1} if is_same_driver else {0, 1}), (before, after)
