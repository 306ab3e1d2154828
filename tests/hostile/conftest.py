"""Every hostile test that starts processes shows that none is left."""

from tests.swarm.conftest import brood, nursery

__all__ = ["brood", "nursery"]
