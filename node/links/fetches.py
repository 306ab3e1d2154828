"""Fetches that the core asked for: one task each, known by their claim, so that it can call them off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from understudy.node.links.transfer import Fetcher
from understudy.protocol.actions import Fetch
from understudy.protocol.errors import NetworkError, RemoteProtocolError, WeightsError
from understudy.protocol.events import Fetched, FetchFailed


class Fetches:
    """All fetches of a node that are under way."""

    def __init__(self, fetcher: Fetcher, feed: Callable[[Fetched | FetchFailed], None]) -> None:
        self.fetcher, self._feed = fetcher, feed
        self.under_way: dict[tuple[int, int], set[asyncio.Task[None]]] = {}
        """By claim. Standby copies come under their owner's tenure."""

    def begin(self, fetch: Fetch, tasks: asyncio.TaskGroup) -> None:
        """Fetch as a task of this group; the core is told how it ends."""
        task = tasks.create_task(self._fetch(fetch), name=f"fetch from {fetch.donor[-8:]}")
        self.under_way.setdefault(fetch.claim, set()).add(task)
        task.add_done_callback(lambda task: self._forget(fetch.claim, task))

    def _forget(self, claim: tuple[int, int], task: asyncio.Task[None]) -> None:
        under_way = self.under_way.get(claim, set())
        under_way.discard(task)
        if not under_way:
            self.under_way.pop(claim, None)

    def cancel(self, claim: tuple[int, int]) -> None:
        """The claim needs nothing any more."""
        for task in self.under_way.get(claim, ()):
            task.cancel()

    def cancel_all(self) -> None:
        """The node ends."""
        for claim in list(self.under_way):
            self.cancel(claim)

    async def _fetch(self, fetch: Fetch) -> None:
        try:
            weights = await self.fetcher.fetch(fetch)
        except (NetworkError, RemoteProtocolError, WeightsError) as error:
            self._feed(FetchFailed(fetch.claim, fetch.donor, fetch.digest, str(error)))
        else:
            self._feed(Fetched(fetch.claim, fetch.donor, fetch.digest, weights))
