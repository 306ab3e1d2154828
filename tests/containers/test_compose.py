"""compose.yaml as a person uses it: six volunteers train, and nothing of it stays."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import DockerClient

from tests.containers.fleet import START_TIMEOUT_S, Event, Peer, of, until

pytestmark = pytest.mark.timeout(300)

COMPOSE_FILE = Path(__file__).parents[2] / "compose.yaml"
COMPOSE_TIMEOUT_S = 120
NODES = 6


@pytest.fixture
def compose(docker: DockerClient, image: str, mark: str) -> Iterator[list[str]]:
    """The command of this machine's compose, old or new, for a project of our own. Takes it down whatever happened."""
    is_old = shutil.which("docker-compose") is not None
    project = f"understudy{mark}"
    command = [*(["docker-compose"] if is_old else ["docker", "compose"]), "-f", str(COMPOSE_FILE), "-p", project]
    try:
        yield command
    finally:
        run([*command, "down", "--volumes", "--timeout", "20"])
    ours = {"label": f"com.docker.compose.project={project}"}
    assert docker.containers.list(all=True, filters=ours) == []
    assert docker.networks.list(filters=ours) == []
    assert docker.volumes.list(filters=ours) == []


def run(command: list[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=COMPOSE_TIMEOUT_S, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_compose_up_trains_and_down_leaves_nothing(docker: DockerClient, compose: list[str]) -> None:
    run([*compose, "up", "-d", "--no-build", "--scale", f"node={NODES}"])
    project = compose[-1]
    labels = [f"com.docker.compose.project={project}", "com.docker.compose.service=node"]
    nodes = [Peer(str(found.name), found, "") for found in docker.containers.list(filters={"label": labels})]
    assert len(nodes) == NODES

    def events() -> list[Event]:
        return [event for node in nodes for event in node.events()]

    until(lambda: of(events(), "step.committed", step=2), "the commit of step 2", START_TIMEOUT_S)
    until(lambda: len({event["peer"] for event in of(events(), "peer.spare")}) > 0, "a spare", START_TIMEOUT_S)
    assert {event["stage"] for event in of(events(), "peer.serving")} == set(range(5))
    run([*compose, "stop", "--timeout", "20"])
    assert [node.exit_status for node in nodes] == [0] * NODES
    assert {event["peer"] for event in of(events(), "peer.left", reason="asked")} == {node.peer_id for node in nodes}
