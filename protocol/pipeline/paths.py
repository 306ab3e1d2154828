"""Paths: which peers a microbatch visits. A route names stages; its path names a member of each one's group.

A path is chosen when the microbatch is first issued and travels with it, so that the gradient comes back to the
very peers that saved its activations. Issued again, it keeps its path but for members that are gone. Where a
message finds the peer of its path gone, whoever else serves the stage takes its place and enters itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.routing import Route

Path = tuple[PeerId, ...]
"""The edge host that issued the microbatch, then a peer for each stage of its route, in its order. Empty: unknown."""
Members = Callable[[int], Sequence[PeerId]]
"""The living, serving members of a stage's group, in order."""


def choose_path(edge_host: PeerId, route: Route, members: Members, before: Path = ()) -> Path:
    """The path of a microbatch, near the one that it had ``before``. Empty if nobody serves some stage of the route."""
    chosen = [edge_host]
    for position, stage in enumerate(route, start=1):
        serving = members(stage)
        if not serving:
            return ()
        is_kept = len(before) > position and before[position] in serving
        chosen.append(before[position] if is_kept else serving[0])
    return tuple(chosen)


def peer_at(path: Path, route: Route, stage: int) -> PeerId | None:
    """Who holds the stage on this path; None if the path does not say."""
    position = _position(route, stage)
    return path[position] if len(path) > position else None


def joined(path: Path, route: Route, stage: int, peer: PeerId) -> Path:
    """The path with this peer on the stage: it has the microbatch now, whoever was to have it."""
    position = _position(route, stage)
    return (*path[:position], peer, *path[position + 1 :]) if len(path) > position else path


def _position(route: Route, stage: int) -> int:
    return 0 if stage == DRIVER_STAGE else 1 + route.index(stage)
