"""A run of volunteers at home: S1 and S2 in plain households, S3 behind a symmetric NAT, a spare in a fourth home."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.network.households import Internet
from tests.network.swarm import Volunteers

JOIN_TIMEOUT_S = 90.0
FIRST_STEP_S = 60.0
"""From the last join to the first step."""
DIRECT_S = 30.0
"""From then on to a direct link between two plain households."""
FOUND_OUT_S = 30.0
STEPS = 30
STEPS_TIMEOUT_S = 120.0
RECOVERY_TIMEOUT_S = 60.0
PUBLIC, PLAIN, SYMMETRIC = (0, 4, 5), (1, 2), 3
"""Stages. With the seed there are four public peers: so many must have seen a peer before libp2p punches for it."""
RUN = """
name = "street"
[model]
hidden_size = 32
intermediate_size = 48
attention_heads = 2
block_stages = 5
context_length = 32
[recovery]
method = "checkfree"
standby_every = 0
[step]
microbatches = 4
microbatch_size = 2
"""


@pytest.fixture(scope="module")
def street(shared_internet: Internet, shared_volunteers: Volunteers) -> Volunteers:
    """Nobody says what kind of a home it has: all find it out."""
    internet, run = shared_internet, shared_volunteers
    source = run.folder / "street.toml"
    source.write_text(RUN, encoding="utf-8")
    run.found(internet.public("seed"), preset=str(source))
    for stage in PUBLIC:
        run.join(f"s{stage}", internet.public(f"s{stage}"), stage)
    for stage in (*PLAIN, SYMMETRIC):
        home = internet.household(f"home{stage}", is_symmetric=stage == SYMMETRIC)
        run.join(f"s{stage}", home.machines[0], stage)
    for stage in (*PUBLIC, *PLAIN, SYMMETRIC):
        run.until("peer.serving", JOIN_TIMEOUT_S, stage=stage)
    return run


def way(run: Volunteers, name: str, other: str) -> str | None:
    """How the link of one node to another goes, by its last word."""
    between = {"peer": run.peer(name), "to": run.peer(other)}
    said = [*run.of("link.direct", **between), *run.of("link.relayed", **between)]
    return max(said, key=lambda event: float(event["time"]))["event"] if said else None


def both(run: Volunteers, one: str, other: str, wanted: str) -> Callable[[], bool]:
    return lambda: way(run, one, other) == way(run, other, one) == wanted


@pytest.mark.timeout(300)
def test_the_first_step_commits_and_plain_households_get_a_direct_link(street: Volunteers) -> None:
    joined_at = time.time()
    street.until_commits(1, FIRST_STEP_S)
    street.brood.until(both(street, "s1", "s2", "link.direct"), "a direct link", DIRECT_S)
    assert time.time() - joined_at < FIRST_STEP_S + DIRECT_S
    found = {e["peer"]: e["reachability"] for e in street.of("peer.reachable")}
    assert {found[street.peer(f"s{stage}")] for stage in PUBLIC} == {"public"}
    assert {found[street.peer(f"s{stage}")] for stage in PLAIN} == {"punchable"}
    # With one peer alone to ask at its start it learns what its router does when it looks again.
    street.until("peer.reachable", FOUND_OUT_S, peer=street.peer(f"s{SYMMETRIC}"), reachability="relayed")


@pytest.mark.timeout(300)
def test_behind_a_symmetric_nat_the_link_is_relayed_for_good(street: Volunteers) -> None:
    street.until_commits(STEPS, STEPS_TIMEOUT_S)
    assert both(street, "s2", "s3", "link.relayed")()
    assert street.of("link.direct", peer=street.peer("s2"), to=street.peer("s3")) == []
    assert both(street, "s1", "s2", "link.direct")()


@pytest.mark.timeout(300)
def test_another_households_spare_takes_a_killed_stage(street: Volunteers, shared_internet: Internet) -> None:
    joined_at = time.time()
    street.join("spare", shared_internet.household("home6").machines[0], "auto")
    street.until("peer.reachable", JOIN_TIMEOUT_S, after=joined_at)
    street.until("peer.spare", JOIN_TIMEOUT_S, after=joined_at)
    killed_at = street.kill("s2")
    recovered = street.until("stage.recovered", RECOVERY_TIMEOUT_S, after=killed_at, stage=2)
    assert (recovered["method"], recovered["donors"]) == ("checkfree", [1, 3])
    assert recovered["peer"] == street.peer("spare")
    street.until_commits(3, STEPS_TIMEOUT_S, after=recovered["time"])
