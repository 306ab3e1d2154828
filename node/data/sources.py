"""The text that a manifest names, opened: in memory (corpus.py), or read as a stream (streamed.py)."""

from __future__ import annotations

from understudy.node.data.corpus import Batches, open_corpus
from understudy.node.data.prefetch import ReadAhead
from understudy.node.data.streamed import StreamedBatches
from understudy.node.data.training_data import TrainingData
from understudy.protocol.manifest import RunManifest


def open_data(manifest: RunManifest, reading: ReadAhead | None = None) -> TrainingData:
    """The text that the manifest names, read with ``reading`` if it is a stream.

    Raises `SettingsError` with what to change, `TextError` if the text is out of reach.
    """
    if manifest.data.source == "huggingface":
        return StreamedBatches(manifest, reading or ReadAhead())
    return Batches(open_corpus(manifest.data), manifest)
