"""Swarms of real processes over real hivemind."""
