"""Looks again whether others find this node as it said at its start: it knew few of them then, and routers change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from understudy.node.dht.p2p_node import P2PNode
from understudy.node.reach.asking import find_reachability
from understudy.node.ui.telemetry import logger
from understudy.protocol.errors import NetworkError
from understudy.protocol.reach.sentences import say
from understudy.protocol.reach.verdict import Verdict, is_news
from understudy.protocol.wire.contact import is_private

FIRST_LOOK_S = 15.0
"""By then the node is connected to its neighbours."""
LOOK_EVERY_S = 600.0


class Lookout:
    """What was found at the start, and looks that follow."""

    def __init__(self, p2p: P2PNode, verdict: Verdict, initial_peers: Sequence[str], ports: Sequence[int]) -> None:
        """``ports``: where we listen; none: it is settled, by a person or as we are on this machine only."""
        self._p2p, self._initial_peers, self._ports = p2p, initial_peers, ports
        self.verdict = verdict

    async def run(self, tell: Callable[[Verdict], None]) -> None:
        """Tell of what was found, and of news. Returns if there is nothing to look for."""
        tell(self.verdict)
        pause_s = FIRST_LOOK_S
        while self._ports:
            await asyncio.sleep(pause_s)
            pause_s = LOOK_EVERY_S
            try:
                await self._look(tell)
            except NetworkError as error:
                logger.debug("reachability was not looked at: %s", error)

    async def _look(self, tell: Callable[[Verdict], None]) -> None:
        found = await find_reachability(self._p2p, self._initial_peers, self._ports)
        if not is_news(self.verdict, found):
            return
        is_other_kind = is_private(found.reachability) != is_private(self.verdict.reachability)
        advice = "; start the node again, and it takes part as that" if is_other_kind else ""
        logger.log(logging.WARNING if is_other_kind else logging.INFO, "%s%s", say(found, self._ports[0]), advice)
        self.verdict, self._p2p.reachability = found, found.reachability
        tell(found)
