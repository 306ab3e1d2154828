"""Weights in files: of an export, cut as the run's stages, or as transformers wrote them, in one file or many."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from understudy.node.compute.model import blank_stage
from understudy.node.compute.weights import WeightsSnapshot, described
from understudy.protocol.errors import SettingsError, StorageError
from understudy.protocol.manifest import ModelSettings

INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"


class ShardIndex(msgspec.Struct, frozen=True):
    """model.safetensors.index.json."""

    weight_map: dict[str, str]


def shard_name(stage: int, stage_count: int) -> str:
    """The file of a stage in an export."""
    return f"model-{stage + 1:05d}-of-{stage_count:05d}.safetensors"


def stage_names(settings: ModelSettings, stage: int) -> list[str]:
    """The stage's tensors in the order that its digest is of."""
    return [name for name, _ in blank_stage(settings, stage).named_parameters()]


def read_stage(folder: Path, settings: ModelSettings, stage: int, stage_count: int) -> WeightsSnapshot:
    """A stage of a folder whose shards are cut as the run's stages. Raises `StorageError`."""
    path = folder / shard_name(stage, stage_count)
    return ordered_stage(load_shard(path), settings, stage, path)


def load_shard(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard. Raises `StorageError`."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from error


def ordered_stage(tensors: Mapping[str, Tensor], settings: ModelSettings, stage: int, source: Path) -> WeightsSnapshot:
    """The stage's tensors in their order, with their digests. Raises `StorageError` if one is missing."""
    names = stage_names(settings, stage)
    missing = [name for name in names if name not in tensors]
    if missing:
        raise StorageError(f"{source} lacks {missing[0]}: it is damaged, or of another model")
    return described({name: tensors[name] for name in names})


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model's folder, by name, in float32. Raises `SettingsError` and `StorageError`."""
    names = _files(folder)
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= load_shard(folder / name)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _files(folder: Path) -> list[str]:
    """The one file that has it all, which transformers reads first, too; or those that the index names."""
    path = folder / INDEX_FILE
    if (folder / SINGLE_FILE).exists():
        return [SINGLE_FILE]
    try:
        index = msgspec.json.decode(path.read_bytes(), type=ShardIndex)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: is {folder} an export that was finished? ({error})") from error
    names = sorted(set(index.weight_map.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise StorageError(f"{path} names {outside[0]}, which lies outside of the folder")
    return names
