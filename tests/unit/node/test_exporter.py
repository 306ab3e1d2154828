"""The exporter's own life: what goes wrong in its core ends it, wherever it shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from understudy.node.dht.p2p_node import P2PNode
from understudy.node.dht.signing import StoredRecord
from understudy.node.export.exporter import ExportRun
from understudy.protocol.actions import Fetch
from understudy.protocol.errors import LocalProtocolError
from understudy.protocol.events import Event, MessageReceived, TimerFired
from understudy.protocol.export.actions import ExportWish
from understudy.protocol.ids import PeerId
from understudy.protocol.presets import preset
from understudy.protocol.wire.contact import Contact
from understudy.protocol.wire.messages import Heartbeat

TIMEOUT_S = 10.0
PEER = PeerId("QmPeer")
RUN = preset("tiny")


class EmptySwarm:
    """A swarm in which there is nobody."""

    peer_id = PeerId("QmMe")

    async def watch_daemon(self) -> None:
        await asyncio.Event().wait()

    async def serve_streams(self, protocol: str, callback: object) -> None:
        return

    def note_contact(self, peer: PeerId, contact: Contact) -> None:
        """Nobody is dialled here."""

    async def get_many(self, keys: Collection[str]) -> dict[str, list[StoredRecord]]:
        return {key: [] for key in keys}


SHOWN_BY: dict[type, Callable[[ExportRun], object]] = {
    TimerFired: lambda export: export._tick(),
    MessageReceived: lambda export: export._message_came(PEER, Heartbeat(1, 1, "serving", 0), None),
}


@pytest.mark.parametrize("kind", SHOWN_BY, ids=lambda kind: kind.__name__)
def test_a_bug_ends_the_export_with_its_reason(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one exception the timer never ticked again, and the export stood still for ever."""

    async def main() -> None:
        export = ExportRun(cast(P2PNode, EmptySwarm()), RUN, cast(Any, None), ExportWish())
        handle = export._core.handle

        def break_down(event: Event, now: float) -> Any:
            if isinstance(event, kind):
                raise LocalProtocolError("made up")
            return handle(event, now)

        async with asyncio.timeout(TIMEOUT_S):
            asyncio.get_running_loop().call_later(0.05, SHOWN_BY[kind], export)
            asyncio.get_running_loop().call_later(0.02, monkeypatch.setattr, export._core, "handle", break_down)
            await export.run()

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(main())
    assert caught.value.subgroup(LocalProtocolError) is not None


def test_a_bug_in_a_fetch_ends_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        export = ExportRun(cast(P2PNode, EmptySwarm()), RUN, cast(Any, None), ExportWish())
        monkeypatch.setattr(export._fetcher, "fetch", AsyncMock(side_effect=LocalProtocolError("made up")))
        async with asyncio.timeout(TIMEOUT_S):
            asyncio.get_running_loop().call_later(0.05, export._perform, Fetch((1, 1), PEER, "stage", "digest", 8))
            await export.run()

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(main())
    assert caught.value.subgroup(LocalProtocolError) is not None
