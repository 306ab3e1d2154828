"""A node looks again whether others find it as it said at its start."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes import run_leaping
from understudy.node.reach import lookout as module
from understudy.node.reach.lookout import LOOK_EVERY_S, Lookout
from understudy.protocol.errors import NetworkError
from understudy.protocol.reach.verdict import Verdict

START = Verdict("punchable", "one peer told")
SYMMETRIC = Verdict("relayed", "each peer sees it at another port")
PUBLIC = Verdict("public", "2 of 2 peers dialled it")
UNKNOWN = Verdict("unknown", "nobody tried")


def looked(monkeypatch: pytest.MonkeyPatch, *finds: Verdict | NetworkError, ports: tuple[int, ...] = (4001,)) -> Any:
    """What is told, and what the node says of itself after that."""
    left, told, p2p = list(finds), [], SimpleNamespace(reachability=START.reachability)

    async def find(*_: Any) -> Verdict:
        if not left:
            raise asyncio.CancelledError
        found = left.pop(0)
        if isinstance(found, NetworkError):
            raise found
        return found

    monkeypatch.setattr(module, "find_reachability", find)

    async def main() -> None:
        try:
            async with asyncio.timeout(10 * LOOK_EVERY_S):
                await Lookout(p2p, START, (), ports).run(told.append)  # type: ignore[arg-type]
        except asyncio.CancelledError:
            pass

    run_leaping(main())
    return told, p2p.reachability


def test_a_router_that_turns_out_to_be_symmetric_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    finds = (UNKNOWN, NetworkError("busy"), SYMMETRIC, SYMMETRIC)
    assert looked(monkeypatch, *finds) == ([START, SYMMETRIC], "relayed")


def test_one_that_can_be_dialled_by_now_is_told_to_start_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        told, _ = looked(monkeypatch, PUBLIC)
    assert told == [START, PUBLIC]
    assert "start the node again" in caplog.text


def test_what_a_person_said_is_told_and_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked(monkeypatch, SYMMETRIC, ports=()) == ([START], "punchable")
