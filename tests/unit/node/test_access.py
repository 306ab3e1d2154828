"""What a run may read here: what this machine's person named, and nothing that a founder named."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from understudy.node.data.access import NO_ACCESS, TextAccess, as_options, founders_access, tokenizer_options
from understudy.node.data.data_check import describe_data, objection_to_driving
from understudy.node.data.hf_dataset import open_dataset
from understudy.node.data.tokenizer import save_tokenizer
from understudy.node.ui import consent
from understudy.node.ui.consent import with_consent
from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import DataSettings, RunManifest
from understudy.protocol.manifest_reader import decode_manifest
from understudy.protocol.run_toml import OwnFiles, parse_run_toml

HUB = DataSettings(
    source="huggingface",
    dataset="some/where",
    revision="0" * 40,
    tokenizer="some/words",
    tokenizer_revision="0" * 40,
    end_of_text="<|end|>",
    digest="1" * 64,
    tokenizer_digest="2" * 64,
)
OWN = msgspec.structs.replace(HUB, dataset="", revision="", tokenizer="", tokenizer_revision="")


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "cache")


def run_of(data: DataSettings) -> RunManifest:
    return RunManifest(name="run", data=data)


# --- the founder's files stay the founder's ---


def test_a_founders_files_are_in_the_digest_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("text " * 100)
    run = parse_run_toml(f'name = "x"\n[data]\nsource = "text"\npaths = ["{tmp_path}/books"]\n', "run.toml")
    founded = describe_data(run.manifest, founders_access(run.files))
    assert str(tmp_path).encode() not in founded.encode()
    assert b"books" not in founded.encode()
    assert decode_manifest(founded.encode()) == founded
    objection = objection_to_driving(founded)
    assert objection is not None
    assert "say where it lies on this machine with --data" in objection
    assert objection_to_driving(founded, TextAccess((tmp_path / "books",))) is None
    (tmp_path / "books" / "one.txt").write_text("others " * 100)
    assert "is not the founder's" in str(objection_to_driving(founded, TextAccess((tmp_path / "books",))))


def test_a_local_swarms_nodes_are_told_where_their_founders_files_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = OwnFiles(("./a", "/b"), "./tokenizer.json")
    named = ["--tokenizer", str(tmp_path / "tokenizer.json")]
    assert as_options(OWN, files) == ["--data", str(tmp_path / "a"), "--data", "/b", *named]
    assert tokenizer_options(OWN, files) == named
    assert as_options(HUB, OwnFiles()) == tokenizer_options(HUB, OwnFiles()) == ["--allow-hub"]
    assert as_options(DataSettings(), OwnFiles()) == []


# --- the hub ---


def test_the_hub_is_not_asked_unasked() -> None:
    """Both names; without the packages' import even."""
    for data in (HUB, msgspec.structs.replace(HUB, tokenizer="", tokenizer_revision="")):
        with pytest.raises(SettingsError, match="the founder chose it: allow this machine to ask for it with --allow"):
            open_dataset(data, "train", NO_ACCESS)
    assert "the tokenizer some/words comes from the Hugging Face hub" in str(objection_to_driving(run_of(HUB)))


def test_a_folder_that_has_the_name_of_a_hubs_dataset_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some" / "where").mkdir(parents=True)
    (tmp_path / "some" / "where" / "secret.txt").write_text("the key")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="which would be taken for the hub's"):
        open_dataset(HUB, "train", TextAccess(may_ask_hub=True))


@pytest.mark.parametrize("named", ["{secret}", "../secret.txt", "file://{secret}", "zip://a.txt::{secret}"])
def test_a_datasets_card_names_no_file_that_is_not_its_own(tmp_path: Path, named: str) -> None:
    """The library opens what a card says, also of a dataset of the hub."""
    (tmp_path / "secret.txt").write_text("the key")
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    path = named.format(secret=tmp_path / "secret.txt")
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '{path}'\n---\n"
    (folder / "README.md").write_text(card)
    told = "not a zip file" if named.startswith("zip") else "names a file that is not its own"
    with pytest.raises(SettingsError, match=told):
        open_dataset(OWN, "train", TextAccess((folder,)))


