"""Beginning a run, or going on with one: its text is read, and the weights that it begins with."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from understudy.bootstrap.found import load_manifest, reload_manifest
from understudy.node.driving_data import describe_data
from understudy.node.initial_weights import InitialWeights
from understudy.protocol.manifest import RunManifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Founding:
    """What a founder asked for."""

    source: str
    """A preset, or the path of a run.toml."""
    total_steps: int | None = None
    folder: Path | None = None
    """Where a run that was founded before is known from."""
    initial_weights: Path | None = None
    """An export of an earlier run to begin with."""


def begin(wish: Founding) -> tuple[RunManifest, InitialWeights | None]:
    """The manifest of a new run, or of the one that the folder knows, and what the seed serves. Raises `SettingsError`.

    A new run's initial weights are not entered yet: that takes the founder's PeerID.
    """
    known = reload_manifest(wish.folder) if wish.folder is not None else None
    manifest = known or describe_data(load_manifest(wish.source, wish.total_steps))
    if wish.initial_weights is None:
        if manifest.initial.digests:
            logger.warning(
                "this run began with weights that this seed does not serve: name their folder with --initial-weights"
            )
        return manifest, None
    initial = InitialWeights(wish.initial_weights, manifest.model)
    if known is not None:
        initial.check_known(known)
    return manifest, initial
