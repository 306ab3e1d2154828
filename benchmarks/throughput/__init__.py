"""Tokens per second of the swarm beside what else could train the same model on the same cores."""
