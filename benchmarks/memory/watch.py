"""Reads what the processes of a local swarm take, from /proc, while it trains."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import psutil

from benchmarks.memory.results import Process, Sample
from understudy.bootstrap.local.run import LocalSwarm

POLL_S = 0.25
_FIELD = re.compile(r"^(VmHWM|VmRSS):\s+(\d+) kB$", re.MULTILINE)


class Watcher:
    """The peers that held a stage, and what they took. A peer that is killed keeps its last figures."""

    def __init__(self, swarm: LocalSwarm, sample_every: int) -> None:
        self._swarm, self._sample_every = swarm, sample_every
        self._daemons: dict[int, int] = {}
        self._replaced = 0
        self.processes: dict[str, Process] = {}
        """By peer."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.look()
            await self.replace_spares()
            await asyncio.sleep(POLL_S)

    async def replace_spares(self) -> None:
        """Start a new one for each that became an owner."""
        recovered = sum(loss.recovered is not None for loss in self._swarm.board.losses)
        while self._replaced < recovered:
            self._replaced += 1
            await self._swarm.start_spare()

    def look(self) -> None:
        """Take the figures of all peers that hold a stage now."""
        board = self._swarm.board
        for stage, row in board.rows.items():
            process_id = self._swarm.process_of(row.peer)
            memory = None if process_id is None else memory_of(process_id)
            if process_id is not None and memory is not None:
                self._note(row.peer, stage, memory, self._daemon_memory(process_id))

    def _note(self, peer: str, stage: int, node: Memory, daemon: Memory) -> None:
        step = self._swarm.board.step
        known = self.processes.get(peer, Process(peer, stage, step, 0, 0, []))
        known.stage = stage
        known.node_peak = max(known.node_peak, node[0])
        known.daemon_peak = max(known.daemon_peak, daemon[0])
        is_due = not known.samples or step >= known.samples[-1].step + self._sample_every
        if is_due:
            known.samples.append(Sample(step, node[1], daemon[1]))
        self.processes[peer] = known

    def _daemon_memory(self, process_id: int) -> Memory:
        """Of the libp2p daemon, the node's only child."""
        if process_id not in self._daemons:
            try:
                children = psutil.Process(process_id).children()
            except psutil.NoSuchProcess:
                children = []
            if not children:
                return 0, 0
            self._daemons[process_id] = children[0].pid
        return memory_of(self._daemons[process_id]) or (0, 0)


Memory = tuple[int, int]
"""Peak and present resident bytes."""


def memory_of(process_id: int) -> Memory | None:
    """Peak and present resident bytes of a process; None if it is gone."""
    try:
        text = Path(f"/proc/{process_id}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    return memory_in(text)


def memory_in(status: str) -> Memory | None:
    """Peak and present resident bytes in the text of /proc/PID/status; a process that ended has none."""
    found = {name: int(kilobytes) * 1024 for name, kilobytes in _FIELD.findall(status)}
    return (found["VmHWM"], found["VmRSS"]) if len(found) == 2 else None
