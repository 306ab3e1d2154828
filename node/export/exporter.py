"""The exporter's body: links and fetches for protocol/export/exporter.py, and a folder for what comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from understudy.node.compute.tensors import activation_header
from understudy.node.compute.thread import ComputeThread
from understudy.node.data.access import NO_ACCESS
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.dht.record_sync import Records
from understudy.node.export.folder import ExportFolder, Origin
from understudy.node.links.link import LinkRules, Listener
from understudy.node.links.network import Network
from understudy.node.links.transfer import Fetcher
from understudy.protocol.actions import CancelFetches, Emit, Fetch, Read, Send
from understudy.protocol.errors import NetworkError, RemoteProtocolError, StorageError, WeightsError
from understudy.protocol.events import Event, Fetched, FetchFailed, MessageReceived, Started, TimerFired
from understudy.protocol.export.actions import BeginExport, ExportAction, ExportWish, FailExport, FinishExport
from understudy.protocol.export.exporter import Exporter
from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import RunManifest
from understudy.protocol.wire.messages import AnyMessage

GOODBYE_TIMEOUT_S = 3.0
"""For the last words to leave."""

News = Callable[[str, Mapping[str, Any]], None]


class ExportRun:
    """One export, from the first look around to the finished folder."""

    def __init__(self, p2p: P2PNode, manifest: RunManifest, folder: ExportFolder, wish: ExportWish) -> None:
        self._p2p, self._manifest, self._folder = p2p, manifest, folder
        self._core = Exporter(p2p.peer_id, manifest, wish)
        self._step = wish.step or 0
        self._loop = asyncio.get_running_loop()
        self._thread = ComputeThread()
        rules = LinkRules(manifest.run_id(), manifest.digest(), activation_header(manifest))
        self._network = Network(p2p, rules, Listener(self._message_came, on_contact=p2p.note_contact))
        self._fetcher = Fetcher(p2p, rules, manifest.model, self._thread)
        self._fetcher.on_bytes = self._bytes_came
        self._records = Records(p2p, manifest, self._feed)
        self._fetches: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[Path | None] = self._loop.create_future()
        self.access = NO_ACCESS
        """Where the run's tokenizer may be had from."""
        self.on_news: News = lambda name, fields: None
        """Told of what happens: the core's events, and "bytes" as they come."""

    async def run(self) -> Path | None:
        """The finished folder, or None if `stop` was called. Raises an `UnderstudyError` that says what to do."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                owned = [tasks.create_task(self._p2p.watch_daemon()), tasks.create_task(self._records.run())]
                self._network.start(tasks)
                await self._p2p.serve_streams(self._network.protocol, self._network.receive)
                self._feed(Started())
                self._tick()
                finished = await self._done
                await self._network.flush(GOODBYE_TIMEOUT_S)
                for task in owned:
                    task.cancel()
                self._close()
            return finished
        finally:
            self._close()
            self._thread.close()

    def stop(self) -> None:
        """A person has had enough. What is held for us stays held for a while, so that we may go on."""
        if not self._done.done():
            self._done.set_result(None)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._network.stop()
        for task in self._fetches.values():
            task.cancel()

    # --- events ---

    def _feed(self, event: Event) -> None:
        """As in node/runtime.py: what goes wrong here is a bug, and nobody else would end the export."""
        if self._done.done():
            return
        try:
            for action in self._core.handle(event, self._loop.time()):
                self._perform(action)
        except Exception as error:  # noqa: BLE001 - whatever it is, `run` raises it
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)
            self._done.exception()  # retrieved: `run` may be ending for another reason already

    def _tick(self) -> None:
        self._feed(TimerFired())
        if not self._done.done():
            self._timer = self._loop.call_at(self._core.deadline, self._tick)

    def _message_came(self, peer: PeerId, message: AnyMessage, _: Any) -> None:
        self._feed(MessageReceived(peer, message))

    def _bytes_came(self, fetch: Fetch, count: int) -> None:
        self.on_news("bytes", {"stage": fetch.claim[0], "count": count})

    # --- actions ---

    def _perform(self, action: ExportAction) -> None:
        match action:
            case Send(peer, message, _):
                self._network.send(peer, message, None)
            case Read():
                self._records.add(action)
            case Fetch():
                assert self._tasks is not None
                name = f"fetch from {action.donor[-8:]}"
                self._fetches[action.claim] = self._tasks.create_task(self._fetch(action, self._step), name=name)
            case CancelFetches(claim):
                if claim in self._fetches:
                    self._fetches.pop(claim).cancel()
            case Emit(name, fields):
                self.on_news(name, fields)
            case BeginExport() | FinishExport() | FailExport():
                self._perform_on_whole(action)

    def _perform_on_whole(self, action: BeginExport | FinishExport | FailExport) -> None:
        stages = range(self._manifest.stage_count)
        try:
            match action:
                case BeginExport(step):
                    self._step = step
                    self._folder.begin(step, sum(map(self._manifest.model.stage_bytes, stages)))
                case FinishExport(step):
                    self._done.set_result(self._folder.finish(self._manifest, step, self.access))
                case FailExport(reason):
                    self._fail(NetworkError(reason))
        except StorageError as error:
            self._fail(error)

    async def _fetch(self, fetch: Fetch, step: int) -> None:
        """Fetch a stage and write it; a disk that does not take it ends the export."""
        try:
            weights = await self._fetcher.fetch(fetch)
        except (NetworkError, RemoteProtocolError, WeightsError) as error:
            self._feed(FetchFailed(fetch.claim, fetch.donor, fetch.digest, str(error)))
            return
        stage, incarnation = fetch.claim
        origin = Origin(fetch.donor, incarnation, fetch.digest)
        await self._thread.call(lambda: self._folder.add(self._manifest, step, stage, (weights, origin)))
        self._feed(Fetched(fetch.claim, fetch.donor, fetch.digest, None))
