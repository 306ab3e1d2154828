"""The simulated world: time, the network, the DHT, the faults, and what must hold."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeVar

from tests.seals import NamedSeal
from tests.sim.faults import (
    CALM,
    STRAGGLE_S,
    CutLink,
    Fault,
    Hinder,
    Kill,
    Moment,
    Overflow,
    Partition,
    Pause,
    Restart,
    SlowReader,
    Split,
    Stuck,
    Weather,
)
from tests.sim.hindrances import Hindrance, Hindrances, Reading
from tests.sim.judgement import Judge, LogLine
from tests.sim.node import SimNode, Violation
from tests.sim.standbys import StandbyJudge
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
from understudy.protocol.events import (
    Event,
    Fetched,
    FetchFailed,
    JobDone,
    MessageReceived,
    PeerUnreachable,
    RecordsRead,
    Started,
    TextRead,
    TimerFired,
)
from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.jobs import Applied, ApplyJob, BackwardJob, ForwardJob, Job, SnapshotJob
from understudy.protocol.manifest import RunManifest
from understudy.protocol.wire.messages import AnyMessage, Claim, FetchRequest, Forward, Grant, Refusal
from understudy.protocol.wire.records import AnyRecord, key_of

DHT_LATENCY_S = (0.005, 0.05)
JOB_SECONDS = (0.004, 0.02)
FETCH_S = 0.2
WITHOUT_MAJORITY_S = 60.0
"""Longer than any split lasts here, so no side without a majority goes on."""
OF_SIMULATIONS: dict[str, Any] = {
    "without_majority_after_s": WITHOUT_MAJORITY_S,
    "standby_every": 0,
    "method": "checkfree+",
}
"""How a lost stage is rebuilt, unless a story says otherwise: from its neighbours, as in the paper."""
CHECK_EVERY = 23
"""A core looks at all its invariants after so many events: a prime, so as not to fall in step with anything."""
REFUSAL_S = (0.05, 0.6)
"""From a kill until the neighbours' connections are refused."""


@dataclass
class StoredRecord:
    record: AnyRecord
    expires: float
    stored: float


@dataclass(frozen=True, slots=True)
class ActiveSplit:
    """Peers who reach each other and nobody else, from a time until another."""

    group: frozenset[PeerId]
    began: float
    until: float

    def separates(self, one: PeerId, other: PeerId) -> bool:
        return (one in self.group) != (other in self.group)


