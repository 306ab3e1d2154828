"""Whether this machine's text is the run's: whoever takes S0 must go on with the same data."""

from __future__ import annotations

from contextlib import closing

import msgspec

from understudy.node.data import open_data
from understudy.protocol.errors import SettingsError, TextError
from understudy.protocol.manifest import RunManifest


def describe_data(manifest: RunManifest) -> RunManifest:
    """The founder's manifest with the digest of its text. Raises `SettingsError` or `TextError`."""
    with closing(open_data(manifest)) as data:
        return msgspec.structs.replace(manifest, data=msgspec.structs.replace(manifest.data, digest=data.digest))


def objection_to_driving(manifest: RunManifest) -> str | None:
    """Why this machine cannot take S0, or None if it can."""
    try:
        with closing(open_data(manifest)) as data:
            digest = data.digest
    except (SettingsError, TextError) as error:
        return str(error)
    if manifest.data.digest and digest != manifest.data.digest:
        return f"the text of data.source = {manifest.data.source!r} on this machine is not the founder's"
    return None
