"""What the run may read on this machine: nothing but what the person at it names.

A manifest comes from a stranger. It says what the text is, by a digest or by a name of the Hugging Face hub; where it
lies here, and whether the hub may be asked, is said on this machine's command line (docs/decisions, 28).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import DataSettings
from understudy.protocol.run_toml import OwnFiles

TOKEN_VARIABLE = "UNDERSTUDY_HUB_TOKEN"
"""An access token of the hub, if one is to be shown. Not an option: everybody on a machine can read command lines."""


@dataclass(frozen=True, slots=True)
class TextAccess:
    """What this machine's person lets the run read."""

    texts: tuple[Path, ...] = ()
    """Where the run's text lies here: files and folders, or the one folder of a dataset."""
    tokenizer: Path | None = None
    """The run's tokenizer.json, or the folder that holds it."""
    may_ask_hub: bool = False
    """Names that the manifest has may be looked up on the hub."""
    hub_token: str | None = None
    """Shown to the hub. None: none is, not even the one that lies on this machine."""

    @property
    def token(self) -> str | bool:
        """As the hub's libraries take it: None would mean the machine's own to them."""
        return self.hub_token or False

    def require_hub(self, what: str) -> None:
        """Raises `SettingsError` unless the hub may be asked for it."""
        if not self.may_ask_hub:
            raise SettingsError(
                f"{what} comes from the Hugging Face hub, and the founder chose it: allow this machine to ask for it "
                "with --allow-hub"
            )

    def require_texts(self, digest: str) -> tuple[Path, ...]:
        """Where the text lies. Raises `SettingsError` if nobody said it."""
        if not self.texts:
            raise SettingsError(
                f"the run's text is the founder's own (digest {digest[:12] or 'unknown'}..): ask the founder for it, "
                "and say where it lies on this machine with --data"
            )
        return self.texts

    def require_tokenizer(self) -> Path:
        """Where the tokenizer lies. Raises `SettingsError` if nobody said it."""
        if self.tokenizer is None:
            raise SettingsError(
                "the run's tokenizer is a file of the founder's own: ask the founder for it, and say where it lies on "
                "this machine with --tokenizer"
            )
        return self.tokenizer


NO_ACCESS = TextAccess()


def access_by_options(texts: Sequence[Path], tokenizer: Path | None, *, may_ask_hub: bool) -> TextAccess:
    """What a command line and the environment allow."""
    return TextAccess(tuple(texts), tokenizer, may_ask_hub, os.environ.get(TOKEN_VARIABLE) or None)


def founders_access(files: OwnFiles) -> TextAccess:
    """A founder's own run.toml: naming a file or the hub in it is saying yes."""
    tokenizer = _here(files.tokenizer) if files.tokenizer else None
    return access_by_options([_here(text) for text in files.texts], tokenizer, may_ask_hub=True)


def as_options(data: DataSettings, files: OwnFiles) -> list[str]:
    """The options by which a node of this machine reads what its founder named."""
    options = [word for text in files.texts for word in ("--data", str(_here(text)))]
    options += tokenizer_options(data, files)
    return options


def tokenizer_options(data: DataSettings, files: OwnFiles) -> list[str]:
    """As many of them as an export needs."""
    named = ["--tokenizer", str(_here(files.tokenizer))] if files.tokenizer else []
    return [*named, *(["--allow-hub"] if data.hub_names else [])]


def _here(name: str) -> Path:
    """Relative to where the founder's command was started."""
    return Path(name).expanduser().absolute()
