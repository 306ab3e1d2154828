"""A whole swarm on this machine: real processes, real hivemind, real text, and faults on order.

This process only starts, watches and strikes the others: it reads their event files, holds no stage and
decides nothing of the protocol.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from understudy.bootstrap.local.children import Child
from understudy.bootstrap.local.faults import Fault
from understudy.bootstrap.local.monitor import Board, Loss
from understudy.node.data.access import as_options, tokenizer_options
from understudy.node.files.atomic import writing_aside
from understudy.node.p2p.daemon import sweep_stale_sockets
from understudy.protocol.errors import NetworkError
from understudy.protocol.manifest import RunManifest
from understudy.protocol.run_toml import NO_FILES, OwnFiles

POLL_S = 0.05
JOIN_TIMEOUT_S = 60.0
SPARES_AFTER_STAGES_S = 120.0
LEAVE_TIMEOUT_S = 20.0
"""For nodes to leave by themselves after the last step."""
EXPORT_TIMEOUT_S = 900.0
"""For the weights after the last step to be fetched and written."""
LISTEN = "/ip4/127.0.0.1/tcp/0"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a child runs."""

    prefix: tuple[str, ...] = ()
    """What its command begins with, such as ``ip netns exec NAME``: a command that becomes the child."""
    listen: str = LISTEN


HERE = Place()


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """What to run."""

    source: str
    """Preset or run.toml, for the seed."""
    manifest: RunManifest
    """What the seed will found, but for the nonce."""
    spares: int
    faults: tuple[Fault, ...]
    folder: Path
    device: str = "cpu"
    threads: int = 1
    export_folder: Path | None = None
    """Where the weights after the last step go."""
    initial_weights: Path | None = None
    """An export to begin with."""
    files: OwnFiles = NO_FILES
    """Of this machine, that a run.toml names as the run's text."""
    places: tuple[Place, ...] = ()
    """Of the seed and of S0, S1, ...; everybody else runs here."""

    def place(self, number: int) -> Place:
        """Of the seed (0), or of the first owner of stage ``number`` - 1."""
        return self.places[number] if number < len(self.places) else HERE


