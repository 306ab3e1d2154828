"""How fast this machine multiplies: by this spares are ranked (protocol/membership/placement.py).

Measured must be the machine, not the moment. Several threads wait for each other at the end of every product, so on
a busy machine one of them that is not running spoils all: 0.2 and 94 were measured one after the other. So one thread
is measured, by its best of many short products, each of which needs an undisturbed moment only; the threads that the
node may use multiply that.
"""

from __future__ import annotations

import os
import time

import torch

WARM_UP_ROUNDS = 3
"""Caches, pages, clocks, the library's choice of a kernel."""
MEASURED_S = 0.15
ROUNDS_MIN = 5
SIZE_ON_CPU, SIZE_ELSEWHERE = 256, 2048
"""A product takes a third of a millisecond, on a core of 50 billion multiply-adds per second as on a GPU of 25,000."""


def measure_capacity(device: str, threads: int) -> float:
    """Billions of multiply-adds per second that the device does with so many threads. For the compute thread."""
    kind = torch.device(device).type
    if kind != "cpu":
        return _best_rate(device, SIZE_ELSEWHERE)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _best_rate(device, SIZE_ON_CPU) * min(threads, len(os.sched_getaffinity(0)))
    finally:
        torch.set_num_threads(threads_before)


def _best_rate(device: str, size: int) -> float:
    """Of many products of two square matrices."""
    matrix = torch.ones(size, size, device=device)
    for _ in range(WARM_UP_ROUNDS):
        _multiply(matrix)
    seconds: list[float] = []
    ends_at = time.perf_counter() + MEASURED_S
    while len(seconds) < ROUNDS_MIN or time.perf_counter() < ends_at:
        began = time.perf_counter()
        _multiply(matrix)
        seconds.append(time.perf_counter() - began)
    return round(size**3 / min(seconds) / 1e9, 1)


def _multiply(matrix: torch.Tensor) -> None:
    """To the end: the sum is brought back from the device."""
    (matrix @ matrix).sum().item()
