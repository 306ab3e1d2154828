"""The node: feeds the core with what happens and does what the core says.

One event loop, one compute thread, one p2pd. Everything that runs belongs to the one TaskGroup of
`Node.run`; when the core says stop, or anything fails, the group ends and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from understudy.node.compute.capacity import measure_capacity
from understudy.node.compute.stage import StageHost
from understudy.node.compute.tensors import activation_header
from understudy.node.compute.worker import Worker
from understudy.node.config import NodeConfig
from understudy.node.data.prefetch import off_the_loop
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.dht.record_sync import Records
from understudy.node.links.climbing import Climbing
from understudy.node.links.fetches import Fetches
from understudy.node.links.link import LinkRules, Listener
from understudy.node.links.metering import Counters, MeteredStreams
from understudy.node.links.network import Network
from understudy.node.links.transfer import Fetcher, WeightsServer, fetch_protocol
from understudy.node.reach.lookout import Lookout
from understudy.node.ui.display import Display
from understudy.node.ui.display_loop import Watch
from understudy.node.ui.telemetry import EventLog
from understudy.protocol.actions import (
    Action,
    CancelFetches,
    CloseLinks,
    Discard,
    Emit,
    Fetch,
    Keep,
    Read,
    ReadText,
    ReleaseCopy,
    ReleaseLease,
    ReleaseSnapshot,
    ReleaseStage,
    Run,
    Send,
    Stop,
    Store,
)
from understudy.protocol.core import Core
from understudy.protocol.errors import TextError, TrainingError
from understudy.protocol.events import (
    Event,
    JobDone,
    LinkFailed,
    MessageReceived,
    PeerUnreachable,
    ReachabilityFound,
    SendFailed,
    Started,
    StopRequested,
    TextRead,
    TimerFired,
)
from understudy.protocol.ids import PeerId
from understudy.protocol.jobs import BackwardJob, Job
from understudy.protocol.manifest_reader import decode_manifest
from understudy.protocol.reach.verdict import Verdict
from understudy.protocol.wire.messages import AnyMessage, DataMessage
from understudy.protocol.wire.records import ManifestRecord

logger = logging.getLogger(__name__)

GOODBYE_TIMEOUT_S = 3.0
"""For the last messages and records to leave."""


class Node:
    """One volunteer's node of a run."""

    def __init__(
        self,
        p2p: P2PNode,
        signed_manifest: ManifestRecord,
        config: NodeConfig,
        *,
        can_drive: bool = True,
        display: Display | None = None,
        check_every: int = 0,
    ) -> None:
        """``can_drive``, ``check_every``: see `Core`. ``display``: what a person in front of the node sees of it."""
        manifest = decode_manifest(signed_manifest.manifest)
        self._p2p, self._config = p2p, config
        self._run_id = manifest.run_id()
        able = {"can_drive": can_drive, "can_hold_blocks": config.can_hold_blocks}
        self._core = Core(p2p.identity, manifest, signed_manifest, **able, check_every=check_every)
        self._events = EventLog(config.events_path)
        self._loop = asyncio.get_running_loop()
        self._host = StageHost(manifest, config.device, config.text)
        self._worker = Worker(self._host, config.threads, self._job_finished, self._job_failed)
        rules = LinkRules(self._run_id, manifest.digest(), activation_header(manifest))
        self._counters = Counters()
        streams = MeteredStreams(p2p, self._counters)
        self._network = Network(streams, rules, self._listener())
        self._fetch_protocol = fetch_protocol(rules.run_id)
        shelf = self._host.shelf
        self._fetches = Fetches(Fetcher(streams, rules, manifest.model, self._worker, shelf.find), self.feed)
        self._weights = WeightsServer(self._core.may_fetch, shelf.find, shelf.find_difference)
        self._records = Records(p2p, manifest, self.feed)
        self._watch = Watch(self._core, self._counters, display, self._records.add) if display is not None else None
        self._text_reading: asyncio.Task[None] | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopped: asyncio.Future[str] = self._loop.create_future()
        self.lookout: Lookout | None = None
        """Looks how others get to us, while the node runs; set before that."""
        self._failure = ""
        """Why the core ended this node, if it could not go on."""
        self._is_hurried = asyncio.Event()

    async def run(self) -> str:
        """Serve until the run is done ("done") or `stop` is called ("asked").

        Raises `TrainingError` if the stage cannot be trained here any more, after the goodbye.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                owned = [tasks.create_task(self._p2p.watch_daemon()), tasks.create_task(self._records.run())]
                owned.append(tasks.create_task(self._p2p.keep_door()))
                if not self._p2p.is_local:
                    owned.append(tasks.create_task(self._network.keep_warm()))
                    owned.append(tasks.create_task(Climbing(self._p2p, self._network, self.feed).run()))
                if self.lookout is not None:
                    owned.append(tasks.create_task(self.lookout.run(self._note_reachability)))
                if self._watch is not None:
                    owned.append(tasks.create_task(self._watch.run()))
                await self._start(tasks)
                reason = await self._stopped
                await self._say_goodbye(tasks)
                for task in owned:
                    task.cancel()
                self._close()
            if self._failure:
                raise TrainingError(self._failure)
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

    def _note_reachability(self, verdict: Verdict) -> None:
        self.feed(ReachabilityFound(verdict.reachability, verdict.reason, verdict.seen_at))

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        self._network.start(tasks)
        capacity = await self._worker.call(lambda: measure_capacity(self._config.device, self._config.threads))
        metered = self._counters.metered_callback
        await self._p2p.serve_streams(self._network.protocol, metered(self._network.receive))
        await self._p2p.serve_streams(self._fetch_protocol, metered(self._weights.serve))
        self.feed(Started(self._config.stage, capacity, self._p2p.contact.reachability))
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
        self._fetches.cancel_all()

    # --- events ---

    def feed(self, event: Event) -> None:
        """Give an event to the core and do what it says.

        Whatever goes wrong on the way is a bug of ours, as peers are judged before and within: the core may be half
        changed. A node that went on would keep its stage and do nothing any more: better that it ends and is replaced.
        Nobody else would end it: the loop, a stream and a future only log, or forget, what a callback raises.
        """
        if self._stopped.done():
            return
        try:
            for action in self._core.handle(event, self._loop.time()):
                self._perform(action)
        except Exception as error:  # noqa: BLE001 - whatever it is, `run` raises it
            self._fail(error)

    def _tick(self) -> None:
        self.feed(TimerFired())
        if not self._stopped.done():
            self._timer = self._loop.call_at(self._core.deadline, self._tick)

    def _listener(self) -> Listener:
        return Listener(
            self._message_came,
            self._peer_gone,
            self._send_failed,
            self._p2p.note_contact,
            lambda peer, reason: self.feed(LinkFailed(peer, reason)),
            lambda: self._p2p.contact,
            self._p2p.is_observer,
            self._core.state.membership.holds_a_seat,
        )

    def _message_came(self, peer: PeerId, message: AnyMessage, payload: Any) -> None:
        self.feed(MessageReceived(peer, message, payload))

    def _peer_gone(self, peer: PeerId) -> None:
        self.feed(PeerUnreachable(peer))

    def _send_failed(self, peer: PeerId, message: DataMessage, payload: Any) -> None:
        """Told while the core's actions are being done: it hears of it when they are."""
        self._loop.call_soon(self.feed, SendFailed(peer, message, payload))

    def _job_finished(self, job: Job, result: Any, seconds: float, came: float | None = None) -> None:
        self._counters.microbatches += isinstance(job, BackwardJob)
        self.feed(JobDone(job, result, seconds, came))

    def _job_failed(self, error: BaseException) -> None:
        """A text that cannot be read ends our driving; anything else ends the node."""
        if isinstance(error, TextError):
            self._note_text(self._core.state.committed + 1, str(error))
        else:
            self._fail(error)

    def _note_text(self, step: int, failure: str | None) -> None:
        if failure is not None and not self._stopped.done():
            logger.warning("the run's text cannot be read here, S0 is left to others: %s", failure)
        self.feed(TextRead(step, failure))

    def _fail(self, error: BaseException) -> None:
        """Nothing here can go on: end the node, with the reason."""
        if not self._stopped.done():
            self._stopped.set_exception(error)
            self._stopped.exception()  # retrieved: `run` may be ending for another reason already

    # --- actions ---

    def _perform(self, action: Action) -> None:
        match action:
            case Send(peer, message, payload):
                self._network.send(peer, message, payload)
            case Run(job):
                self._worker.run(job)
            case Discard() | Keep() | ReleaseCopy() | ReleaseLease() | ReleaseSnapshot() | ReleaseStage():
                self._worker.tend(action)
            case Store() | Read():
                self._records.add(action)
            case Emit(name, fields):
                self._emit(name, fields)
            case Stop(reason, failure):
                if not self._stopped.done():
                    self._failure = failure
                    self._stopped.set_result(reason)
            case _:
                self._perform_later(action)

    def _perform_later(self, action: Fetch | ReadText | CancelFetches | CloseLinks) -> None:
        assert self._tasks is not None
        match action:
            case ReadText(step):
                self._text_reading = self._tasks.create_task(self._read_text(step), name=f"text of step {step}")
            case Fetch():
                self._fetches.begin(action, self._tasks)
            case CancelFetches(claim):
                self._fetches.cancel(claim)
            case CloseLinks(peer):
                self._network.close(peer)

    def _emit(self, name: str, fields: Mapping[str, Any]) -> None:
        self._events.write(name, fields)
        if self._watch is not None:
            self._watch.note(name, fields, self._loop.time())

    async def _read_text(self, step: int) -> None:
        self._note_text(step, await off_the_loop(lambda: self._host.text.failure(step)))