class EventTail:
    """Reads what is new in the event files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}
        self.events: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """New events of all files, oldest first. A line being written is left for the next time."""
        fresh: list[dict[str, Any]] = []
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                data = file.read()
            complete = data[: data.rfind(b"\n") + 1]
            self._offsets[path] = self._offsets.get(path, 0) + len(complete)
            fresh += [msgspec.json.decode(line) for line in complete.splitlines()]
        fresh.sort(key=lambda event: float(event["time"]))
        self.events += fresh
        return fresh


class LocalSwarm:
    """The seed, the nodes, and what we know of them."""

    def __init__(self, plan: LocalPlan, on_change: Callable[[Board], None]) -> None:
        self.plan = plan
        self.board = Board(plan.manifest.stage_count, plan.manifest.step.total_steps)
        self.join = ""
        self._nodes_folder = plan.folder / "nodes"
        self._tail = EventTail(self._nodes_folder)
        self._on_change = on_change
        self._seed: Child | None = None
        self._nodes: list[Child] = []
        self._spare_numbers = count()
        self._exporter: Child | None = None
        self._peers: dict[str, Child] = {}
        self._pending = list(plan.faults)
        self._thaws: list[tuple[float, Child, dict[str, Any]]] = []
        self._own_events: list[dict[str, Any]] = []
        self._is_stopped = False

    def stop(self) -> None:
        """End the run early, cleanly."""
        self._is_stopped = True

    async def run(self) -> Board:
        """Run to the last step. Raises `NetworkError` if the swarm cannot be brought up or falls apart."""
        self._nodes_folder.mkdir(parents=True, exist_ok=True)
        try:
            await self._start_seed()
            for stage in range(self.plan.manifest.stage_count):
                await self._start_node(f"stage-{stage}", str(stage), self.plan.place(stage + 1))
            await self._watch(lambda: self._is_complete, SPARES_AFTER_STAGES_S, "every stage to be served")
            await self._start_exporter()
            for _ in range(self.plan.spares):
                await self.start_spare()
            await self._watch(lambda: not self.board.missing_steps and not self._thaws, None, "")
            if self._exporter is not None:
                exporter = self._exporter
                await self._watch(lambda: not exporter.is_running, EXPORT_TIMEOUT_S, "the export of the last step")
            await self._watch(lambda: not any(node.is_running for node in self._nodes), LEAVE_TIMEOUT_S, None)
        finally:
            await self._end()
        return self.board

    async def start_spare(self) -> None:
        """One more node that takes the stage of the next owner who is lost."""
        await self._start_node(f"spare-{next(self._spare_numbers)}", "auto")

    def process_of(self, peer: str) -> int | None:
        """The id of the process that is this peer; None if we know of none that runs."""
        child = self._peers.get(peer)
        return child.process_id if child is not None and child.is_running else None

    @property
    def _is_complete(self) -> bool:
        return all(row.state != "waiting" for row in self.board.rows.values())

    # --- children ---

    async def _start_seed(self) -> None:
        join_file = self.plan.folder / "join.txt"
        join_file.unlink(missing_ok=True)
        place = self.plan.place(0)
        arguments = [self.plan.source, "--host-maddr", place.listen, "--dir", str(self.plan.folder)]
        arguments += ["--steps", str(self.plan.manifest.step.total_steps)]
        arguments += ["--identity", str(self._nodes_folder / "seed.key")]
        if self.plan.initial_weights is not None:
            arguments += ["--initial-weights", str(self.plan.initial_weights.resolve())]
        log_path = self._nodes_folder / "seed.log"
        self._seed = await Child.start("seed", "understudy.bootstrap", arguments, log_path, place.prefix)
        await self._watch(join_file.exists, JOIN_TIMEOUT_S, "the seed to start")
        self.join = join_file.read_text(encoding="utf-8").strip()

    async def _start_node(self, name: str, stage: str, place: Place = HERE) -> None:
        files = self._nodes_folder / name
        arguments = ["--join", self.join, "--stage", stage, "--host-maddr", place.listen]
        arguments += ["--identity", f"{files}.key", "--events", f"{files}.jsonl"]
        arguments += ["--device", self.plan.device, "--threads", str(self.plan.threads)]
        arguments += as_options(self.plan.manifest.data, self.plan.files)
        self._nodes.append(await Child.start(name, "understudy.node", arguments, Path(f"{files}.log"), place.prefix))

    async def _start_exporter(self) -> None:
        """Early, so that nobody leaves with the last step before it is exported."""
        if self.plan.export_folder is not None:
            arguments = [str(self.plan.export_folder), "--join", self.join, "--last", "--host-maddr", LISTEN]
            arguments += tokenizer_options(self.plan.manifest.data, self.plan.files)
            log_path = self._nodes_folder / "export.log"
            self._exporter = await Child.start("export", "understudy.node.export.command", arguments, log_path)

    @property
    def _guests(self) -> list[Child]:
        """Who is neither the seed nor a node of the run's stages."""
        return [self._exporter] if self._exporter else []

    async def _end(self) -> None:
        """Leave no process and no socket behind."""
        for child in [*self._nodes, *self._guests, *([self._seed] if self._seed else [])]:
            child.thaw()
        async with asyncio.TaskGroup() as tasks:
            for child in [*self._nodes, *self._guests]:
                tasks.create_task(child.stop())
        if self._seed is not None:
            await self._seed.stop()
        sweep_stale_sockets(older_than_s=0)
        self._note_events()
        self._merge()

    # --- watching ---

    async def _watch(self, is_reached: Callable[[], bool], timeout_s: float | None, what: str | None) -> None:
        """Watch until something is reached; ``what`` None: it is no failure if it is not."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not is_reached() and not self._is_stopped:
            if deadline is not None and time.monotonic() > deadline:
                if what is None:
                    return
                raise NetworkError(f"waited {timeout_s:g} s for {what}; see the logs in {self._nodes_folder}")
            self._note_events()
            self._strike()
            self._check_children()
            self._on_change(self.board)
            await asyncio.sleep(POLL_S)
        self._note_events()
        self._on_change(self.board)

    def _note_events(self) -> None:
        for event in self._tail.read():
            self.board.note(event)
            if "observer" not in event:
                self._learn_peer(event["peer"])

    def _learn_peer(self, peer: str) -> None:
        """Whose child a peer is: the one whose event file speaks of it."""
        if peer in self._peers:
            return
        for node in self._nodes:
            path = node.log_path.with_suffix(".jsonl")
            if path.exists() and f'"peer":"{peer}"' in path.read_text(encoding="utf-8").split("\n", 1)[0]:
                self._peers[peer] = node

    def _check_children(self) -> None:
        """A child that failed although we did nothing to it is a failure of the swarm."""
        for child in [*self._nodes, *self._guests, *([self._seed] if self._seed else [])]:
            if child.exit_status not in (None, 0) and not child.is_struck:
                raise NetworkError(f"{child.name} failed: {child.last_line}")

    # --- faults ---

    def _strike(self) -> None:
        now = time.time()
        for thaw in [thaw for thaw in self._thaws if thaw[0] <= now]:
            self._thaws.remove(thaw)
            _, child, victim = thaw
            self._note_own("fault.resumed", victim)
            self.board.resumed(victim["stage"])
            child.thaw()
        for fault in [fault for fault in self._pending if fault.step <= self.board.step]:
            owner = self._peers.get(self.board.owner(fault.stage))
            if owner is not None and owner.is_running and self.board.rows[fault.stage].state == "serving":
                self._pending.remove(fault)
                self._strike_child(fault, owner)

    def _strike_child(self, fault: Fault, child: Child) -> None:
        row = self.board.rows[fault.stage]
        victim = {"peer": row.peer, "stage": fault.stage, "incarnation": row.incarnation}
        # The event comes first, so that whatever follows from the blow is later than it.
        if fault.pause_s is None:
            self._note_own("fault.killed", victim)
            child.kill()
        else:
            self._note_own("fault.paused", victim)
            child.freeze()
            self._thaws.append((time.time() + fault.pause_s, child, victim))
        what = "killed" if fault.pause_s is None else "paused"
        self.board.struck(Loss(fault.stage, time.time(), what, self.board.step))

    def _note_own(self, name: str, victim: dict[str, Any]) -> None:
        """Events of this process: what we did to whom."""
        self._own_events.append({"time": time.time(), "event": name, **victim, "step": self.board.step})

    def _merge(self) -> None:
        """All events in one file in order of time, each committed step once."""
        events = sorted(self._tail.events + self._own_events, key=lambda event: float(event["time"]))
        committed: set[int] = set()
        with writing_aside(self.plan.folder / "events.jsonl") as aside, aside.open("wb") as file:
            for event in events:
                if event["event"] == "step.committed":
                    if event["step"] in committed:
                        continue
                    committed.add(event["step"])
                file.write(msgspec.json.encode(event) + b"\n")
