"""What the records of a run say about the swarm, for people who hold no stage.

Pure: records in, a `SwarmView` out. It judges tenures as peers do (placement.py), but hears nobody: what it
knows is as old as the records, which outlive their author by `record_lifetime_s`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec

from understudy.protocol.ids import DRIVER_STAGE
from understudy.protocol.manifest import RunManifest
from understudy.protocol.membership.placement import best_tenure, rank_spares
from understudy.protocol.recovery.quorum import majority_of, too_few
from understudy.protocol.wire.contact import Reachability
from understudy.protocol.wire.records import (
    PROGRESS_KEY,
    SPARES_KEY,
    AnyRecord,
    OfferRecord,
    ProgressRecord,
    SpareRecord,
    StageRecord,
    stage_key,
    weights_key,
)

OwnerState = Literal["serving", "recovering", "lost", "left", "unowned"]
SwarmState = Literal["training", "waiting", "done", "silent"]


@dataclass(frozen=True, slots=True)
class Posted:
    """A record as it lies in the DHT."""

    record: AnyRecord
    expires_in_s: float


class StageView(msgspec.Struct, frozen=True):
    """One stage and its best tenure."""

    stage: int
    state: OwnerState
    """``lost``: its neighbours offer their weights since its owner's last word; ``unowned``: nobody speaks of it."""
    peer: str | None = None
    incarnation: int = 0
    step: int = 0
    record_age_s: float | None = None
    """Since the owner stored its record; it does so every `record_refresh_s`."""
    microbatches_per_second: float | None = None
    """What its owner can do, measured at work."""
    reachability: Reachability = "unknown"
    """How others get to its owner, in its own words."""
    copied: int = 0
    """The step as of which somebody holds a copy of it, when its owner stored its record; 0: nobody does."""


class SpareView(msgspec.Struct, frozen=True):
    """A peer that waits for a stage."""

    peer: str
    capacity: float
    reachability: Reachability = "unknown"


class SwarmView(msgspec.Struct, frozen=True):
    """The swarm, as far as its records tell."""

    run_id: str
    name: str
    state: SwarmState
    step: int
    total_steps: int
    """0: until stopped."""
    loss: float | None
    tokens: int | None
    tokens_per_second: float | None
    stages: tuple[StageView, ...]
    spares: tuple[SpareView, ...]
    """The most capable first."""
    holes: tuple[int, ...]
    """Stages that nobody holds: neither served nor being recovered."""
    waits_for: str | None
    """What the swarm waits for, in words; None while it trains, and when it is done."""
    why_no_loss: str = ""
    """Why S0 named no loss for its last step."""


def keys_of_view(manifest: RunManifest) -> list[str]:
    """The keys to read, below the run's prefix."""
    stages = range(manifest.stage_count)
    return [*map(stage_key, stages), *map(weights_key, stages), SPARES_KEY, PROGRESS_KEY]


def overview(manifest: RunManifest, posted: Iterable[Posted]) -> SwarmView:
    """Put the records together."""
    all_posted = list(posted)
    stages = tuple(_stage_view(stage, manifest, all_posted) for stage in range(manifest.stage_count))
    spares = _spares(stages, all_posted)
    progress = _progress(all_posted)
    step = max([view.step for view in stages] + ([progress.step] if progress else []))
    holes = tuple(view.stage for view in stages if view.state not in ("serving", "recovering"))
    state = _state_of(manifest, stages, step, has_records=bool(all_posted))
    shortage = _shortage(manifest, stages, step) if state == "waiting" else ""
    return SwarmView(
        run_id=manifest.run_id(),
        name=manifest.name,
        state=state,
        step=step,
        total_steps=manifest.step.total_steps,
        loss=progress.loss if progress else None,
        tokens=progress.tokens if progress else None,
        tokens_per_second=progress.tokens_per_second if progress else None,
        stages=stages,
        spares=spares,
        holes=holes,
        waits_for=shortage or _waits_for(state, stages, spares),
        why_no_loss=progress.why_no_loss if progress else "",
    )


