"""What a stream that does not open says about its peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from understudy.node.p2p import streams as module
from understudy.node.p2p.control import DaemonRefusal, connect_request
from understudy.node.p2p.streams import OPEN_TRIES, StreamHost, Way
from understudy.protocol.errors import NetworkError, PeerRefusedError
from understudy.protocol.ids import PeerId

PEER = PeerId("QmSHdaR334FTG481tmH16va85qsoV7jaf4K5jsiAcL3NVH")
KNOWN = Way(PEER)
REFUSED = "failed to dial: all dials failed\n  * [/ip4/127.0.0.1/tcp/4001] dial tcp4: connect: connection refused"


def open_with(
    answers: list[str], monkeypatch: pytest.MonkeyPatch, way: Way = KNOWN, asked: list[bytes] | None = None
) -> Callable[[], Any]:
    """Opens a stream over a daemon that refuses so, time after time."""

    async def refuse(path: Path, request: bytes) -> Any:
        if asked is not None:
            asked.append(request)
        raise DaemonRefusal(answers.pop(0))

    monkeypatch.setattr(module, "ask", refuse)
    monkeypatch.setattr(module, "OPEN_AGAIN_AFTER_S", 0.0)
    host = StreamHost(SimpleNamespace(control_path=Path("control.sock"), fail=None))  # type: ignore[arg-type]
    return lambda: asyncio.run(host.open(way, "echo", 5.0))


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


def test_the_addresses_that_a_peer_says_are_dialled_first(monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"/ip4/5.5.5.7/tcp/4001/p2p/{PEER}"
    asked: list[bytes] = []
    with pytest.raises(PeerRefusedError):
        open_with([REFUSED], monkeypatch, Way(PEER, (said,)), asked)()
    assert asked == [connect_request(PEER, (said,), 5.0)]


def test_nobodys_refusal_says_that_a_private_peer_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its address in its own household another machine of ours may refuse."""
    with pytest.raises(NetworkError) as caught:
        open_with([REFUSED], monkeypatch, Way(PEER, is_private=True))()
    assert not isinstance(caught.value, PeerRefusedError)
