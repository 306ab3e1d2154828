"""The engine, the image, and the proof that nothing of a test remains."""

from __future__ import annotations

import gc
import io
import os
import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import DockerClient
from docker.errors import BuildError, DockerException

from tests.containers.fleet import LABEL, Fleet

ROOT = Path(__file__).parents[2]
IMAGE = "understudy"
TOOLS_IMAGE = "understudy-test-tools"
ENGINE_TIMEOUT_S = 120
NO_ENGINE = (
    "no container engine answers: install Docker and start it (Debian: apt install docker.io docker-compose), "
    "or name one with DOCKER_HOST; .ci/run does it by itself"
)
TOOLS = """
FROM understudy
USER root
RUN command -v tc || { apt-get -qq update && apt-get -qq install -y --no-install-recommends iproute2; }
ENTRYPOINT []
"""
"""The image with tc in it, which a volunteer does not need."""


def connect() -> DockerClient | None:
    try:
        client = DockerClient.from_env(timeout=ENGINE_TIMEOUT_S)
        client.ping()
    except DockerException:
        return None
    return client


@pytest.fixture(scope="session")
def docker() -> Iterator[DockerClient]:
    """The engine. Without one the tests of this folder are skipped, but not in CI."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the SDK leaves a failed connection to the collector
        client = connect()
        gc.collect()
    if client is None:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(NO_ENGINE)
        pytest.skip(NO_ENGINE)
    yield client
    client.close()


@pytest.fixture(scope="session")
def image(docker: DockerClient) -> str:
    """The image of the working tree; the layers of the dependencies are made once."""
    try:
        docker.images.build(path=str(ROOT), tag=IMAGE, network_mode="host", rm=True)
    except BuildError as error:
        said = "".join(line.get("stream", "") for line in error.build_log)
        pytest.fail(f"the image cannot be built: {error}\n{said[-2000:]}")
    return IMAGE


@pytest.fixture(scope="session")
def tools_image(docker: DockerClient, image: str) -> str:
    docker.images.build(fileobj=io.BytesIO(TOOLS.encode()), tag=TOOLS_IMAGE, network_mode="host", rm=True)
    return TOOLS_IMAGE


@pytest.fixture(scope="module")
def mark(docker: DockerClient) -> Iterator[str]:
    """Names what one module makes in the engine; afterwards none of it may be there."""
    volumes = {volume.name for volume in docker.volumes.list()}
    mark = secrets.token_hex(4)
    yield mark
    ours = {"label": f"{LABEL}={mark}"}
    assert docker.containers.list(all=True, filters=ours) == []
    assert docker.networks.list(filters=ours) == []
    assert {volume.name for volume in docker.volumes.list()} <= volumes


@pytest.fixture(scope="module")
def fleet(docker: DockerClient, image: str, mark: str) -> Iterator[Fleet]:
    """A seed and one peer for each stage of ``tiny``; its stories follow one another."""
    fleet = Fleet(docker, image, mark)
    try:
        fleet.found("tiny")
        for stage in range(5):
            fleet.volunteer(stage)
        yield fleet
    finally:
        fleet.close()
