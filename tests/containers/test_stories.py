"""One swarm of containers and what befalls it, story after story: `tiny`, five stages, real hivemind, real training.

Each story first lets volunteers join until there are the spares it needs, and ends when the swarm trains again.
After each of them all event files so far are judged.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from docker import DockerClient

from tests.containers.fleet import PORT, START_TIMEOUT_S, STOP_TIMEOUT_S, Event, Fleet, Peer, of, until
from tests.containers.judge import assert_no_step_lost, assert_one_owner_per_tenure
from understudy.node.p2p.addresses import parse_join

pytestmark = pytest.mark.timeout(600)

MEMORY_BYTES_MAX = 10 * 2**30
LAST_STAGE = 4
SLOW = """
device=$(ip route show default | sed 's/.* dev //; s/ .*//')
tc qdisc replace dev $device root tbf rate 20mbit burst 64kb latency 400ms
"""


@pytest.fixture(autouse=True)
def judged(fleet: Fleet) -> Iterator[None]:
    """Judge everything that was ever written."""
    yield
    events = fleet.events()
    assert_one_owner_per_tenure(events)
    assert_no_step_lost(events)


@pytest.fixture(autouse=True)
def described(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[None]:
    """What the containers said, should the story fail."""
    failed_before = request.session.testsfailed
    yield
    if request.session.testsfailed > failed_before:
        print(fleet.describe())  # noqa: T201


def lines_of(events: list[Event], peer: Peer, since: float) -> list[str]:
    """The names of a peer's own events since a time."""
    return [
        event["event"]
        for event in events
        if event["by"] == peer.name and event["time"] > since and "observer" not in event
    ]


def now(fleet: Fleet) -> float:
    """The time of the last event: all containers share one clock."""
    return float(fleet.events()[-1]["time"])


def assert_only_fenced(fleet: Fleet, peer: Peer, stage: int, since: float) -> None:
    """An owner that came back gave its stage up before anything else, and waits as a spare."""
    until(lambda: peer in fleet.spares(), f"{peer.name} to wait as a spare", START_TIMEOUT_S)
    own = [name for name in lines_of(fleet.events(), peer, since) if name.startswith(("peer.", "step.", "stage."))]
    assert own[:2] == ["peer.retired", "peer.spare"]
    (retired,) = [event for event in of(fleet.events(), "peer.retired", stage=stage) if event["by"] == peer.name]
    assert retired["time"] > since


def test_a_swarm_forms_and_trains(fleet: Fleet) -> None:
    until(lambda: len(fleet.owners()) == LAST_STAGE + 1, "every stage to be served", START_TIMEOUT_S)
    fleet.until_trained(3, "training")
    assert len({peer.address for peer in fleet.peers}) == len(fleet.peers) == LAST_STAGE + 2
    assert all(
        peer.container.exec_run(["python3", "-m", "understudy.node.health"]).exit_code == 0 for peer in fleet.peers
    )
    assert sum(peer.memory_bytes for peer in fleet.peers) < MEMORY_BYTES_MAX


def until_copied(fleet: Fleet, stage: int) -> None:
    """Somebody who is there has a copy of the stage's weights."""
    owner = fleet.owners()[stage].name

    def is_kept() -> bool:
        there = {peer.peer_id for peer in (*fleet.owners().values(), *fleet.spares())}
        copies = of(fleet.events(), "standby.copied", stage=stage, by=owner)
        return any(copy["holder"] in there for copy in copies if copy["part"] != "moments")

    until(is_kept, f"S{stage} to be copied", START_TIMEOUT_S)


@pytest.mark.parametrize(("stage", "donors"), [(2, {1, 3, 4}), (0, {1, 4})])
def test_an_owner_that_its_engine_starts_again_takes_its_stage_back(fleet: Fleet, stage: int, donors: set[int]) -> None:
    """Nobody waits as a spare, so owners hold the copies. It comes back with its volume, so under its identity."""
    for spare in fleet.spares():
        spare.container.stop(timeout=STOP_TIMEOUT_S)
    until_copied(fleet, stage)
    owner, began = fleet.owners()[stage], now(fleet)
    owner.container.update(restart_policy={"Name": "always"})
    fleet.kill_behind_the_engine(owner)

    def taken_back() -> list[Event]:
        return [event for event in of(fleet.events(), "stage.recovered", stage=stage) if event["time"] > began]

    until(taken_back, f"S{stage} to be served again")
    (recovered,) = taken_back()
    assert (recovered["by"], recovered["peer"]) == (owner.name, owner.peer_id)
    assert recovered["method"] == "standby", recovered["reason"]
    assert recovered["donors"]
    assert set(recovered["donors"]) <= donors
    fleet.until_trained(3, "training after the restart")
    owner.container.reload()
    assert owner.container.attrs["RestartCount"] == 1
    assert "Traceback" not in owner.log
    owner.container.update(restart_policy={"Name": "no"})


