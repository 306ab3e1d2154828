"""Processes of a test, as in tests/swarm."""

from __future__ import annotations

from tests.swarm.conftest import brood, nursery

__all__ = ["brood", "nursery"]