def test_a_tokenizer_is_exported_only_if_it_is_the_runs(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the key")
    for data, told in ((OWN, "is not the founder's"), (msgspec.structs.replace(OWN, tokenizer_digest=""), "no digest")):
        with pytest.raises(SettingsError, match=told):
            save_tokenizer(data, tmp_path, TextAccess(tokenizer=tmp_path / "secret"))
    with pytest.raises(SettingsError, match="say where it lies on this machine with --tokenizer"):
        save_tokenizer(OWN, tmp_path, NO_ACCESS)
    with pytest.raises(SettingsError, match="it is a device, not a file"):
        save_tokenizer(OWN, tmp_path, TextAccess(tokenizer=Path("/dev/zero")))
    assert not (tmp_path / "tokenizer.json").exists()


# --- the access token ---

ASK = """
import os, sys
from pathlib import Path
from understudy.node.data.access import access_by_options
from understudy.node.data.data_check import objection_to_driving
from understudy.protocol.manifest_reader import decode_manifest
access = access_by_options((), Path(sys.argv[2]) if sys.argv[2:] else None, may_ask_hub=True)
print(objection_to_driving(decode_manifest(sys.argv[1].encode()), access), flush=True)
os._exit(0)  # the library's threads are not waited for
"""


@contextmanager
def fake_hub() -> Iterator[tuple[str, list[str | None]]]:
    """A hub that has nothing; what it was shown as authorization, request by request."""
    shown: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers.get("Authorization"))
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", shown
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("own", [None, "hf_given"])
@pytest.mark.parametrize("kind", ["dataset", "tokenizer"])
def test_the_machines_access_token_is_not_shown(own: str | None, kind: str, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(
        json.dumps({"model": {"type": "WordLevel", "vocab": {"<|end|>": 0}, "unk_token": "<|end|>"}, "version": "1.0"})
    )
    data = HUB
    arguments = []
    if kind == "dataset":
        digest = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
        data = msgspec.structs.replace(HUB, tokenizer="", tokenizer_revision="", tokenizer_digest=digest)
        arguments = [str(tokenizer)]
    with fake_hub() as (endpoint, shown):
        environment = {
            **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
            "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": os.getcwd(),
        }  # fmt: skip
        environment |= {"UNDERSTUDY_HUB_TOKEN": own} if own else {}
        command = [sys.executable, "-c", ASK, run_of(data).encode().decode(), *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    assert shown, done.stdout
    assert set(shown) <= {f"Bearer {own}", None}, done.stdout
    assert (f"Bearer {own}" in shown) == (own is not None)


# --- asking the person ---


def ask(typed: bytes | None, data: DataSettings = HUB) -> TextAccess:
    """The access after somebody at a terminal typed a line; None: there is no terminal."""
    ours, theirs = pty.openpty()

    async def main() -> TextAccess:
        asked = asyncio.ensure_future(with_consent(NO_ACCESS, data, theirs if typed is not None else -1))
        if typed is not None:
            os.write(ours, typed)
        return await asked

    try:
        return asyncio.run(main())
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "tcgetpgrp", lambda terminal: os.getpgrp() if terminal > 0 else 0)


@pytest.mark.usefixtures("attended")
@pytest.mark.parametrize(("typed", "is_allowed"), [(b"y\n", True), (b" YES \n", True), (b"n\n", False), (b"\n", False)])
def test_a_person_at_the_terminal_is_asked(typed: bytes, is_allowed: bool, caplog: pytest.LogCaptureFixture) -> None:
    assert ask(typed).may_ask_hub is is_allowed
    assert "would read the dataset some/where and the tokenizer some/words from the Hugging Face hub" in caplog.text


@pytest.mark.usefixtures("attended")
def test_nobody_is_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consent, "ANSWER_TIMEOUT_S", 0.01)
    assert not ask(b"").may_ask_hub


def test_nobody_is_asked_where_nobody_sits_or_for_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert ask(None) == ask(b"y\n", DataSettings()) == NO_ACCESS
    assert ask(b"y\n") == NO_ACCESS, "a job in the background would be stopped by its shell"
    allowed = TextAccess(may_ask_hub=True)
    assert asyncio.run(with_consent(allowed, HUB)) is allowed
    assert caplog.text == ""
