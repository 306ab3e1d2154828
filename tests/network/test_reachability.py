"""What a node finds out about the way to itself, from two public peers, and says in its events and its log."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import pytest

from benchmarks.links.machines import BRIDGE, INTERFACE, Machine, command
from tests.network.households import Household, Internet
from tests.network.swarm import Volunteers
from tests.swarm.test_local import Event, of

PORT = 4001
FOUND_OUT_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def volunteers(shared_internet: Internet, shared_volunteers: Volunteers) -> Volunteers:
    """A seed and one node, both public."""
    shared_volunteers.found(shared_internet.public("seed"))
    shared_volunteers.join("first", shared_internet.public("first"), 0)
    assert found_out(shared_volunteers, "first")["reachability"] == "public"
    return shared_volunteers


def found_out(volunteers: Volunteers, name: str) -> Event:
    """What a node said of itself at its start."""
    volunteers.brood.until(lambda: told(volunteers, name), f"peer.reachable of {name}", FOUND_OUT_TIMEOUT_S)
    return told(volunteers, name)[0]


def told(volunteers: Volunteers, name: str) -> list[Event]:
    path = volunteers.folder / "nodes" / f"{name}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return of([json.loads(line) for line in lines if line.endswith("\n")], "peer.reachable")


def join(volunteers: Volunteers, name: str, machine: Machine, *arguments: str) -> Event:
    volunteers.join(name, machine, "auto", *arguments)
    return found_out(volunteers, name)


def forward(home: Household) -> None:
    """Let the router bring what comes for `PORT` to the first machine at home."""
    inside = f"{home.machines[0].address}:{PORT}"
    wanted = ["-p", "tcp", "--dport", str(PORT)]
    rules = (
        ["-t", "nat", "-A", "PREROUTING", "-i", INTERFACE, *wanted, "-j", "DNAT", "--to-destination", inside],
        ["-I", "FORWARD", "-i", INTERFACE, "-o", BRIDGE, *wanted, "-j", "ACCEPT"],
    )
    for rule in rules:
        home.router.call(partial(command, "iptables", *rule))


def test_behind_a_plain_router_it_is_punchable(shared_internet: Internet, volunteers: Volunteers) -> None:
    home = shared_internet.household("plain")
    event = join(volunteers, "plain", home.machines[0])
    assert (event["reachability"], event["seen_at"]) == ("punchable", f"{home.address}:{PORT}")
    assert event["reason"].endswith(f"2 peers see it at the same {home.address}:{PORT}")
    assert "behind a router that lets peers punch through" in volunteers.log("plain")


def test_behind_a_symmetric_router_it_is_relayed(shared_internet: Internet, volunteers: Volunteers) -> None:
    home = shared_internet.household("symmetric", is_symmetric=True)
    event = join(volunteers, "symmetric", home.machines[0])
    assert event["reachability"] == "relayed", event
    assert f"forward TCP port {PORT} to this machine and it becomes direct" in volunteers.log("symmetric")


def test_the_doctor_tries_it_too(shared_internet: Internet, volunteers: Volunteers) -> None:
    closed, opened = shared_internet.household("closed"), shared_internet.household("opened")
    forward(opened)
    assert f"forward TCP port {PORT} to this machine and it becomes direct (none of " in examine(volunteers, closed)
    assert f"others can dial this machine at port {PORT}: " in examine(volunteers, opened)


def examine(volunteers: Volunteers, home: Household) -> str:
    """What ``understudy doctor`` says at a home."""
    words = ["--join", f"@{volunteers.folder / 'join.txt'}", "--host-maddr", f"/ip4/0.0.0.0/tcp/{PORT}"]
    program = [sys.executable, "-c", "from understudy.bootstrap.__main__ import main; main()", "doctor", *words]
    command = [*home.machines[0].place.prefix, *program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=FOUND_OUT_TIMEOUT_S)
    return done.stdout


def test_with_a_forwarded_port_it_is_public_and_tells_the_outside_address(
    shared_internet: Internet, volunteers: Volunteers
) -> None:
    home = shared_internet.household("forwarded")
    forward(home)
    event = join(volunteers, "forwarded", home.machines[0])
    assert event["reachability"] == "public", event
    assert "this machine can be dialled from outside (2 of 2 peers dialled it)" in volunteers.log("forwarded")
    assert f"/ip4/{home.address}/tcp/{PORT}/p2p/{event['peer']}" in volunteers.log("forwarded")


def test_what_a_person_says_overrules_and_is_doubted(shared_internet: Internet, volunteers: Volunteers) -> None:
    home = shared_internet.household("told", machines=2)
    event = join(volunteers, "told", home.machines[0], "--announce-maddr", f"/ip4/{home.address}/tcp/{PORT}")
    assert (event["reachability"], event["reason"]) == ("public", "--announce-maddr says so")
    assert "check that the router forwards this port here" in volunteers.log("told")
    event = join(volunteers, "private", home.machines[1], "--behind-nat")
    assert event["reachability"] == "punchable"
