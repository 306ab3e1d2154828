"""Which stages a microbatch visits, in which order, and who is whose neighbour.

A route lists the block stages in the order of the forward pass; every route begins and ends at
S0. Out-of-order routes are CheckFree+ (arXiv 2506.15461, section 4.3): on odd microbatches the
first two and the last two block stages change places, so that each learns to stand in for the other.
"""

from __future__ import annotations

from functools import lru_cache

from understudy.protocol.ids import DRIVER_STAGE

Route = tuple[int, ...]


@lru_cache(maxsize=64)
def routes(method: str, block_stages: int) -> tuple[Route, ...]:
    """The routes that microbatches take in turn: microbatch ``index`` takes ``index % len(routes)``.

    Under checkfree+ every odd microbatch takes a swapped route. With one block stage there is nothing to
    swap, with two there is one pair. With three the two pairs overlap in S2, so odd microbatches swap
    the first pair and the last pair by turns.
    """
    in_order = tuple(range(1, block_stages + 1))
    if method != "checkfree+" or block_stages < 2:
        return (in_order,)
    if block_stages == 3:
        return (in_order, _swap(in_order, 0), in_order, _swap(in_order, 1))
    swapped = _swap(in_order, 0)
    return (in_order, _swap(swapped, block_stages - 2) if block_stages > 3 else swapped)


def _swap(path: Route, position: int) -> Route:
    """The route with the stages at ``position`` and behind it exchanged."""
    return (*path[:position], path[position + 1], path[position], *path[position + 2 :])


@lru_cache(maxsize=4096)
def partners(method: str, block_stages: int, stage: int) -> frozenset[int]:
    """The stages that change places with ``stage`` on some route, and so have learned to stand in for it."""
    in_order, *swapped = routes(method, block_stages)
    return frozenset(path[in_order.index(stage)] for path in swapped if path[in_order.index(stage)] != stage)


def route(method: str, block_stages: int, index: int) -> Route:
    """The block stages that microbatch ``index`` visits, in forward order."""
    choices = routes(method, block_stages)
    return choices[index % len(choices)]


def following(path: Route, stage: int) -> int:
    """The stage after ``stage`` in the forward pass; S0 after the last and, for S0, the first."""
    if stage == DRIVER_STAGE:
        return path[0]
    position = path.index(stage) + 1
    return path[position] if position < len(path) else DRIVER_STAGE


def preceding(path: Route, stage: int) -> int:
    """The stage before ``stage`` in the forward pass; S0 before the first and, for S0, the last."""
    if stage == DRIVER_STAGE:
        return path[-1]
    position = path.index(stage)
    return path[position - 1] if position else DRIVER_STAGE


@lru_cache(maxsize=4096)
def neighbours(method: str, block_stages: int, stage: int) -> frozenset[int]:
    """All stages that exchange activations or gradients with ``stage`` on some route."""
    found: set[int] = set()
    for path in routes(method, block_stages):
        found |= {following(path, stage), preceding(path, stage)}
    return frozenset(found - {stage})
