"""Who holds copies of which stage. Pure functions: every owner chooses its own holders, without a word to others.

Of S0, the parts lie with the stages where they are used (CheckFree+), and both with a spare that may take S0.
A block stage's copy lies with a spare, who has nothing else to do with its memory and its line, and would need it
most; where there are too few, with a block stage that is not its neighbour, so that two adjacent losses cost no copy.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.manifest import RunManifest
from understudy.protocol.membership.placement import near_holders
from understudy.protocol.wire.fields import Part

DRIVER_PARTS: tuple[Part, ...] = ("embedding", "head")
STAGES_PER_SPARE = 2
"""Block stages that one spare follows at most."""


def keepers_of(part: Part, manifest: RunManifest) -> tuple[int, ...]:
    """The stages that hold copies of a part of S0, in order of their distance from where it is used.

    The state of its optimizer lies where its embedding does.
    """
    upwards = range(1, manifest.model.block_stages + 1)
    near, far = (upwards[::-1], upwards) if part == "head" else (upwards, upwards[::-1])
    alternating = (stage for pair in zip(near, far, strict=True) for stage in pair)
    return tuple(dict.fromkeys(alternating))[: manifest.recovery.edge_keepers]


def keeping_stages(manifest: RunManifest) -> frozenset[int]:
    """The stages that hold copies of a part of S0."""
    return frozenset().union(
        *(keepers_of(part, manifest) for part in DRIVER_PARTS if manifest.recovery.edge_copy_every)
    )


def may_hold(stage: int, manifest: RunManifest) -> tuple[int, ...]:
    """The stages whose owners may have a copy of any part of this stage to give."""
    if stage == DRIVER_STAGE:
        return tuple(sorted(keeping_stages(manifest)))
    return near_holders(stage, manifest.model.block_stages) if manifest.recovery.standby_every else ()


def spare_for(stage: int, spares: Sequence[PeerId]) -> PeerId | None:
    """The spare that follows a block stage: one after the other in turn, `STAGES_PER_SPARE` each. None: too few."""
    if not spares or (stage - 1) // len(spares) >= STAGES_PER_SPARE:
        return None
    return spares[(stage - 1) % len(spares)]


def spare_for_driver(spares: Sequence[PeerId], block_stages: int, current: Collection[PeerId]) -> tuple[PeerId, ...]:
    """The spare that has both parts of S0: whoever has them already, else the one with the fewest block stages.

    Not the first, which follows S1: it can bring one of them back only.
    """
    faithful = [spare for spare in spares if spare in current]
    return tuple(faithful[:1] or spares[: block_stages + 1][-1:])


def choose_holders(
    stage: int, copies: int, spares: Sequence[PeerId], owners: Sequence[PeerId], current: Collection[PeerId]
) -> tuple[PeerId, ...]:
    """The holders of a block stage: one spare, then owners, ``copies`` in all if there are as many.

    ``spares`` and ``owners`` are those that would take it, the likeliest first. Who holds it already goes on: to
    change costs a full copy, and for as long there is only an old one.
    """
    faithful = next((spare for spare in spares if spare in current), None)
    spare = faithful or spare_for(stage, spares)
    likeliest = sorted(owners, key=lambda owner: owner not in current)
    return tuple(([spare] if spare is not None else []) + likeliest)[:copies]
