"""What TCP itself makes of a step: plain sockets send its tensors in a pipeline's order, without arithmetic or libp2p.

TCP that paused for longer than its retransmission timeout begins again with ten packets (Linux: net.ipv4.
tcp_slow_start_after_idle). Each link of a pipeline pauses between steps, so a step's first tensor starts anew at every
hop: a bound from bytes and bandwidth knows nothing of that, and this does. With pauses filled, as our nodes fill them,
it is what any program that sends whole tensors over TCP can hope for.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise

from benchmarks.links.bounds import activation_bytes
from benchmarks.links.machines import Machine
from benchmarks.links.raw import TIMEOUT_S, connected
from benchmarks.throughput.results import WARM_UP
from understudy.protocol.manifest import RunManifest

PLAIN = "plain sockets"
FILLED = "plain sockets kept warm"
INDEX_BYTES = 4
FILLER = 0xFFFFFFFF
"""An index that no microbatch has, with nothing behind it."""
FILL_EVERY_S = 0.05
"""Below any retransmission timeout (0.2 s at least), after which TCP begins again."""
WINDOW_PER_STAGE = 2
"""In flight where the run leaves it to S0, which begins with so many."""


def step_seconds(
    manifest: RunManifest, steps: int, machines: Sequence[Machine], *, fills_pauses: bool = False
) -> list[float]:
    """Of each step but the first ones, on which connections grow. ``machines``: of S0, S1, ..., Sn."""
    home: queue.Queue[int] = queue.Queue()
    window = manifest.step.window or WINDOW_PER_STAGE * manifest.stage_count
    with ExitStack() as stack:
        fill_every_s = FILL_EVERY_S if fills_pauses else None
        begin = _lay(stack, machines, activation_bytes(manifest), fill_every_s, home.put)
        return [_step_s(begin, home, window, manifest.step.microbatches) for _ in range(WARM_UP + steps)][WARM_UP:]


def _lay(
    stack: ExitStack,
    machines: Sequence[Machine],
    tensor_bytes: int,
    fill_every_s: float | None,
    arrive: Callable[[int], None],
) -> Callable[[int], None]:
    """Connections for the way there and back; what sends a microbatch off. ``arrive``: told of each that is home."""
    ring = [*machines, machines[0]]
    hops = [*pairwise(ring), *pairwise(reversed(ring))]
    onward = arrive
    for sender, receiver in reversed(hops):
        onward = _Line(stack.enter_context(connected(sender, receiver)), tensor_bytes, fill_every_s, onward).open(stack)
    return onward


class _Line:
    """One connection, with a thread that sends what is queued and one that passes on what came whole."""

    def __init__(
        self,
        ends: tuple[socket.socket, socket.socket],
        tensor_bytes: int,
        fill_every_s: float | None,
        onward: Callable[[int], None],
    ) -> None:
        self._out, self._came = ends
        self._onward, self._queue = onward, queue.Queue[int | None]()
        self._tensor_bytes, self._fill_every_s = tensor_bytes, fill_every_s

    def open(self, stack: ExitStack) -> Callable[[int], None]:
        """Start both threads; the stack ends them. Returns what sends a microbatch."""
        threads = [threading.Thread(target=work) for work in (self._send, self._receive)]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(self._queue.put, None)
        return self._queue.put

    def _send(self) -> None:
        while (index := self._next()) is not None:
            payload_bytes = 0 if index == FILLER else self._tensor_bytes
            self._out.sendall(index.to_bytes(INDEX_BYTES, "big") + bytes(payload_bytes))
        self._out.shutdown(socket.SHUT_WR)

    def _next(self) -> int | None:
        try:
            return self._queue.get(timeout=self._fill_every_s)
        except queue.Empty:
            return FILLER

    def _receive(self) -> None:
        index, tensor = memoryview(bytearray(INDEX_BYTES)), memoryview(bytearray(self._tensor_bytes))
        while self._fill(index):
            number = int.from_bytes(index, "big")
            if number != FILLER and self._fill(tensor):
                self._onward(number)

    def _fill(self, target: memoryview) -> bool:
        """False: the connection ended."""
        filled = 0
        while filled < len(target):
            got = self._came.recv_into(target[filled:])
            if not got:
                return False
            filled += got
        return True


def _step_s(begin: Callable[[int], None], home: queue.Queue[int], window: int, microbatches: int) -> float:
    began = time.perf_counter()
    for index in range(microbatches):
        if index >= window:
            home.get(timeout=TIMEOUT_S)
        begin(index)
    for _ in range(min(window, microbatches)):
        home.get(timeout=TIMEOUT_S)
    return time.perf_counter() - began