def test_a_killed_middle_peer_is_replaced_and_comes_back_as_itself(fleet: Fleet) -> None:
    fleet.ensure_spares(1)
    until_copied(fleet, 2)
    lost = fleet.owners()[2]
    identity = lost.peer_id
    lost.container.kill()
    recovered = fleet.until_recovered(2, lost)
    assert recovered["method"] == "standby", recovered["reason"]
    fleet.until_trained(2, "training after the kill")

    since = now(fleet)
    lost.container.start()
    until(lambda: lost in fleet.spares(), "the killed peer to come back as a spare", START_TIMEOUT_S)
    again = [event for event in lost.events() if event["time"] > since and "observer" not in event]
    assert {event["peer"] for event in again} == {identity}
    assert of(again, "peer.serving") == []


def test_a_paused_peer_is_replaced_and_gives_its_stage_up_when_it_wakes(fleet: Fleet) -> None:
    fleet.ensure_spares(1)
    until_copied(fleet, 3)
    sleeper = fleet.owners()[3]
    fleet.pause(sleeper)
    assert fleet.until_recovered(3, sleeper)["method"] == "standby"
    assert of(fleet.events(), "peer.dead", stage=3, peer=sleeper.peer_id)
    fleet.until_trained(2, "training beside the sleeper")
    since = now(fleet)
    sleeper.container.unpause()
    assert_only_fenced(fleet, sleeper, 3, since)
    fleet.until_trained(1, "training after the sleeper woke up")


def test_a_partition_never_has_two_owners_and_loses_no_step(fleet: Fleet) -> None:
    fleet.ensure_spares(1)
    until_copied(fleet, 2)
    lonely = fleet.owners()[2]
    began = now(fleet)
    fleet.cut_off(lonely)
    recovered = fleet.until_recovered(2, lonely)
    assert recovered["method"] == "standby", recovered["reason"]
    fleet.until_trained(3, "training on the larger side")
    since = now(fleet)
    alone = lines_of(fleet.events(), lonely, began)
    assert not {"step.committed", "peer.serving", "stage.claimed", "stage.recovered"} & set(alone)

    fleet.reconnect(lonely)
    assert_only_fenced(fleet, lonely, 2, since)
    fleet.until_trained(2, "training after the partition")
    assert of(fleet.events(), "peer.serving", stage=2)[-1]["peer"] == recovered["peer"]


def test_a_killed_last_stage_is_replaced(fleet: Fleet) -> None:
    fleet.ensure_spares(1)
    until_copied(fleet, LAST_STAGE)
    lost = fleet.owners()[LAST_STAGE]
    lost.container.kill()
    assert fleet.until_recovered(LAST_STAGE, lost)["method"] == "standby"
    fleet.until_trained(2, "training after the kill")


def test_a_killed_s0_is_replaced(fleet: Fleet) -> None:
    fleet.ensure_spares(1)
    lost = fleet.owners()[0]
    before = fleet.last_step()
    lost.container.kill()
    recovered = fleet.until_recovered(0, lost)
    assert recovered["step"] >= before
    fleet.until_trained(2, "training under a new S0")
    assert of(fleet.events(), "step.committed")[-1]["peer"] == recovered["peer"]


def test_the_swarm_outlives_its_seed_and_admits_a_volunteer(fleet: Fleet) -> None:
    seed = fleet.named("seed")
    seed.container.kill()
    fleet.until_trained(2, "training without the seed")
    door = fleet.owners()[1]
    join = parse_join(fleet.join)
    address = f"/ip4/{door.address}/tcp/{PORT}/p2p/{door.peer_id}"
    fleet.join = fleet.join.replace(",".join(join.addresses), address)
    volunteer = fleet.volunteer()
    until(lambda: volunteer in fleet.spares(), "the volunteer to be a spare", START_TIMEOUT_S)

    lost = fleet.owners()[2]
    for spare in fleet.spares():
        if spare is not volunteer:
            spare.container.stop(timeout=STOP_TIMEOUT_S)
    lost.container.kill()
    fleet.until_recovered(2, lost)
    assert fleet.owners()[2] is volunteer
    fleet.until_trained(1, "training with the volunteer")


def test_a_stopped_peer_says_goodbye(fleet: Fleet) -> None:
    fleet.ensure_spares(1)
    leaver = fleet.owners()[3]
    began = now(fleet)
    leaver.container.stop(timeout=STOP_TIMEOUT_S)
    assert leaver.exit_status == 0, leaver.log
    fleet.until_recovered(3, leaver)
    fleet.until_trained(2, "training after the goodbye")
    after = [event for event in fleet.events() if event["time"] > began and event["peer"] == leaver.peer_id]
    assert of(after, "peer.left", reason="asked", by=leaver.name)
    assert [event for event in of(after, "peer.left") if "observer" in event]
    assert of(after, "peer.dead") == []


def test_a_slow_line_costs_time_and_nobody_their_stage(fleet: Fleet, docker: DockerClient, tools_image: str) -> None:
    slow = fleet.owners()[1]
    shaper = docker.containers.run(
        tools_image,
        ["sh", "-c", SLOW],
        network_mode=f"container:{slow.container.id}",
        cap_add=["NET_ADMIN"],
        detach=True,
    )
    try:
        assert shaper.wait()["StatusCode"] == 0, shaper.logs()
    finally:
        shaper.remove(force=True, v=True)
    began = now(fleet)
    owners = fleet.owners()
    fleet.until_trained(3, "training over a slow line")
    assert fleet.owners() == owners
    assert [event for event in of(fleet.events(), "peer.dead") if event["time"] > began] == []
