"""Whether this machine's text is the run's, and can be read: whoever takes S0 must go on with the same data."""

from __future__ import annotations

from contextlib import closing

import msgspec

from understudy.node.data.access import NO_ACCESS, TextAccess
from understudy.node.data.prefetch import ReadAhead
from understudy.node.data.sources import open_data
from understudy.node.data.training_data import TrainingData
from understudy.protocol.errors import SettingsError, TextError
from understudy.protocol.manifest import RunManifest


class DriverText:
    """The run's text on this machine: opened when S0 is about to be claimed, then read by whoever drives."""

    def __init__(self, manifest: RunManifest, access: TextAccess = NO_ACCESS) -> None:
        self._manifest, self._access = manifest, access
        self._data: TrainingData | None = None
        self._reading = ReadAhead()

    def failure(self, step: int) -> str | None:
        """Why the text of a step and of the next cannot be read, or None if it can. Not while somebody drives."""
        try:
            self.open().prepare(step)
        except (SettingsError, TextError) as error:
            self.release()
            return str(error)
        return None

    def open(self) -> TrainingData:
        """The text, opened if it is not. Raises `SettingsError`, also if it is not the founder's, or `TextError`."""
        if self._data is None:
            self._data = open_data(self._manifest, self._access, self._reading)
            require_founders(self._data, self._manifest)
        return self._data

    def release(self) -> None:
        """Let go of it, for now."""
        self.close()
        self._data, self._reading = None, ReadAhead()

    def close(self) -> None:
        """From any thread: let go of it. Whoever waits for it fails."""
        if self._data is not None:
            self._data.close()
        self._reading.close()


def require_founders(data: TrainingData, manifest: RunManifest) -> None:
    """Raises `SettingsError` unless it is the text that the run was founded with."""
    if manifest.data.digest and data.digest != manifest.data.digest:
        raise SettingsError(f"the text of data.source = {manifest.data.source!r} on this machine is not the founder's")


def describe_data(manifest: RunManifest, access: TextAccess = NO_ACCESS) -> RunManifest:
    """The founder's manifest with the digest of its text. Raises `SettingsError` or `TextError`."""
    with closing(open_data(manifest, access)) as data:
        described = msgspec.structs.replace(manifest.data, digest=data.digest, tokenizer_digest=data.tokenizer_digest)
    return msgspec.structs.replace(manifest, data=described)


def objection_to_driving(manifest: RunManifest, access: TextAccess = NO_ACCESS) -> str | None:
    """Why this machine cannot take S0, or None if it can."""
    try:
        with closing(open_data(manifest, access)) as data:
            require_founders(data, manifest)
    except (SettingsError, TextError) as error:
        return str(error)
    return None
