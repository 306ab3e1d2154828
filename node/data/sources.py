"""The text that a manifest names, opened: in memory (corpus.py), or read as a stream (streamed.py)."""

from __future__ import annotations

from understudy.node.data.access import NO_ACCESS, TextAccess
from understudy.node.data.corpus import Batches, open_corpus
from understudy.node.data.prefetch import ReadAhead
from understudy.node.data.streamed import StreamedBatches
from understudy.node.data.training_data import TrainingData
from understudy.protocol.manifest import RunManifest


def open_data(manifest: RunManifest, access: TextAccess = NO_ACCESS, reading: ReadAhead | None = None) -> TrainingData:
    """The run's text, from where ``access`` lets it be read; with ``reading`` if it is a stream.

    Raises `SettingsError` with what to change, `TextError` if the text is out of reach.
    """
    if manifest.data.source == "huggingface":
        return StreamedBatches(manifest, access, reading or ReadAhead())
    return Batches(open_corpus(manifest.data, access), manifest)
