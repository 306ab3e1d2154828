"""What a founder tells newcomers."""

from __future__ import annotations

import pytest

from understudy.bootstrap.founding import join_string, load_manifest
from understudy.node.p2p.identity import Identity

FOUNDER = Identity.generate()
LOOPBACK = f"/ip4/127.0.0.1/tcp/4001/p2p/{FOUNDER.peer_id}"
PUBLIC = f"/ip4/192.0.2.7/tcp/4001/p2p/{FOUNDER.peer_id}"


@pytest.mark.parametrize(
    ("addresses", "told"),
    [
        ([LOOPBACK, PUBLIC], (PUBLIC,)),
        ([PUBLIC, LOOPBACK], (PUBLIC,)),
        ([LOOPBACK], (LOOPBACK,)),
    ],
)
def test_newcomers_are_told_of_loopback_only_if_there_is_nothing_else(
    addresses: list[str], told: tuple[str, ...]
) -> None:
    assert join_string(load_manifest("tiny"), FOUNDER, addresses).addresses == told
