"""Beginning a run, or going on with one: its text is read, and the weights that it begins with."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import msgspec

from understudy.bootstrap.founding import load_run, reload_manifest, with_steps
from understudy.bootstrap.same_run import LENGTH, first_difference
from understudy.node.data.access import founders_access
from understudy.node.data.data_check import describe_data
from understudy.node.export.initial_weights import InitialWeights
from understudy.node.ui.telemetry import logger as told
from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import RunManifest
from understudy.protocol.presets import PRESETS
from understudy.protocol.run_toml import RunToml

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Founding:
    """What a founder asked for."""

    source: str | None
    """A preset, or the path of a run.toml; None: whatever run the folder knows."""
    total_steps: int | None = None
    folder: Path | None = None
    """Where a run that was founded before is known from."""
    initial_weights: Path | None = None
    """An export of an earlier run to begin with."""
    is_open: bool = False
    """Whoever finds the run may take part."""


def begin(wish: Founding) -> tuple[RunManifest, InitialWeights | None]:
    """The manifest of a new run, or of the one that the folder knows, and what the seed serves. Raises `SettingsError`.

    A new run's initial weights are not entered yet: that takes the founder's PeerID.
    """
    asked = None if wish.source is None else load_run(wish.source, wish.total_steps)
    known = reload_manifest(wish.folder) if wish.folder is not None else None
    manifest = _new(asked, wish) if known is None else _again(known, asked.manifest if asked else None, wish)
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


def _new(asked: RunToml | None, wish: Founding) -> RunManifest:
    if asked is None:
        raise SettingsError(
            f"there is no run to go on with: name a preset ({', '.join(PRESETS)}) or a run.toml, "
            "or with --dir the folder of a run that was founded before"
        )
    return describe_data(_admitting(asked.manifest, wish), founders_access(asked.files))


def _admitting(manifest: RunManifest, wish: Founding) -> RunManifest:
    """With --open whatever else was asked for."""
    return msgspec.structs.replace(manifest, admission="open") if wish.is_open else manifest


def _again(known: RunManifest, asked: RunManifest | None, wish: Founding) -> RunManifest:
    """The run that is there, if it is the one that is asked for. Raises `SettingsError`."""
    wanted = _admitting(asked or with_steps(known, wish.total_steps), wish)
    difference = first_difference(known, wanted, is_length_asked=wish.total_steps is not None)
    if difference is not None:
        asker = "--steps" if wish.total_steps is not None and difference.setting == LENGTH else wish.source
        if wish.is_open and difference.setting == "admission":
            asker = "--open"
        raise SettingsError(
            f"{wish.folder} holds the run {known.run_id()}, "
            f"whose {difference.setting} is {_spelled(difference.there)}; "
            f"{asker} asks for {_spelled(difference.asked)}: "
            "choose another --dir for a new run, or leave the preset and --steps out to go on with this one"
        )
    told.info("going on with the run %s of %s", known.run_id(), wish.folder)
    return known


def _spelled(value: object) -> str:
    """As in a run.toml."""
    return msgspec.json.encode(value).decode()
