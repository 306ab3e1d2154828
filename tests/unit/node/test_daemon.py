"""What p2pd is started with."""

from __future__ import annotations

import os

import pytest

from understudy.node.p2p.daemon import PROCESSORS_MAX, processors


@pytest.mark.parametrize(("ours", "its"), [(1, 1), (2, 1), (3, 1), (4, 2), (64, PROCESSORS_MAX)])
def test_p2pd_keeps_half_of_our_processors_busy_at_most(monkeypatch: pytest.MonkeyPatch, ours: int, its: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(ours)))
    assert processors() == its
