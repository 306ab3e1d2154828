"""A swarm of which everybody can dial everybody: what those behind routers are measured against."""

from __future__ import annotations

from tests.network.households import Internet
from tests.network.swarm import Volunteers
from tests.swarm.processes import Brood

STAGES = 5
"""Of the preset tiny."""
COMMIT_LIMIT_S = 60.0
"""From the last join."""


def test_public_machines_commit(internet: Internet, brood: Brood) -> None:
    volunteers = Volunteers(brood, brood.folder / "run")
    try:
        volunteers.found(internet.public("seed"))
        for stage in range(STAGES):
            volunteers.join(f"s{stage}", internet.public(f"s{stage}"), stage)
        assert volunteers.until_commits(3, COMMIT_LIMIT_S)[:3] == [1, 2, 3]
        assert {volunteers.peer(f"s{stage}") for stage in range(STAGES)} == {
            event["peer"] for event in volunteers.of("peer.serving")
        }
        assert all("Traceback" not in volunteers.log(name) for name in ("seed", "s0", "s4"))
    finally:
        volunteers.end()
