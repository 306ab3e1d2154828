"""Tests: unit (one idea each), sim (a whole swarm of real cores), swarm (real processes)."""
