"""Exporters in the simulated world, and what must hold of what they export."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from tests.sim.judgement import LogLine
from tests.sim.node import SimNode, Snapshot, Violation
from tests.sim.simulation import DHT_LATENCY_S, Simulation
from understudy.protocol.actions import CancelFetches, Emit, Fetch, Read, Send
from understudy.protocol.events import Event, Fetched, MessageReceived, Started, TimerFired
from understudy.protocol.export.actions import BeginExport, ExportWish, FailExport, FinishExport
from understudy.protocol.export.exporter import Exporter
from understudy.protocol.ids import PeerId


class SimExporter(SimNode):
    """The real decisions of an export; its folder is a dict."""

    core: Any

    def __init__(self, peer: PeerId, core: Exporter) -> None:
        super().__init__(peer, core)  # type: ignore[arg-type]
        self.parts: dict[int, tuple[int, Snapshot]] = {}
        """By stage: the incarnation that it came from, and what came."""
        self.finished: int | None = None
        self.failed = ""


class ExportSimulation(Simulation):
    """A swarm, and people who export from it while it lives its life."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.exporters: dict[PeerId, SimExporter] = {}

    def add_exporter(self, name: str, at: float, wish: ExportWish | None = None) -> SimExporter:
        peer = PeerId(name)
        exporter = SimExporter(peer, Exporter(peer, self.manifest, wish or ExportWish()))
        self.exporters[peer] = exporter
        self.at(at, lambda: self.feed(exporter, Started()))
        self.at(at, lambda: self._wake(exporter))
        return exporter

    @property
    def is_over(self) -> bool:
        return super().is_over and all(exporter.is_stopped for exporter in self.exporters.values())

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Let the world go on until something holds."""
        while not condition():
            self.now, _, call = heapq.heappop(self._agenda)
            call()

    def _wake(self, exporter: SimExporter) -> None:
        if not exporter.is_stopped:
            self.feed(exporter, TimerFired())
            self.at(max(exporter.core.deadline, self.now + 0.001), lambda: self._wake(exporter))

    def feed(self, node: SimNode, event: Event) -> None:
        if isinstance(node, SimExporter) and isinstance(event, Fetched):
            stage, incarnation = event.claim
            node.parts[stage] = (incarnation, event.payload)
        super().feed(node, event)

    def _perform(self, node: SimNode, action: Any) -> None:
        if isinstance(node, SimExporter):
            self._perform_export(node, action)
        elif isinstance(action, Send) and action.peer in self.exporters:
            self.judge.check_message(action.message)
            self._carry(node, self.exporters[action.peer], action)
        else:
            super()._perform(node, action)

    def _perform_export(self, exporter: SimExporter, action: Any) -> None:
        match action:
            case Send(peer, message):
                self.judge.check_message(message)
                self._carry(exporter, self.nodes[peer], action)
            case Read(keys):
                for key in keys:
                    self.at(self.now + self.rng.uniform(*DHT_LATENCY_S), lambda key=key: self._read(exporter, key))
            case Fetch():
                self._fetch(exporter, action)
            case Emit(name, fields):
                self.log.append(LogLine(self.now, exporter.peer, name, dict(fields)))
            case BeginExport():
                exporter.parts.clear()
            case FinishExport(step):
                exporter.is_stopped = True
                exporter.finished = step
                self._judge_export(exporter, step)
            case FailExport(reason):
                exporter.is_stopped = True
                exporter.failed = reason
                self._remark(exporter, "(gives up)", why=reason)
            case CancelFetches():
                pass

    def _carry(self, source: SimNode, target: SimNode, send: Send) -> None:
        """As the network carries everything else."""
        event = MessageReceived(source.peer, send.message)
        for _ in range(1 + (self.rng.random() < self.weather.duplication)):
            if self.rng.random() >= self.weather.loss and not self._is_cut(source.peer, target.peer):
                self.at(self._arrival(source, target, event), lambda: self._arrive(source, target, event))

    def _judge_export(self, exporter: SimExporter, step: int) -> None:
        """Every stage, all as of one step, each from a tenure that served it."""
        if sorted(exporter.parts) != list(range(self.manifest.stage_count)):
            raise Violation(f"an export is whole with the stages {sorted(exporter.parts)} only")
        for stage, (incarnation, copy) in exporter.parts.items():
            if (copy.stage, copy.step) != (stage, step):
                raise Violation(f"an export of step {step} holds {copy} as S{stage}")
            if self.judge.who_served(stage, incarnation) != copy.peer:
                raise Violation(f"{copy.peer} never served S{stage}/{incarnation}, but an export holds {copy}")
