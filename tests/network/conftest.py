"""The network of one test, and the proof that none of its processes is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.network.households import Internet, check_here, open_internet
from tests.network.swarm import Volunteers
from tests.swarm.conftest import brood
from tests.swarm.processes import Brood
from understudy.protocol.errors import SettingsError

__all__ = ["brood", "internet", "shared_internet", "shared_volunteers"]


@contextmanager
def _internet_or_skip() -> Iterator[Internet]:
    """It takes root, iproute2 and iptables. Without them the test is skipped, but not in CI."""
    try:
        check_here()
    except SettingsError as error:
        (pytest.fail if os.environ.get("CI", "").lower() in ("1", "true") else pytest.skip)(str(error))
    with open_internet() as found:
        yield found


@pytest.fixture
def internet() -> Iterator[Internet]:
    """One for a single test."""
    with _internet_or_skip() as found:
        yield found


@pytest.fixture(scope="module")
def shared_internet() -> Iterator[Internet]:
    """One for all tests of a file."""
    with _internet_or_skip() as found:
        yield found


@pytest.fixture(scope="module")
def shared_volunteers(shared_internet: Internet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volunteers]:
    """A run for all tests of a file, not founded yet; after them no process is left, nor a socket."""
    brood = Brood(tmp_path_factory.mktemp("swarm"))
    volunteers = Volunteers(brood, Path(brood.folder) / "run")
    try:
        yield volunteers
        volunteers.end()
        brood.assert_gone()
    finally:
        brood.kill_all()
