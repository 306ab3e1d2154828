"""Processes of their own for what is compared."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Found = TypeVar("Found")


def in_fresh_process(measure: Callable[[], Found]) -> Found:
    """So that no contender finds another one's threads and memory. Raises what ``measure`` raises."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure).result()
