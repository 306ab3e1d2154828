"""A node that nobody can get to says so, and what would help."""

from __future__ import annotations

import pytest

from tests.network.households import Internet
from tests.network.swarm import Volunteers
from tests.swarm.processes import Brood

JOIN_TIMEOUT_S = 90.0
SAID_WITHIN_S = 20.0


@pytest.mark.timeout(200)
def test_a_node_without_any_public_peer_says_so(internet: Internet, brood: Brood) -> None:
    """The seed, whom everybody could dial, is gone: two households are left."""
    run = Volunteers(brood, brood.folder / "run")
    run.found(internet.public("seed"))
    for stage in (1, 2):
        run.join(f"s{stage}", internet.household(f"home{stage}").machines[0], stage)
        run.until("peer.serving", JOIN_TIMEOUT_S, stage=stage)
    killed_at = run.kill("seed")
    try:
        for name in ("s1", "s2"):
            said = run.until("peer.cut_off", SAID_WITHIN_S, after=killed_at, peer=run.peer(name))
            assert said["time"] - killed_at < SAID_WITHIN_S
            assert "--announce-maddr" in said["advice"]
            assert "nobody can reach this node" in run.log(name)
    finally:
        run.end()


@pytest.mark.timeout(200)
def test_a_seed_at_home_is_not_mistaken_for_one_that_is_down(internet: Internet, brood: Brood) -> None:
    """Its join string holds an address of its own network, which means something else at whoever joins."""
    run = Volunteers(brood, brood.folder / "run")
    try:
        run.found(internet.household("home1").machines[0])
        brood.until(lambda: "local network" in run.log("seed"), "a word to the founder", JOIN_TIMEOUT_S)
        run.join("stranger", internet.household("home2").machines[0], "auto", "--wait", "0")
        brood.until(lambda: "cannot reach the seed" in run.log("stranger"), "the reason", JOIN_TIMEOUT_S)
        assert "private network" in run.log("stranger")
    finally:
        run.end()
