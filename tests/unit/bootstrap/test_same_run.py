"""Is the run that is there the one that is asked for?"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec
import pytest

from understudy.bootstrap.begin import Founding, begin
from understudy.bootstrap.founding import (
    JOIN_FILE,
    MANIFEST_FILE,
    check_founder,
    join_string,
    keep_founding,
    load_manifest,
)
from understudy.bootstrap.same_run import Difference, first_difference
from understudy.node.p2p.identity import Identity
from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import InitialSettings, RunManifest
from understudy.protocol.presets import PRESETS, preset

TINY = preset("tiny")


def changed(manifest: RunManifest, section: str, **settings: object) -> RunManifest:
    inner = msgspec.structs.replace(getattr(manifest, section), **settings)
    return msgspec.structs.replace(manifest, **{section: inner})


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_entered_at_the_founding_makes_no_other_run(name: str) -> None:
    asked = preset(name)
    there = msgspec.structs.replace(
        changed(asked, "data", digest="abc"), founding_nonce="f00", initial=InitialSettings(peer="Qm", step=7)
    )
    assert first_difference(there, asked, is_length_asked=True) is None


def test_every_other_setting_does() -> None:
    seen = 0
    for section, value in msgspec.structs.asdict(TINY).items():
        if section in {"initial", "founding_nonce", "protocol_version"}:
            continue
        if not isinstance(value, msgspec.Struct):
            other = msgspec.structs.replace(TINY, **{section: "else"})
            assert first_difference(TINY, other, is_length_asked=False) == Difference(section, value, "else")
            continue
        for name, setting in msgspec.structs.asdict(value).items():
            if (section, name) in {("data", "digest"), ("data", "tokenizer_digest"), ("step", "total_steps")}:
                continue
            other = changed(TINY, section, **{name: "else"})
            found = first_difference(TINY, other, is_length_asked=False)
            assert found == Difference(f"{section}.{name}", setting, "else")
            seen += 1
    assert seen > 30


def test_the_length_counts_if_it_is_asked_for() -> None:
    there, asked = changed(TINY, "step", total_steps=40), changed(TINY, "step", total_steps=60)
    assert first_difference(there, asked, is_length_asked=False) is None
    assert first_difference(there, asked, is_length_asked=True) == Difference("step.total_steps", 40, 60)


def test_the_same_run_is_gone_on_with_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    founder = Identity.load_or_create(tmp_path / "key")
    manifest = load_manifest("tiny", 40)
    keep_founding(tmp_path, manifest, join_string(manifest, founder, [f"/ip4/192.0.2.7/tcp/1/p2p/{founder.peer_id}"]))
    with caplog.at_level(logging.INFO, "understudy"):
        for wish in (Founding("tiny", 40, tmp_path), Founding("tiny", None, tmp_path), Founding(None, None, tmp_path)):
            assert begin(wish) == (manifest, None)
    assert caplog.messages == [f"going on with the run {manifest.run_id()} of {tmp_path}"] * 3


def test_a_folder_without_a_readable_join_string_accuses_no_founder(tmp_path: Path) -> None:
    founder, other = Identity.load_or_create(tmp_path / "key"), Identity.load_or_create(tmp_path / "other")
    manifest = load_manifest("tiny")
    check_founder(tmp_path, manifest, other)
    keep_founding(tmp_path, manifest, join_string(manifest, founder, [f"/ip4/192.0.2.7/tcp/1/p2p/{founder.peer_id}"]))
    check_founder(tmp_path, manifest, founder)
    check_founder(tmp_path, load_manifest("tiny"), other)  # of another run, which left its file
    with pytest.raises(SettingsError, match=f"{other.peer_id}: name the founder's key"):
        check_founder(tmp_path, manifest, other)
    (tmp_path / JOIN_FILE).write_bytes(b"\xff")
    check_founder(tmp_path, manifest, other)


def test_a_manifest_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST_FILE)
    with pytest.raises(SettingsError, match=r"manifest\.json cannot be read: it is a pipe, not a file; choose another"):
        begin(Founding("tiny", None, tmp_path))
