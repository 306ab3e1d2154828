"""The node: feeds the core with what happens and does what the core says.

One event loop, one compute thread, one p2pd. Everything that runs belongs to the one TaskGroup of
`Node.run`; when the core says stop, or anything fails, the group ends and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

import torch

from understudy.node.config import NodeConfig
from understudy.node.display import Display
from understudy.node.metering import MeteredStreams, Tally
from understudy.node.network import LinkRules, Network
from understudy.node.read_ahead import off_the_loop
from understudy.node.records import Records
from understudy.node.stage import StageHost
from understudy.node.swarm import Swarm
from understudy.node.telemetry import EventLog
from understudy.node.tensors import activation_header
from understudy.node.transfer import Fetcher, WeightsServer, fetch_protocol
from understudy.node.watching import Watch
from understudy.node.worker import Worker
from understudy.protocol.core import Core
from understudy.protocol.errors import TextError, UnderstudyError
from understudy.protocol.events import (
    Action,
    BackwardJob,
    CancelFetches,
    CloseLinks,
    Discard,
    Emit,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    Job,
    JobDone,
    Keep,
    MessageReceived,
    PeerUnreachable,
    Read,
    ReadText,
    ReleaseHold,
    ReleaseSnapshot,
    ReleaseStage,
    Run,
    Send,
    Started,
    Stop,
    StopRequested,
    Store,
    TextRead,
    TimerFired,
)
from understudy.protocol.ids import PeerId
from understudy.protocol.manifest import decode_manifest
from understudy.protocol.messages import AnyMessage
from understudy.protocol.records import ManifestRecord

logger = logging.getLogger(__name__)

GOODBYE_TIMEOUT_S = 3.0
"""For the last messages and records to leave."""


CAPACITY_SECONDS = 0.05
_CAPACITY_SIZE = 256


def measure_capacity(device: str) -> float:
    """Billions of multiply-adds per second that the device does on a small matrix: ranks spares."""
    matrix = torch.ones(_CAPACITY_SIZE, _CAPACITY_SIZE, device=device)
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < CAPACITY_SECONDS:
        (matrix @ matrix).sum().item()
        rounds += 1
    return round(rounds * _CAPACITY_SIZE**3 / (time.perf_counter() - began) / 1e9, 1)


class Node:
    """One volunteer's node of a run."""

    def __init__(
        self,
        swarm: Swarm,
        charter: ManifestRecord,
        config: NodeConfig,
        *,
        can_drive: bool = True,
        display: Display | None = None,
    ) -> None:
        manifest = decode_manifest(charter.manifest)
        self._swarm, self._config = swarm, config
        self._run_id = manifest.run_id()
        capacity = measure_capacity(config.device)
        self._core = Core(swarm.peer_id, manifest, capacity, charter, can_drive=can_drive)
        self._events = EventLog(config.events_path)
        self._loop = asyncio.get_running_loop()
        self._host = StageHost(manifest, config.device)
        self._worker = Worker(self._host, config.threads, self._job_finished, self._job_failed)
        rules = LinkRules(self._run_id, manifest.digest(), activation_header(manifest))
        self._tally, self._display = Tally(), display
        streams = MeteredStreams(swarm, self._tally)
        self._network = Network(streams, rules, self._message_came, self._peer_gone)
        self._fetch_protocol = fetch_protocol(rules.run_id)
        self._fetcher = Fetcher(streams, rules, manifest.model, self._worker)
        self._weights = WeightsServer(self._core.may_fetch, self._host.find_held)
        self._records = Records(swarm, self._run_id, self.feed)
        self._fetches: dict[tuple[int, int], list[asyncio.Task[None]]] = {}
        self._text_reading: asyncio.Task[None] | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopped: asyncio.Future[str] = self._loop.create_future()
        self._is_hurried = asyncio.Event()

    async def run(self) -> str:
        """Serve until the run is done ("done") or `stop` is called ("asked")."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                owned = [tasks.create_task(self._swarm.watch_daemon()), tasks.create_task(self._records.run())]
                if self._display is not None:
                    watch = Watch(self._core, self._tally, self._display, self._records.add)
                    owned.append(tasks.create_task(watch.run()))
                await self._start(tasks)
                reason = await self._stopped
                await self._say_goodbye(tasks)
                for task in owned:
                    task.cancel()
                self._close()
            return reason
        finally:
            self._close()
            self._host.close()
            self._worker.close()
            self._events.close()

    def stop(self) -> None:
        """Say goodbye and end; a second call does not wait for the goodbye."""
        if self._stopped.done():
            self._is_hurried.set()
        self.feed(StopRequested())

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        self._network.start(tasks)
        metered = self._tally.metered_callback
        await self._swarm.serve_streams(self._network.protocol, metered(self._network.receive))
        await self._swarm.serve_streams(self._fetch_protocol, metered(self._weights.serve))
        self.feed(Started(self._config.stage))
        self._tick()

    async def _say_goodbye(self, tasks: asyncio.TaskGroup) -> None:
        """Let the last words leave before the links are closed, unless somebody is in a hurry."""
        words = tasks.create_task(self._flush())
        haste = tasks.create_task(self._is_hurried.wait())
        await asyncio.wait((words, haste), return_when=asyncio.FIRST_COMPLETED)
        words.cancel()
        haste.cancel()

    async def _flush(self) -> None:
        await self._records.flush(GOODBYE_TIMEOUT_S)
        await self._network.flush(GOODBYE_TIMEOUT_S)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._text_reading is not None:
            self._text_reading.cancel()
        self._network.stop()
        for claim in list(self._fetches):
            self._cancel_fetches(claim)

    # --- events ---

    def feed(self, event: Event) -> None:
        """Give an event to the core and do what it says."""
        if self._stopped.done():
            return
        for action in self._core.handle(event, self._loop.time()):
            self._perform(action)

    def _feed_own(self, event: Event) -> None:
        """An event of our own timer or compute thread, straight from the loop, which would only log what goes wrong.

        A node that then did nothing any more would keep its stage: better that it ends and is replaced.
        """
        try:
            self.feed(event)
        except Exception as error:  # noqa: BLE001 - whatever it is, `run` raises it
            self._fail(error)

    def _tick(self) -> None:
        self._feed_own(TimerFired())
        if not self._stopped.done():
            self._timer = self._loop.call_at(self._core.deadline, self._tick)

    def _message_came(self, peer: PeerId, message: AnyMessage, payload: Any) -> None:
        self.feed(MessageReceived(peer, message, payload))

    def _peer_gone(self, peer: PeerId) -> None:
        self.feed(PeerUnreachable(peer))

    def _job_finished(self, job: Job, result: Any) -> None:
        self._tally.microbatches += isinstance(job, BackwardJob)
        self._feed_own(JobDone(job, result))

    def _job_failed(self, error: BaseException) -> None:
        """A text that cannot be read ends our driving; anything else ends the node."""
        if isinstance(error, TextError):
            self._note_text(self._core.state.committed + 1, str(error))
        else:
            self._fail(error)

    def _note_text(self, step: int, failure: str | None) -> None:
        if failure is not None and not self._stopped.done():
            logger.warning("the run's text cannot be read here, S0 is left to others: %s", failure)
        self._feed_own(TextRead(step, failure))

    def _fail(self, error: BaseException) -> None:
        """Nothing here can go on: end the node, with the reason."""
        if not self._stopped.done():
            self._stopped.set_exception(error)

    # --- actions ---

    def _perform(self, action: Action) -> None:
        match action:
            case Send(peer, message, payload):
                self._network.send(peer, message, payload)
            case Run(job):
                self._worker.run(job)
            case Discard() | Keep() | ReleaseHold() | ReleaseSnapshot() | ReleaseStage():
                self._worker.tend(action)
            case Store() | Read():
                self._records.add(action)
            case Emit(name, fields):
                self._emit(name, fields)
            case Stop(reason):
                if not self._stopped.done():
                    self._stopped.set_result(reason)
            case _:
                self._perform_later(action)

    def _perform_later(self, action: Fetch | ReadText | CancelFetches | CloseLinks) -> None:
        assert self._tasks is not None
        match action:
            case ReadText(step):
                self._text_reading = self._tasks.create_task(self._read_text(step), name=f"text of step {step}")
            case Fetch():
                task = self._tasks.create_task(self._fetch(action), name=f"fetch from {action.donor[-8:]}")
                self._fetches.setdefault(action.claim, []).append(task)
            case CancelFetches(claim):
                self._cancel_fetches(claim)
            case CloseLinks(peer):
                self._network.close(peer)

    def _emit(self, name: str, fields: Mapping[str, Any]) -> None:
        self._events.write(name, fields)
        if self._display is not None:
            self._display.note(name, fields, self._loop.time())

    def _cancel_fetches(self, claim: tuple[int, int]) -> None:
        for task in self._fetches.pop(claim, []):
            task.cancel()

    async def _read_text(self, step: int) -> None:
        self._note_text(step, await off_the_loop(lambda: self._host.text.failure(step)))

    async def _fetch(self, fetch: Fetch) -> None:
        try:
            weights = await self._fetcher.fetch(fetch)
        except UnderstudyError as error:
            self.feed(FetchFailed(fetch.claim, fetch.donor, fetch.digest, str(error)))
        else:
            self.feed(Fetched(fetch.claim, fetch.donor, fetch.digest, weights))