class Simulation:
    """A swarm of real cores in simulated time. Everything random comes from ``seed``."""

    def __init__(self, manifest: RunManifest, seed: int, faults: list[Fault], weather: Weather = CALM) -> None:
        self.manifest = manifest
        self.rng = random.Random(seed)
        self.weather = weather
        self.now = 0.0
        self.nodes: dict[PeerId, SimNode] = {}
        self.log: list[LogLine] = []
        self.judge = Judge(manifest)
        self.judge.nodes = self.nodes
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = count()
        self._dht: dict[str, dict[PeerId, StoredRecord]] = {}
        self._faults = list(faults)
        self._seen: set[tuple[int, int, Moment]] = set()
        self._splits: list[ActiveSplit] = []
        self._cuts: dict[frozenset[PeerId], float] = {}
        self._channel_free: dict[tuple[PeerId, PeerId, bool], float] = {}
        self._talked: set[tuple[PeerId, PeerId]] = set()
        self._standbys = StandbyJudge()
        self._hindrances: Hindrances[StoredRecord] = Hindrances(self.rng)
        self._calm_since = 0.0
        """When the last fault that heals has healed."""

    # --- time ---

    def at(self, time: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (time, next(self._serial), call))

    def run(self, until: float) -> None:
        """Run until every living node has stopped. Raises `Violation` if that takes too long."""
        while self._agenda:
            self.now, _, call = heapq.heappop(self._agenda)
            if self.now > until and self.is_lost:
                return
            if self.now > until:
                raise Violation(f"not done after {until} simulated seconds; {self.describe()}")
            call()
            if self.is_over:
                return
        raise Violation("nothing left to happen, but the run is not done")

    def advance(self, until: float) -> None:
        """Let time pass until then, whatever comes of it."""
        while self._agenda and self._agenda[0][0] <= until:
            self.now, _, call = heapq.heappop(self._agenda)
            call()
        self.now = until

    @property
    def is_over(self) -> bool:
        return all(node.is_stopped or not node.is_alive for node in self.nodes.values())

    @property
    def is_lost(self) -> bool:
        """No owner is left but such as were replaced: nobody can vouch for a recovery, and the run is not over."""
        living = [node for node in self.nodes.values() if node.is_alive and not node.is_stopped]
        is_over = self.judge.last_committed == self.manifest.step.total_steps
        return not is_over and not any(self.judge.is_latest_owner(node) for node in living)

    def describe(self) -> str:
        """Where everybody stands, for the message of a violation."""
        lines = []
        for node in self.nodes.values():
            state = node.core.state
            holds = f"S{state.tenure.stage}/{state.tenure.incarnation}" if state.tenure else "spare"
            life = "stopped" if node.is_stopped else "alive" if node.is_alive else "killed"
            lines.append(f"{node.peer}: {life} {holds} {state.tenure_state} step {state.committed}")
        return "; ".join(lines)

    # --- nodes ---

    def add_node(self, name: str, wanted_stage: int | None = None, at: float = 0.0) -> None:
        peer = PeerId(name)
        node = SimNode(peer, Core(NamedSeal(peer), self.manifest, check_every=CHECK_EVERY))
        self.nodes[peer] = node
        self.at(at, lambda: self.feed(node, Started(wanted_stage)))
        self.at(at, lambda: self._timer(node, node.timer_serial))

    def feed(self, node: SimNode, event: Event) -> None:
        """Give an event to a core, now or when its process is not stopped any more."""
        if not node.is_alive or node.is_stopped:
            return
        if node.paused_until > self.now:
            self.at(node.paused_until, lambda: self.feed(node, event))
            return
        actions = self._handle(node, event)
        self.judge.check_actions(node.peer, actions)
        for action in actions:
            self._perform(node, action)

    def _handle(self, node: SimNode, event: Event) -> list[Action]:
        return node.core.handle(event, self.now)

    def _timer(self, node: SimNode, serial: int) -> None:
        if not node.is_alive or node.is_stopped or serial != node.timer_serial:
            return
        if node.paused_until > self.now:
            self.at(node.paused_until, lambda: self._timer(node, serial))
            return
        self.feed(node, TimerFired())
        self.judge.check_view(node)
        self.at(max(node.core.deadline, self.now + 0.001), lambda: self._timer(node, serial))

    # --- actions ---

    def _perform(self, node: SimNode, action: Action) -> None:
        match action:
            case Send(peer, message, payload):
                if isinstance(message, Claim):
                    self._reach_moment(self._stage_of(peer), self._step_of(peer), "donate")
                self._check_send(node, peer, message)
                self._send(node, self.nodes.get(peer), MessageReceived(node.peer, message, payload))
            case Store(record, lifetime_s):
                self.judge.check_record(node.peer, record)
                expires = self.now + lifetime_s
                self.at(self.now + self.rng.uniform(*DHT_LATENCY_S), lambda: self._store(node, record, expires))
            case Read(keys):
                for key in keys:
                    self.at(self.now + self.rng.uniform(*DHT_LATENCY_S), lambda key=key: self._read(node, key))
            case ReadText(step):
                self.feed(node, TextRead(step, node.text_failure(step) or node.text_failure(step + 1)))
            case Run(job):
                self._start_job(node, job)
            case Fetch():
                self._fetch(node, action)
            case Emit(name, fields):
                self._note(node, name, dict(fields))
            case Stop():
                node.is_stopped = True
                self.judge.check_stopped(node, self.now, self.now - self._calm_since)
            case Discard() | Keep() | ReleaseCopy() | ReleaseLease() | ReleaseSnapshot() | ReleaseStage():
                self._later(node, lambda: node.perform(action))
            case CancelFetches() | CloseLinks():
                pass

    def _check_send(self, source: SimNode, target: PeerId, message: AnyMessage) -> None:
        self.judge.check_message(message)
        match message:
            case Forward():
                self.judge.check_forward(message)
            case Claim(stage, incarnation, witnesses, _):
                self._remark(source, "(asks)", claim=f"S{stage}/{incarnation}", to=target, witnesses=witnesses)
            case Refusal(stage, incarnation, _, reason):
                self._remark(source, "(refuses)", claim=f"S{stage}/{incarnation}", to=target, reason=reason)
            case Grant(stage, incarnation):
                self._remark(source, "(recognises)", claim=f"S{stage}/{incarnation}", to=target)

    def _later(self, node: SimNode, call: Callable[[], None]) -> None:
        """Behind the compute thread's pending jobs."""
        self.at(max(self.now, node.busy_until), lambda: call() if node.is_alive else None)

    def _start_job(self, node: SimNode, job: Job) -> None:
        start = max(self.now, node.busy_until, node.stuck_until)
        node.busy_until = start + self.rng.uniform(*JOB_SECONDS)
        self.at(start, lambda: self._job_begins(node, job))
        self.at(node.busy_until, lambda: self._finish_job(node, job))

    def _job_begins(self, node: SimNode, job: Job) -> None:
        if node.is_alive and node.hosting is not None:
            moments: dict[type, Moment] = {ForwardJob: "forward", BackwardJob: "backward", ApplyJob: "apply"}
            moment = moments.get(type(job))
            if moment is not None and not isinstance(job, SnapshotJob):
                step = job.step if isinstance(job, ApplyJob) else job.microbatch.step  # type: ignore[union-attr]
                self._reach_moment(node.hosting.stage, step, moment)

    def _finish_job(self, node: SimNode, job: Job) -> None:
        if not node.is_alive:
            return
        if node.paused_until > self.now:
            self.at(node.paused_until, lambda: self._finish_job(node, job))
            return
        if node.stuck_until > self.now:
            self.at(node.stuck_until, lambda: self._finish_job(node, job))
            return
        is_text_needed = isinstance(job, ForwardJob) and node.hosting is not None and node.hosting.stage == DRIVER_STAGE
        if is_text_needed and (failure := node.text_failure(job.microbatch.step)) is not None:  # type: ignore[union-attr]
            self.feed(node, TextRead(job.microbatch.step, failure))  # type: ignore[union-attr]
            return
        result = node.work(job)
        self.feed(node, JobDone(job, result))
        if isinstance(job, ApplyJob):
            self._check_applied(node, job, result)

    def _check_applied(self, node: SimNode, job: ApplyJob, result: Applied) -> None:
        """A skipped update is said at once."""
        said = {line.fields["step"] for line in self.named("update.skipped") if line.observer == node.peer}
        if result.is_skipped and not node.is_stopped and job.step not in said:
            raise Violation(f"{node.peer} skipped the update of step {job.step} and did not say so")

    def _note(self, node: SimNode, name: str, fields: dict[str, Any]) -> None:
        line = LogLine(self.now, node.peer, name, fields)
        self.log.append(line)
        self.judge.check_event(line, node)
        if name == "standby.copied":
            self._standbys.check_copied(fields, self.nodes[fields["holder"]])
        if name == "stage.recovered" and fields["stage"] == 0:
            self._check_s0(node, fields)
        if name == "step.committed":
            self._reach_moment(0, fields["step"], "committed")
        if name == "stage.claimed":
            self._reach_moment(fields["stage"], 0, "claimed")

    def _check_s0(self, node: SimNode, fields: dict[str, Any]) -> None:
        """Judge how S0 came back, if whoever vouched for it is still there and delivered."""
        own = [line for line in self.log if line.observer == node.peer]
        claimed = max((number for number, line in enumerate(own) if line.name == "stage.claimed"), default=None)
        is_clear = not self.judge.is_split and not any(line.name == "fetch.failed" for line in own[claimed or 0 :])
        if claimed is not None and is_clear:
            owners = [self.owner(stage) for stage in own[claimed].fields["witnesses"]]
            self._standbys.check_recovered(fields, [owner for owner in owners if owner is not None])

    # --- network ---

    def _send(self, source: SimNode, target: SimNode | None, event: MessageReceived) -> None:
        if target is None:
            return
        self._talked |= {(source.peer, target.peer), (target.peer, source.peer)}
        if not target.is_alive or target.is_stopped:
            if not target.is_silent and not self._is_cut(source.peer, target.peer):
                self.at(self.now + 0.1, lambda: self.feed(source, PeerUnreachable(target.peer)))
            return
        copies = 1 + (self.rng.random() < self.weather.duplication)
        for _ in range(copies):
            if self.rng.random() < self.weather.loss or self._is_cut(source.peer, target.peer):
                continue
            delay_s = self._hindrances.delay(self.now, source.peer, target.peer, event.message)
            if delay_s is not None:
                at = self._arrival(source, target, event) if not delay_s else self.now + delay_s
                self.at(at, lambda: self._arrive(source, target, event))

    def _arrival(self, source: SimNode, target: SimNode, event: MessageReceived) -> float:
        arrival = self.now + self.rng.uniform(*self.weather.latency_s)
        if self.weather.straggling and self.rng.random() < self.weather.straggling:
            return arrival + self.rng.random() * STRAGGLE_S
        if self.weather.is_reordered:
            return arrival + self.rng.random() * 0.05
        channel = (source.peer, target.peer, event.payload is not None)
        arrival = max(arrival, self._channel_free.get(channel, 0.0) + 1e-6)
        self._channel_free[channel] = arrival
        return arrival

    def _arrive(self, source: SimNode, target: SimNode, event: MessageReceived) -> None:
        if not self._is_cut(source.peer, target.peer):
            self.feed(target, event)

    def _is_cut(self, one: PeerId, other: PeerId) -> bool:
        if self._cuts.get(frozenset((one, other)), 0.0) > self.now:
            return True
        return any(split.until > self.now and split.separates(one, other) for split in self._splits)

    # --- DHT ---

    def _store(self, node: SimNode, record: AnyRecord, expires: float) -> None:
        """Of two records of one peer the later to expire stays, in whatever order they arrive, as in hivemind's DHT."""
        entries = self._dht.setdefault(key_of(record), {})
        known = entries.get(node.peer)
        if node.is_alive and (known is None or known.expires <= expires):
            entries[node.peer] = StoredRecord(record, expires, self.now)

    def _read(self, node: SimNode, key: str) -> None:
        entries = (self._hindrances.stale(self.now, node.peer) or self._dht).get(key, {})
        visible = [entry.record for peer, entry in sorted(entries.items()) if self._is_visible(node, peer, entry)]
        answer = RecordsRead(key, tuple(visible))
        delay_s = self._hindrances.reading_delay(self.now, node.peer)
        if delay_s:
            self.at(self.now + delay_s, lambda: self.feed(node, answer))
        else:
            self.feed(node, answer)

    def _is_visible(self, node: SimNode, owner: PeerId, entry: StoredRecord) -> bool:
        """Each side of a split sees what was stored before it began, and what it stores itself."""
        is_hidden = any(
            split.until > self.now and split.began < entry.stored and split.separates(node.peer, owner)
            for split in self._splits
        )
        return entry.expires > self.now and not is_hidden

    # --- fetches ---

    def _fetch(self, node: SimNode, fetch: Fetch) -> None:
        donor = self.nodes[fetch.donor]
        donor_stage = self._stage_of(fetch.donor)
        self._reach_moment(donor_stage, self._step_of(fetch.donor), "fetch")
        request = FetchRequest(*fetch.claim, fetch.digest, 0, fetch.base, piece_bytes=fetch.share)
        self.at(self.now + FETCH_S, lambda: self._finish_fetch(node, donor, fetch, request))

    def _finish_fetch(self, node: SimNode, donor: SimNode, fetch: Fetch, request: FetchRequest) -> None:
        if (
            not donor.is_alive
            or donor.is_stopped
            or donor.paused_until > self.now
            or self._is_cut(node.peer, donor.peer)
        ):
            self.at(
                self.now + 4.0, lambda: self.feed(node, FetchFailed(fetch.claim, fetch.donor, fetch.digest, "cut off"))
            )
        elif not donor.core.may_fetch(node.peer, request):
            self.feed(node, FetchFailed(fetch.claim, fetch.donor, fetch.digest, "refused"))
        else:
            self.feed(node, Fetched(fetch.claim, fetch.donor, fetch.digest, donor.fetchable(fetch.digest)))

    # --- faults ---

    def owner(self, stage: int) -> SimNode | None:
        """The living owner of a stage with the highest incarnation."""
        owners = [
            node
            for node in self.nodes.values()
            if node.is_alive and node.core.state.is_serving and node.core.state.stage == stage
        ]
        return max(owners, key=lambda node: node.core.state.incarnation, default=None)

    def _stage_of(self, peer: PeerId) -> int:
        tenure = self.nodes[peer].core.state.tenure
        return tenure.stage if tenure else -1

    def _step_of(self, peer: PeerId) -> int:
        return self.nodes[peer].core.state.committed

    def _reach_moment(self, stage: int, step: int, moment: Moment) -> None:
        if (stage, step, moment) in self._seen:
            return
        self._seen.add((stage, step, moment))
        for fault in list(self._faults):
            when = fault.when
            is_step = when.step == step or moment in ("donate", "fetch", "claimed")
            if when.stage == stage and is_step and when.moment == moment:
                self._faults.remove(fault)
                self.at(self.now + when.after_s, lambda fault=fault: self._strike(fault))

    def _strike(self, fault: Fault) -> None:
        if isinstance(fault, Hinder):
            self._hinder(fault)
            return
        victim_stage = fault.when.stage if isinstance(fault, CutLink | Split) else fault.victim
        victim = self.owner(fault.when.stage if victim_stage is None else victim_stage)
        if victim is None:
            return
        self._calm_since = max(self._calm_since, self.now + getattr(fault, "seconds", 0.0))
        match fault:
            case Kill(is_silent=is_silent):
                self.kill(victim, is_silent)
            case Restart(seconds=seconds):
                self.kill(victim)
                self.at(self.now + seconds, lambda: self.restart(victim))
            case Pause(seconds=seconds):
                victim.paused_until = self.now + seconds
                self._remark(victim, "(paused)", seconds=seconds)
            case Partition(seconds=seconds):
                self._part(frozenset({victim.peer}), seconds)
            case CutLink(seconds=seconds, other=other):
                neighbour = self.owner(other)
                if neighbour is not None and neighbour is not victim:
                    self._cuts[frozenset((victim.peer, neighbour.peer))] = self.now + seconds
                    self.judge.is_split |= self.manifest.stage_count == 2
                    self._remark(victim, "(link cut)", to=neighbour.peer, seconds=seconds)
            case Split(seconds=seconds, stages=stages, spares=spares):
                owners = [node.peer for stage in stages if (node := self.owner(stage)) is not None]
                idle = [node.peer for node in self.nodes.values() if node.is_alive and node.core.state.tenure is None]
                self._part(frozenset(owners + idle[:spares]), seconds)
            case SlowReader(seconds=seconds):
                records = {key: dict(entries) for key, entries in self._dht.items()}
                self._hindrances.slow_down(victim.peer, Reading(fault, self.now + seconds, records))
                self._remark(victim, "(reads late)", seconds=seconds)
            case Stuck(seconds=seconds):
                victim.stuck_until = self.now + seconds
                victim.busy_until = max(victim.busy_until, victim.stuck_until)
                self._remark(victim, "(stuck)", seconds=seconds)
            case Overflow(updates=updates):
                victim.overflowing = updates
                self._remark(victim, "(overflows)", updates=updates)

    def _hinder(self, fault: Hinder) -> None:
        source, target = (self.owner(stage) if stage is not None else None for stage in (fault.victim, fault.towards))
        if (fault.victim is not None and source is None) or (fault.towards is not None and target is None):
            return
        self._calm_since = max(self._calm_since, self.now + fault.seconds + fault.delay_s)
        peers = (source.peer if source else None, target.peer if target else None)
        self._hindrances.hinder(Hindrance(fault, *peers, self.now + fault.seconds))
        self.log.append(LogLine(self.now, peers[0] or PeerId("(all)"), "(hindered)", {"kinds": fault.kinds}))

    def _part(self, group: frozenset[PeerId], seconds: float) -> None:
        self._splits.append(ActiveSplit(group, self.now, self.now + seconds))
        self.judge.is_split |= self.manifest.stage_count == 2
        for peer in sorted(group):
            self._remark(self.nodes[peer], "(cut off)", seconds=seconds)

    def _remark(self, node: SimNode, name: str, **fields: Any) -> None:
        """What no node reports, in parentheses: the log is read by people too."""
        self.log.append(LogLine(self.now, node.peer, name, fields))

    def kill(self, victim: SimNode, is_silent: bool = False) -> None:
        """The process ends without a word."""
        victim.is_alive, victim.is_silent = False, is_silent
        self._remark(victim, "(killed)")
        if is_silent:
            return
        for source, target in sorted(self._talked):
            if target == victim.peer:
                at = self.now + self.rng.uniform(*REFUSAL_S)
                self.at(at, lambda source=source: self._refuse(source, victim.peer))

    def _refuse(self, source: PeerId, target: PeerId) -> None:
        """A broken connection is dialled anew; only nobody there refuses it."""
        if not self.nodes[target].is_alive:
            self.feed(self.nodes[source], PeerUnreachable(target))

    def restart(self, victim: SimNode) -> None:
        """The same command again: the same identity, and nothing else of before."""
        self.judge.forget(victim.peer)
        self.add_node(victim.peer, at=self.now)
        self.nodes[victim.peer].past = victim.past + [victim.hosting] * (victim.hosting is not None)
        self._remark(victim, "(started again)")

    # --- judgement ---

    def check_outcome(self) -> None:
        """What must hold once the run is done, unless every owner was lost."""
        if not self.is_over and self.is_lost:
            return
        try:
            self.judge.check_outcome(self.nodes, self.log)
        except Violation as violation:
            raise Violation(f"{violation}; {self.describe()}") from None

    def recoveries(self) -> list[LogLine]:
        return [line for line in self.log if line.name == "stage.recovered"]

    def named(self, name: str) -> list[LogLine]:
        return [line for line in self.log if line.name == name]


