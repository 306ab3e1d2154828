"""Volunteers at home: S1 and S2 in two households, and a third one's spare."""

from __future__ import annotations

import time

import pytest

from tests.network.households import Internet
from tests.network.swarm import Volunteers
from tests.swarm.processes import Brood

RUN = """
name = "street"
[model]
hidden_size = 32
intermediate_size = 48
attention_heads = 2
block_stages = 4
context_length = 32
[recovery]
method = "checkfree"
[step]
microbatches = 4
microbatch_size = 2
"""
JOIN_TIMEOUT_S = 90.0
FIRST_STEP_S = 60.0
DIRECT_S = 30.0
STEPS = 30
STEPS_TIMEOUT_S = 90.0
RECOVERY_TIMEOUT_S = 60.0


class Street:
    """Seed, S0, S3 and S4 in public; S1 and S2 at home."""

    def __init__(self, internet: Internet, brood: Brood, *, is_symmetric: bool) -> None:
        self.internet = internet
        self.run = Volunteers(brood, brood.folder / "run")
        source = brood.folder / "run.toml"
        source.write_text(RUN, encoding="utf-8")
        self.run.found(internet.public("seed"), preset=str(source))
        for stage in (0, 3, 4):
            self.run.join(f"s{stage}", internet.public(f"s{stage}"), stage)
        for stage in (1, 2):
            household = internet.household(f"home{stage}", is_symmetric=is_symmetric and stage == 2)
            self.run.join(f"s{stage}", household.machines[0], stage)
        for stage in range(5):
            self.run.until("peer.serving", JOIN_TIMEOUT_S, stage=stage)
        self.joined_at = time.time()

    def way(self, name: str, other: str) -> str | None:
        """How the link of one node to another goes, by its last word."""
        me, to = self.run.peer(name), self.run.peer(other)
        said = [e for e in self.run.events() if e["event"].startswith("link.") and (e["peer"], e.get("to")) == (me, to)]
        return str(said[-1]["event"]) if said else None


@pytest.mark.timeout(400)
def test_two_households_train_and_a_thirds_spare_takes_over(internet: Internet, brood: Brood) -> None:
    street = Street(internet, brood, is_symmetric=False)
    run = street.run
    try:
        run.until_commits(1, FIRST_STEP_S)
        brood.until(
            lambda: {street.way("s1", "s2"), street.way("s2", "s1")} == {"link.direct"}, "a direct link", DIRECT_S
        )
        run.join("spare", internet.household("home3").machines[0], "auto")
        run.until_commits(STEPS, STEPS_TIMEOUT_S)
        run.until("peer.spare", JOIN_TIMEOUT_S)
        killed_at = run.kill("s2")
        recovered = run.until("stage.recovered", RECOVERY_TIMEOUT_S, after=killed_at, stage=2)
        assert (recovered["method"], recovered["donors"]) == ("checkfree", [1, 3])
        assert recovered["peer"] == run.peer("spare")
        run.until_commits(3, STEPS_TIMEOUT_S, after=recovered["time"])
    finally:
        run.end()


@pytest.mark.timeout(300)
def test_behind_a_symmetric_nat_the_link_is_relayed_for_good(internet: Internet, brood: Brood) -> None:
    street = Street(internet, brood, is_symmetric=True)
    run = street.run
    try:
        run.until_commits(1, FIRST_STEP_S)
        run.until_commits(STEPS, STEPS_TIMEOUT_S)
        assert street.way("s1", "s2") == street.way("s2", "s1") == "link.relayed"
    finally:
        run.end()
