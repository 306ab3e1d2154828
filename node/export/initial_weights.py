"""The weights that a run begins with: an export of an earlier run, checked, cut into this run's stages, served."""

from __future__ import annotations

from pathlib import Path

import msgspec

from understudy.node.compute.model import blank_stage
from understudy.node.compute.weights import WeightsSnapshot, check_specs, require_finite
from understudy.node.export.folder import EXPORT_FILE, read_record
from understudy.node.export.hugging_face import read_config
from understudy.node.export.shards import load_tensors, ordered_stage
from understudy.protocol.errors import SettingsError, StorageError, WeightsError
from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import InitialSettings, ModelSettings, RunManifest
from understudy.protocol.manifest_reader import MANIFEST_BYTES_MAX
from understudy.protocol.wire.messages import FetchRequest


class InitialWeights:
    """Every stage of a run, from the folder of an export."""

    def __init__(self, folder: Path, model: ModelSettings) -> None:
        """Reads it all once. Raises `SettingsError` if these are no weights for this model."""
        self._folder = folder
        try:
            check_folder(folder, model)
            tensors = load_tensors(folder)
            stages = range(model.block_stages + 1)
            self._stages = [ordered_stage(tensors, model, stage, folder) for stage in stages]
            for stage, weights in enumerate(self._stages):
                _check_stage(weights, model, stage)
        except (StorageError, WeightsError) as error:
            raise SettingsError(f"--initial-weights {folder}: {error}") from error
        self._by_digest = {weights.digest: weights for weights in self._stages}

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(weights.digest for weights in self._stages)

    def find(self, digest: str) -> WeightsSnapshot | None:
        return self._by_digest.get(digest)

    def may_fetch(self, peer: PeerId, request: FetchRequest) -> bool:
        """Anybody may: a member of the run knows the digest, and the weights are no secret."""
        return request.digest in self._by_digest

    def entered(self, manifest: RunManifest, founder: PeerId) -> RunManifest:
        """The manifest of a run that begins with these; of a run that does already, its own. Raises `SettingsError`."""
        if manifest.initial.digests:
            return manifest
        record = read_record(self._folder / EXPORT_FILE)
        origin = (record.run_id, record.step) if record is not None else ("", 0)
        initial = InitialSettings(digests=self.digests, peer=founder, run_id=origin[0], step=origin[1])
        manifest = msgspec.structs.replace(manifest, initial=initial)
        if len(manifest.encode()) > MANIFEST_BYTES_MAX:
            raise SettingsError(
                f"--initial-weights: a manifest of {manifest.stage_count} stages and their digests is longer than "
                f"{MANIFEST_BYTES_MAX} bytes: use fewer model.block_stages, with more layers_per_stage each"
            )
        return manifest

    def check_known(self, manifest: RunManifest) -> None:
        """Raises `SettingsError` unless the run was founded with these."""
        if manifest.initial.digests != self.digests:
            raise SettingsError(
                f"--initial-weights {self._folder}: the run in --dir was not founded with these weights; "
                "name the folder that it was founded with, or choose another --dir"
            )


def check_folder(folder: Path, model: ModelSettings) -> None:
    """Raises `SettingsError` unless this is a model like the run's, as far as its config.json says.

    Equal but for the cut into stages and the context, which has no weights.
    """
    theirs = read_config(folder).model_settings()
    layers = model.block_stages * model.layers_per_stage
    ours = msgspec.structs.replace(model, block_stages=layers, layers_per_stage=1, context_length=theirs.context_length)
    for name in ModelSettings.__struct_fields__:
        if getattr(theirs, name) != getattr(ours, name):
            what = "layers" if name == "block_stages" else f"model.{name}"
            raise SettingsError(
                f"--initial-weights {folder}: its {what} is {getattr(theirs, name)}, the run's is {getattr(ours, name)}"
            )


def _check_stage(weights: WeightsSnapshot, model: ModelSettings, stage: int) -> None:
    check_specs(weights.specs, blank_stage(model, stage))
    for spec, tensor in zip(weights.specs, weights.tensors, strict=True):
        require_finite(tensor, spec.name)
