"""Why a stage is no longer ours, for people: what an owner says in `peer.retired`, a claimant in `claim.withdrawn`."""

from __future__ import annotations


def held_by_another(stage: int, incarnation: int | None = None) -> str:
    held = f"S{stage} is held by another peer"
    return held if incarnation is None else f"{held} under {incarnation}"


def held_after_us(stage: int, incarnation: int) -> str:
    return f"S{stage} was held by another peer under {incarnation}"
