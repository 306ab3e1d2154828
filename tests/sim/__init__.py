"""A seeded discrete-event swarm that runs the real core."""
