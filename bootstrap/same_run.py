"""Whether a founder who comes back asks for the run that is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from understudy.protocol.manifest import RunManifest

ENTERED_AT_FOUNDING = {"founding_nonce", "protocol_version", "data.digest", "data.tokenizer_digest"}
"""What nobody asks for: it is made or measured when a run is founded. So is all of ``initial``."""
LENGTH = "step.total_steps"


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting in which two manifests differ."""

    setting: str
    there: object
    asked: object


def first_difference(there: RunManifest, asked: RunManifest, *, is_length_asked: bool) -> Difference | None:
    """The first setting, in the order of the manifest, in which a run is not what is asked for; None: it is.

    ``is_length_asked``: otherwise nothing was said of how many steps it should have.
    """
    found, wanted = _settings(there), _settings(asked)
    for name, value in wanted.items():
        if name not in ENTERED_AT_FOUNDING and (is_length_asked or name != LENGTH) and found[name] != value:
            return Difference(name, found[name], value)
    return None


def _settings(manifest: RunManifest) -> dict[str, Any]:
    """Every setting by its name in a run.toml."""
    settings: dict[str, Any] = {}
    for name, value in msgspec.structs.asdict(manifest).items():
        if name == "initial":
            continue
        if isinstance(value, msgspec.Struct):
            settings |= {f"{name}.{inner}": setting for inner, setting in msgspec.structs.asdict(value).items()}
        else:
            settings[name] = value
    return settings
