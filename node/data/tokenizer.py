"""From texts to token numbers: the tokenizer that the manifest names, for data.source = "huggingface".

The tokenizers package is imported where it is needed: who trains on bytes can do without it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from understudy.node.data.access import TextAccess
from understudy.node.files.plain_files import read_bounded
from understudy.protocol.errors import SettingsError, TextError
from understudy.protocol.manifest import DataSettings

TokenIds = npt.NDArray[np.int32]

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_BYTES_MAX = 1 << 26
"""The largest in use have 20 MB."""
INSTALL = "pip install 'understudy[hf]'"


class Tokens:
    """A tokenizer and the token that ends a text."""

    def __init__(self, settings: DataSettings, vocabulary_size: int, access: TextAccess) -> None:
        """Load it. Raises `SettingsError` with what to change, `TextError` if the hub is out of reach."""
        definition = _definition(settings, access)
        self._tokenizer, name = _parsed(settings, definition), _name(settings)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if settings.end_of_text not in vocabulary:
            raise SettingsError(f"data.end_of_text: {settings.end_of_text!r} is not a token of {name}")
        self._end = vocabulary[settings.end_of_text]
        needed = max(vocabulary.values()) + 1
        if needed > vocabulary_size:
            raise SettingsError(
                f"{name} has {needed} tokens, model.vocabulary_size is {vocabulary_size}: "
                f"set model.vocabulary_size = {needed} or more"
            )
        self.digest = hashlib.sha256(definition).hexdigest()
        """Of the tokenizer's file."""

    def encode(self, texts: Sequence[str]) -> TokenIds:
        """The tokens of the texts, each followed by the end token; nothing else is added. Shape (tokens,)."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)  # as in `encode_plain`
        ends = np.array([self._end], np.int32)
        return np.concatenate(
            [part for each in encoded for part in (np.asarray(each.ids, np.int32), ends)] or [ends[:0]]
        )


def parse_tokenizer(definition: bytes) -> Any:
    """A tokenizer from its JSON, set so that it encodes nothing but the text, in training and in generating alike.

    Raises `SettingsError` if the packages are missing, and whatever the library raises if it is no tokenizer.
    """
    made = _tokenizers().Tokenizer.from_str(definition.decode("utf-8"))
    # A tokenizer made for another context would cut or fill our texts.
    made.no_truncation()
    made.no_padding()
    # A text that spells out a special token is text.
    made.encode_special_tokens = True
    return made


def encode_plain(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text without those that the tokenizer would put at its beginning and end: no model saw them."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def save_tokenizer(settings: DataSettings, folder: Path, access: TextAccess) -> int | None:
    """Write the run's tokenizer as transformers reads it: ``tokenizer.json`` and ``tokenizer_config.json``.

    It is as it was, but for a post-processor that adds tokens to a text: in training it was not used. The number of
    the token that ends a text, if it has one. For data.source = "huggingface" only; ``folder`` must exist. Raises
    like `Tokens`, and `SettingsError` if the folder cannot be written, or if nothing says what the tokenizer is: what
    people publish must be no other file of this machine.
    """
    if not settings.tokenizer_digest:
        raise SettingsError("the run's manifest has no digest of its tokenizer")
    definition = _definition(settings, access)
    tokenizer = _parsed(settings, definition)
    if tokenizer.num_special_tokens_to_add(is_pair=False):
        table = json.loads(definition)
        table["post_processor"] = None
        definition = json.dumps(table, ensure_ascii=False).encode("utf-8")
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": settings.end_of_text}
    try:
        (folder / TOKENIZER_FILE).write_bytes(definition)
        (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror}") from error
    end: int | None = tokenizer.token_to_id(settings.end_of_text)
    return end


def _parsed(settings: DataSettings, definition: bytes) -> Any:
    try:
        return parse_tokenizer(definition)
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(f"{_name(settings)} is not a {TOKENIZER_FILE}: {error}") from error


def _tokenizers() -> Any:
    # Its own threads would ignore --threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError as error:
        raise SettingsError(f"data.source = 'huggingface' needs packages that are not installed: {INSTALL}") from error
    return tokenizers


def _name(settings: DataSettings) -> str:
    """For people."""
    return f"the tokenizer {settings.tokenizer}".rstrip()


def _definition(settings: DataSettings, access: TextAccess) -> bytes:
    """The bytes of the tokenizer.json, from this machine or from the hub, if they are the run's."""
    if settings.tokenizer:
        access.require_hub(_name(settings))
        path = _download(settings, access)
    else:
        path = access.require_tokenizer().expanduser()
        path = path / TOKENIZER_FILE if path.is_dir() else path
    try:
        definition = read_bounded(path.resolve(), TOKENIZER_BYTES_MAX)
    except OSError as error:
        raise SettingsError(f"the tokenizer {path} cannot be read: {error.strerror}") from error
    if settings.tokenizer_digest not in ("", hashlib.sha256(definition).hexdigest()):
        raise SettingsError(f"the tokenizer {path} is not the founder's")
    return definition


def _download(settings: DataSettings, access: TextAccess) -> Path:
    """Into the hub's cache on this machine. Raises `SettingsError` if there is none, `TextError` if out of reach."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            HFValidationError,
            HTTPError,
            LocalEntryNotFoundError,
            RemoteEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise SettingsError(f"data.source = 'huggingface' needs packages that are not installed: {INSTALL}") from error
    name = settings.tokenizer
    try:
        return Path(hf_hub_download(name, TOKENIZER_FILE, revision=settings.tokenizer_revision, token=access.token))
    except (RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError, HFValidationError) as error:
        raise SettingsError(
            f"data.tokenizer: the hub shows no {TOKENIZER_FILE} of {name} at this revision (or it needs a login)"
        ) from error
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:
        raise TextError(f"the tokenizer {name} is not on this machine and the hub cannot be reached") from error
