"""What HEALTHCHECK asks: whether a daemon answers."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from understudy.node import health


def test_only_a_daemon_that_listens_is_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "SOCKET_FOLDER", tmp_path)
    assert not health.is_daemon_running()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "hivemind-p2pd-x.sock"))
        assert not health.is_daemon_running()
        listener.listen()
        assert health.is_daemon_running()
    assert not health.is_daemon_running()
