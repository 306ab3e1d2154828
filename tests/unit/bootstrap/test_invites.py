"""A founder's invites: made, kept, handed out again, and taken back."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from understudy.bootstrap.founding import join_string, keep_founding, load_manifest
from understudy.bootstrap.invite_commands import parse_expiry
from understudy.bootstrap.invites import FIRST_LABEL, INVITES_FILE, REVOKED_FILE, read_revoked
from understudy.bootstrap.inviting import Founded, open_door, whom_it_admits
from understudy.node.admission.door import Door
from understudy.node.p2p.addresses import JoinString
from understudy.node.p2p.identity import Identity
from understudy.protocol.errors import SettingsError
from understudy.protocol.ids import PeerId

FOUNDER = Identity.generate()
RUN = load_manifest("tiny")
PEER = PeerId(f"Qm{'A' * 44}")


def start(folder: Path, founder: Identity = FOUNDER) -> JoinString:
    """What `bootstrap --dir` does with a folder; its join string."""
    admission = open_door(RUN, founder, folder)
    assert admission is not None
    join = join_string(RUN, founder, [f"/ip4/192.0.2.7/tcp/1/p2p/{founder.peer_id}"], admission.ticket)
    keep_founding(folder, RUN, join)
    return join


def test_a_seed_started_again_hands_out_the_same_invite(tmp_path: Path) -> None:
    first = start(tmp_path / "run")
    assert start(tmp_path / "run") == first
    assert first.ticket is not None
    assert first.ticket.invite.label == FIRST_LABEL
    assert stat.S_IMODE((tmp_path / "run" / INVITES_FILE).stat().st_mode) == 0o600
    Founded(tmp_path / "run", FOUNDER).revoke(FIRST_LABEL)
    assert start(tmp_path / "run").ticket != first.ticket


def test_each_invite_lets_in_and_is_kept(tmp_path: Path) -> None:
    start(tmp_path)
    founded = Founded(tmp_path, FOUNDER)
    alice = founded.invite("alice", "volunteer", 0)
    press = founded.invite(founded.free_label("observer"), "observer", 2**33)
    assert press.ticket is not None
    assert (press.ticket.invite.label, press.ticket.invite.role) == ("observer-1", "observer")
    assert founded.free_label("observer") == "observer-2"
    for join in (alice, press):
        door = Door.for_guest(join)
        assert door is not None
        door.enter(PEER)
        assert join.addresses == founded.join.addresses
    with pytest.raises(SettingsError, match="already"):
        founded.invite("alice", "volunteer", 0)
    with pytest.raises(SettingsError, match="up to 32 letters"):
        founded.invite("al ice", "volunteer", 0)


def test_what_is_revoked_adds_up_and_is_the_founders_word(tmp_path: Path) -> None:
    start(tmp_path)
    founded = Founded(tmp_path, FOUNDER)
    alice = founded.invite("alice", "volunteer", 0)
    assert alice.ticket is not None
    founded.revoke("alice")
    revoked = founded.revoke(PEER)
    assert (revoked.version, revoked.invites, revoked.peers) == (2, (alice.ticket.invite.key,), (PEER,))
    assert read_revoked(tmp_path, RUN.digest(), FOUNDER) == revoked
    with pytest.raises(SettingsError, match=r"neither a PeerID nor the label.*there are: founding, alice"):
        founded.revoke("bob")
    with pytest.raises(SettingsError, match="founder cannot be revoked"):
        founded.revoke(FOUNDER.peer_id)


def test_files_that_are_not_the_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the folder of a founded run"):
        Founded(tmp_path, FOUNDER)
    start(tmp_path)
    with pytest.raises(SettingsError, match="the key of"):
        Founded(tmp_path, Identity.generate())
    Founded(tmp_path, FOUNDER).revoke(PEER)
    (tmp_path / INVITES_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(SettingsError, match="damaged"):
        start(tmp_path)
    (tmp_path / INVITES_FILE).write_text('{"run": "another", "invites": []}', encoding="utf-8")
    with pytest.raises(SettingsError, match="of another run"):
        start(tmp_path)
    text = (tmp_path / REVOKED_FILE).read_text(encoding="utf-8").replace('"signed": "lA', '"signed": "lB')
    (tmp_path / REVOKED_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match="cannot be used"):
        read_revoked(tmp_path, RUN.digest(), FOUNDER)


@pytest.mark.parametrize(("text", "expected"), [("never", 0), ("90m", 6400), ("12h", 44200), ("7d", 605800)])
def test_times_are_written_as_people_do(text: str, expected: int) -> None:
    assert parse_expiry(text, 1000.9) == expected


@pytest.mark.parametrize("text", ["", "0d", "7", "-1h", "1w", "7 d", "9999999d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="like 90m"):
        parse_expiry(text, 0)


def test_a_founder_is_told_whom_a_join_string_admits(tmp_path: Path) -> None:
    start(tmp_path)
    founded = Founded(tmp_path, FOUNDER)
    assert whom_it_admits(None).startswith("Anyone can join")
    assert "can join with" in whom_it_admits(founded.join.ticket)
    until = whom_it_admits(founded.invite("press", "observer", 4102444800).ticket)
    assert "may look and export until 2100-01-01 00:00 UTC" in until
    assert until.endswith("Its label: press.")
