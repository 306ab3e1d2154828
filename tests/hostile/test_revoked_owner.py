"""An owner of a stage is revoked: it is out, ends with the reason, and a spare takes its stage."""

from __future__ import annotations

import time
from typing import Any

from tests.swarm.nursery import Nursery
from tests.swarm.processes import Brood
from tests.swarm.small_run import small_run
from understudy.bootstrap.inviting import Founded
from understudy.node.p2p.identity import Identity

START_TIMEOUT_S = 120.0
OUT_WITHIN_S = 10.0
"""Until another has recovered its stage, even."""
END_TIMEOUT_S = 40.0
"""A node's own deadlines for its streams, the DHT and the daemon."""

RUN = small_run("revoking", 6.0, 12.0)
"""It is not the silence of a peer that tells of its loss here: that would take longer than is promised."""


def committed(nursery: Nursery) -> int:
    return sum(event["event"] == "step.committed" for event in nursery.events("stage-0"))


def test_a_revoked_owner_is_replaced(brood: Brood, nursery: Nursery) -> None:
    source = brood.folder / "run.toml"
    source.write_text(RUN, encoding="utf-8")
    join = nursery.found(str(source), 10**6)
    founded = Founded(brood.folder, Identity.load(brood.folder / "seed.key"))
    nursery.join("stage-0", join, 0)
    nursery.join("stage-1", str(founded.invite("mallory", "volunteer", 0)), 1)
    nursery.join("stage-2", join, 2)
    brood.until(lambda: committed(nursery) >= 1, "the first commit", START_TIMEOUT_S)
    nursery.join("spare", join)
    brood.until(lambda: nursery.events("spare") != [], "the spare", START_TIMEOUT_S)
    reached, began = committed(nursery), time.time()

    founded.revoke("mallory")
    brood.until(lambda: committed(nursery) >= reached + 3, "more commits", START_TIMEOUT_S)
    brood.until(lambda: recoveries(nursery) != [], "the recovery", OUT_WITHIN_S)
    brood.until(lambda: "stage-1" in nursery.statuses(), "the end of the revoked owner", END_TIMEOUT_S)

    assert nursery.statuses()["stage-1"] == 2
    assert "the founder revoked this invite" in nursery.log("stage-1")
    (recovered,) = recoveries(nursery)
    assert recovered["stage"] == 1
    assert recovered["time"] - began < OUT_WITHIN_S


def recoveries(nursery: Nursery) -> list[dict[str, Any]]:
    return [event for event in nursery.events("spare") if event["event"] == "stage.recovered"]
