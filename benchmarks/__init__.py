"""Measurements. Never part of the tests; each prints what it measured and how to read it."""
