"""The network of one test, and the proof that none of its processes is left."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.network.households import Internet, check_here, open_internet
from tests.swarm.conftest import brood
from understudy.protocol.errors import SettingsError

__all__ = ["brood", "internet"]


@pytest.fixture
def internet() -> Iterator[Internet]:
    """It takes root, iproute2 and iptables. Without them the test is skipped, but not in CI."""
    try:
        check_here()
    except SettingsError as error:
        (pytest.fail if os.environ.get("CI", "").lower() in ("1", "true") else pytest.skip)(str(error))
    with open_internet() as found:
        yield found
