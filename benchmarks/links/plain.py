"""What TCP itself makes of a step: plain sockets send its tensors in a pipeline's order, without arithmetic or libp2p.

TCP that paused for longer than its retransmission timeout begins again with ten packets (Linux: net.ipv4.
tcp_slow_start_after_idle). Each link of a pipeline pauses between steps, so a step's first tensor starts anew at every
hop: a bound from bytes and bandwidth knows nothing of that, and this does.
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
from understudy.protocol.manifest import RunManifest

PLAIN = "plain sockets"
INDEX_BYTES = 4
WINDOW_PER_STAGE = 2
"""In flight where the run leaves it to S0, which begins with so many."""


def step_seconds(manifest: RunManifest, steps: int, machines: Sequence[Machine]) -> list[float]:
    """Of each step but the first, on which connections grow. ``machines``: of S0, S1, ..., Sn."""
    home: queue.Queue[int] = queue.Queue()
    window = manifest.step.window or WINDOW_PER_STAGE * manifest.stage_count
    with ExitStack() as stack:
        begin = _lay(stack, machines, activation_bytes(manifest), home.put)
        return [_step_s(begin, home, window, manifest.step.microbatches) for _ in range(1 + steps)][1:]


def _lay(
    stack: ExitStack, machines: Sequence[Machine], tensor_bytes: int, arrive: Callable[[int], None]
) -> Callable[[int], None]:
    """Connections for the way there and back; what sends a microbatch off. ``arrive``: told of each that is home."""
    ring = [*machines, machines[0]]
    hops = [*pairwise(ring), *pairwise(reversed(ring))]
    onward = arrive
    for sender, receiver in reversed(hops):
        onward = _Line(stack, sender, receiver, tensor_bytes, onward).put
    return onward


class _Line:
    """One connection, with a thread that sends what is queued and one that passes on what came whole."""

    def __init__(
        self, stack: ExitStack, sender: Machine, receiver: Machine, tensor_bytes: int, onward: Callable[[int], None]
    ) -> None:
        self._out, self._came = stack.enter_context(connected(sender, receiver))
        self._onward, self._queue = onward, queue.Queue[int | None]()
        self._bytes = INDEX_BYTES + tensor_bytes
        threads = [threading.Thread(target=work) for work in (self._send, self._receive)]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(self._queue.put, None)

    def put(self, index: int) -> None:
        self._queue.put(index)

    def _send(self) -> None:
        while (index := self._queue.get()) is not None:
            self._out.sendall(index.to_bytes(INDEX_BYTES, "big") + bytes(self._bytes - INDEX_BYTES))
        self._out.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        came = memoryview(bytearray(self._bytes))
        filled = 0
        while got := self._came.recv_into(came[filled:]):
            filled += got
            if filled == self._bytes:
                self._onward(int.from_bytes(came[:INDEX_BYTES], "big"))
                filled = 0


def _step_s(begin: Callable[[int], None], home: queue.Queue[int], window: int, microbatches: int) -> float:
    began = time.perf_counter()
    for index in range(microbatches):
        if index >= window:
            home.get(timeout=TIMEOUT_S)
        begin(index)
    for _ in range(min(window, microbatches)):
        home.get(timeout=TIMEOUT_S)
    return time.perf_counter() - began