def _stage_view(stage: int, manifest: RunManifest, all_posted: list[Posted]) -> StageView:
    expiries = {
        posted.record: posted.expires_in_s
        for posted in all_posted
        if isinstance(posted.record, StageRecord) and posted.record.stage == stage
    }
    record = best_tenure(expiries)
    if record is None:
        return _ownerless(stage, all_posted)
    expires_in_s = expiries[record]
    assert record.state != "withdrawn", "void tenures are not among the best"
    state: OwnerState = record.state
    if state != "left" and _is_mourned(record, expires_in_s, all_posted):
        state = "lost"
    age_s = max(0.0, manifest.timing.record_lifetime_s - expires_in_s)
    pace = record.microbatches_per_second or None
    told = (record.peer, record.incarnation, record.step, age_s, pace, record.contact.reachability, record.copied)
    return StageView(stage, state, *told)


def _ownerless(stage: int, all_posted: list[Posted]) -> StageView:
    """No owner's record is left: lost, if one is void or neighbours offer weights for it, else perhaps never owned."""
    offers = [posted.record for posted in all_posted if isinstance(posted.record, OfferRecord)]
    void = [posted.record for posted in all_posted if isinstance(posted.record, StageRecord)]
    incarnations = [offer.lost_incarnation for offer in offers if offer.for_stage == stage and not offer.is_taken_back]
    incarnations += [record.incarnation for record in void if record.stage == stage]
    return StageView(stage, "lost", incarnation=max(incarnations)) if incarnations else StageView(stage, "unowned")


def _is_mourned(record: StageRecord, expires_in_s: float, all_posted: list[Posted]) -> bool:
    """A witness offers its weights for the stage, and the owner has not stored its record since."""
    return any(
        isinstance(posted.record, OfferRecord)
        and not posted.record.is_taken_back
        and posted.record.for_stage == record.stage
        and posted.record.lost_incarnation >= record.incarnation
        and posted.expires_in_s > expires_in_s
        for posted in all_posted
    )


def _spares(stages: tuple[StageView, ...], all_posted: list[Posted]) -> tuple[SpareView, ...]:
    """Whoever waits. A peer that has just taken a stage is none, whatever its older record says."""
    owners = {view.peer for view in stages if view.state in ("serving", "recovering")}
    found = {
        posted.record.peer: posted.record
        for posted in all_posted
        if isinstance(posted.record, SpareRecord) and posted.record.peer not in owners
    }
    return tuple(
        SpareView(peer, found[peer].capacity, found[peer].contact.reachability) for peer in rank_spares(found.values())
    )


def _progress(all_posted: list[Posted]) -> ProgressRecord | None:
    """The furthest step; of two words on one step, the one that knows the loss."""
    records = [posted.record for posted in all_posted if isinstance(posted.record, ProgressRecord)]
    return max(records, key=lambda record: (record.step, record.loss is not None), default=None)


def _state_of(manifest: RunManifest, stages: tuple[StageView, ...], step: int, *, has_records: bool) -> SwarmState:
    if 0 < manifest.step.total_steps <= step:
        return "done"
    if not has_records:
        return "silent"
    return "training" if all(view.state == "serving" for view in stages) else "waiting"


def _waits_for(state: SwarmState, stages: tuple[StageView, ...], spares: tuple[SpareView, ...]) -> str | None:
    if state == "silent":
        return "any sign of life: no peer of the run publishes anything; it has ended, or its peers are gone"
    if state != "waiting":
        return None
    told = [f"S{view.stage} to be recovered" for view in stages if view.state == "recovering"]
    vacant = [view.stage for view in stages if view.state not in ("serving", "recovering")]
    if vacant:
        names = ", ".join(f"S{stage}" for stage in vacant)
        told.append(f"{'an owner' if len(vacant) == 1 else 'owners'} of {names} ({_help_on_its_way(vacant, spares)})")
    return " and ".join(told)


def _shortage(manifest: RunManifest, stages: tuple[StageView, ...], step: int) -> str:
    """What to say when a stage of a swarm that trained is lost, and too few owners are left for a recovery. Else ""."""
    there = sum(view.state == "serving" for view in stages)
    is_short = step > 0 and 0 < there < majority_of(len(stages))
    return too_few(there, len(stages), manifest.recovery.without_majority_after_s) if is_short else ""


def _help_on_its_way(vacant: list[int], spares: tuple[SpareView, ...]) -> str:
    missing = len(vacant) - len(spares)
    if missing > 0:
        return f"start {missing} more {'node' if missing == 1 else 'nodes'}"
    if vacant == [DRIVER_STAGE]:
        return "a spare that has the run's text takes it"
    return "a spare takes it" if len(vacant) == 1 else "spares take them"
