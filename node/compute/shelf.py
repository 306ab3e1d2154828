"""What others may fetch here: donations and images of our stage, exporters' copies, and kept copies of others' stages.

The compute thread fills and empties it; the event loop only looks things up.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from understudy.node.compute.images import Images
from understudy.node.compute.moments import moments_of
from understudy.node.compute.optimizer import StageOptimizer
from understudy.node.compute.weights import HeldCopy, WeightsSnapshot, snapshot
from understudy.protocol.wire.fields import Part

Described = tuple[tuple[int, str], ...]
"""Of each part its payload's bytes and its digest."""


class Shelf:
    """All of them, by digest. What is here is not written to."""

    def __init__(self) -> None:
        self.snapshots: dict[str, WeightsSnapshot] = {}
        """Our weights as they were at one moment, for claimants."""
        self.images = Images()
        self.kept: dict[str, WeightsSnapshot] = {}
        """Copies of others' stages. They stay when our own stage goes."""
        self._leases: dict[int, HeldCopy] = {}
        """Our weights as exporters leased them, by step."""

    def add_snapshot(self, module: nn.Module) -> tuple[int, str]:
        """Hold the module's weights as they are now."""
        held = snapshot(module)
        self.snapshots[held.digest] = held
        return held.payload_bytes, held.digest

    def renew_images(self, parts: Sequence[Part], module: nn.Module, optimizer: StageOptimizer) -> Described:
        """Show the next image of each of these parts."""
        return _described(
            [
                self.images.show(moments_of(module, optimizer))
                if part == "moments"
                else self.images.renew(part, module)
                for part in parts
            ]
        )

    def release_snapshot(self, digest: str) -> None:
        """Free a snapshot or an image. A snapshot and an image of the same weights are freed apart, in this order."""
        if self.snapshots.pop(digest, None) is None:
            self.images.release(digest)

    def lease(self, step: int, module: nn.Module) -> None:
        """A plain copy: this is all that training waits for when somebody exports."""
        self._leases[step] = HeldCopy(module)

    def digest_next(self, step: int) -> tuple[int, str] | None:
        """One more digest of the leased copy; its size and digest after the last."""
        copy = self._leases.get(step)
        whole = copy.digest_next() if copy is not None else None
        return None if whole is None else (whole.payload_bytes, whole.digest)

    def release_lease(self, step: int) -> None:
        self._leases.pop(step, None)

    def release(self) -> None:
        """Our stage goes: of what is here only the copies of others' stages stay."""
        self.snapshots.clear()
        self.images.clear()
        self._leases.clear()

    def find(self, digest: str) -> WeightsSnapshot | None:
        """What others may fetch under this digest. For the event loop."""
        found = self.snapshots.get(digest) or self.images.find(digest) or self.kept.get(digest)
        whole = (copy.whole for copy in tuple(self._leases.values()))
        leased = (snapshot for snapshot in whole if snapshot is not None and snapshot.digest == digest)
        return found or next(leased, None)

    def find_difference(self, base: str, digest: str) -> WeightsSnapshot | None:
        """What image ``digest`` has more than image ``base``, in bfloat16, while we have it. For the event loop."""
        return self.images.find_difference(base, digest)


def _described(snapshots: Sequence[WeightsSnapshot]) -> Described:
    return tuple((held.payload_bytes, held.digest) for held in snapshots)