def small_manifest(stages: int = 5, steps: int = 4, microbatches: int = 4, **settings: Any) -> RunManifest:
    """A run whose model does not matter."""
    manifest = RunManifest(name="sim")
    return replace_settings(
        manifest,
        model=replace_settings(manifest.model, block_stages=stages - 1),
        step=replace_settings(manifest.step, microbatches=microbatches, total_steps=steps, microbatch_timeout_s=8.0),
        recovery=replace_settings(manifest.recovery, **(OF_SIMULATIONS | settings)),
    )


def replace_settings(section: Any, **changes: Any) -> Any:
    """msgspec's structs are frozen: a changed copy."""
    import msgspec

    return msgspec.structs.replace(section, **changes)


S = TypeVar("S", bound="Simulation")


def build(
    seed: int, faults: list[Fault], *, manifest: RunManifest, spares: int, weather: Weather = CALM, kind: type[S]
) -> S:
    """A swarm with one node per stage and some spares that come a little later."""
    simulation = kind(manifest, seed, faults, weather)
    for stage in range(manifest.stage_count):
        simulation.add_node(f"peer-{stage}", wanted_stage=stage)
    for number in range(spares):
        simulation.add_node(f"spare-{number}", at=1.6)
    return simulation


__all__ = ["LogLine", "Simulation", "build", "replace", "replace_settings", "small_manifest"]
