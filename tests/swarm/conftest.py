"""Every swarm test that starts processes shows that none is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.swarm.nursery import Nursery
from tests.swarm.processes import Brood


@pytest.fixture
def brood(tmp_path: Path) -> Iterator[Brood]:
    """The processes of the test; after it none may be left, nor any of their sockets."""
    found = Brood(tmp_path)
    try:
        yield found
        found.assert_gone()
    finally:
        found.kill_all()


@pytest.fixture
def nursery(brood: Brood) -> Iterator[Nursery]:
    """Starts nodes fast. Ends whoever is left."""
    parent = Nursery(brood)
    try:
        yield parent
    finally:
        parent.close()
