"""What a stream that does not open says about its peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from understudy.node.p2p import streams as module
from understudy.node.p2p.control import DaemonRefusal
from understudy.node.p2p.streams import OPEN_TRIES, StreamHost
from understudy.protocol.errors import NetworkError, PeerRefusedError
from understudy.protocol.ids import PeerId

PEER = PeerId("QmSHdaR334FTG481tmH16va85qsoV7jaf4K5jsiAcL3NVH")
REFUSED = "failed to dial: all dials failed\n  * [/ip4/127.0.0.1/tcp/4001] dial tcp4: connect: connection refused"


def open_with(answers: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Opens a stream over a daemon that refuses so, time after time."""

    async def refuse(path: Path, request: bytes) -> Any:
        raise DaemonRefusal(answers.pop(0))

    monkeypatch.setattr(module, "ask", refuse)
    monkeypatch.setattr(module, "OPEN_AGAIN_AFTER_S", 0.0)
    host = StreamHost(SimpleNamespace(control_path=Path("control.sock"), fail=None))  # type: ignore[arg-type]
    return lambda: asyncio.run(host.open(PEER, "echo", 5.0))


def test_a_connection_that_breaks_under_a_request_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next try dials, and tells a peer that is gone from one that cannot be reached."""
    answers = ["connection failed", REFUSED]
    with pytest.raises(PeerRefusedError, match="is gone"):
        open_with(answers, monkeypatch)()
    assert answers == []


def test_a_connection_that_breaks_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["connection failed"] * OPEN_TRIES
    with pytest.raises(NetworkError, match="shutting down"):
        open_with(answers, monkeypatch)()
    assert answers == []


def test_a_refusal_to_dial_is_a_verdict_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [REFUSED, "not asked again"]
    with pytest.raises(PeerRefusedError):
        open_with(answers, monkeypatch)()
    assert answers == ["not asked again"]
