"""The images of our stage's parts: what its holders have of them, or fetch next.

Of weights the first image is an exact copy; each later one follows the last by a difference in bfloat16
(node/compute/standby.py), and holders that have the last need no more than that. Of the optimizer's moments every
image is whole. An image may be released while it is still what the next one follows: it takes no memory twice.
"""

from __future__ import annotations

from torch import nn

from understudy.node.compute.parts import PART_NAMES
from understudy.node.compute.standby import difference, follow
from understudy.node.compute.weights import WeightsSnapshot, described, is_finite, selected, snapshot
from understudy.protocol.wire.fields import Part


class Images:
    """Of one stage. Memory on the CPU: of each part the last image and, until it is released, the way to it."""

    def __init__(self) -> None:
        self._last: dict[Part, WeightsSnapshot] = {}
        """Of weights: what the next difference is against."""
        self._shown: dict[str, WeightsSnapshot] = {}
        """What others may fetch, by digest."""
        self._ways: dict[str, tuple[str, WeightsSnapshot]] = {}
        """To a shown image: the digest of the one before, and the difference."""

    def renew(self, part: Part, module: nn.Module) -> WeightsSnapshot:
        """The image of a part of the module's weights as they are now. If nothing moved it is the last one again.

        A difference or an image with NaN or Inf would spoil all that follow: then, and as long as the weights hold
        them, the image is an exact copy again and no difference leads to it. Holders' receivers refuse NaN and Inf;
        once the weights are finite again, so is the next image.
        """
        last = self._last.get(part)
        new = self._followed(part, last, module) if last is not None else None
        image = new or snapshot(module, PART_NAMES[part])
        self._last[part] = image
        return self.show(image)

    def _followed(self, part: Part, last: WeightsSnapshot, module: nn.Module) -> WeightsSnapshot | None:
        """The image after ``last``; None if it would not be finite."""
        weights = [parameter for _, parameter in selected(module, PART_NAMES[part])]
        lacking = difference(weights, last.tensors)
        tensors = follow(last.tensors, lacking)
        if not all(map(is_finite, tensors)):
            return None
        names = [spec.name for spec in last.specs]
        image = described(dict(zip(names, tensors, strict=True)))
        if image.digest == last.digest:
            return last
        self._ways[image.digest] = last.digest, described(dict(zip(names, lacking, strict=True)))
        return image

    def show(self, image: WeightsSnapshot) -> WeightsSnapshot:
        """Let others fetch this image."""
        self._shown[image.digest] = image
        return image

    def release(self, digest: str) -> None:
        """Nobody fetches this image any more, nor the difference to it."""
        self._shown.pop(digest, None)
        self._ways.pop(digest, None)

    def clear(self) -> None:
        """The stage goes."""
        self._last.clear()
        self._shown.clear()
        self._ways.clear()

    def find(self, digest: str) -> WeightsSnapshot | None:
        """The image of this digest. For the event loop."""
        return self._shown.get(digest)

    def find_difference(self, base: str, digest: str) -> WeightsSnapshot | None:
        """The way from image ``base`` to image ``digest``, if it is known. For the event loop."""
        known, lacking = self._ways.get(digest, ("", None))
        return lacking if known == base else None
