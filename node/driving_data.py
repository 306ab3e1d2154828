"""Whether this machine's text is the run's: whoever takes S0 must go on with the same data."""

from __future__ import annotations

import msgspec

from node.data import Batches, open_corpus
from protocol.errors import SettingsError
from protocol.manifest import RunManifest


def describe_data(manifest: RunManifest) -> RunManifest:
    """The founder's manifest with the digest of its text. Raises `SettingsError`."""
    corpus = open_corpus(manifest.data)
    Batches(corpus, manifest)
    return msgspec.structs.replace(manifest, data=msgspec.structs.replace(manifest.data, digest=corpus.digest))


def objection_to_driving(manifest: RunManifest) -> str | None:
    """Why this machine cannot take S0, or None if it can."""
    try:
        corpus = open_corpus(manifest.data)
        Batches(corpus, manifest)
    except SettingsError as error:
        return str(error)
    if manifest.data.digest and corpus.digest != manifest.data.digest:
        return f"the text of data.source = {manifest.data.source!r} on this machine is not the founder's"
    return None
