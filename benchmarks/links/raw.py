"""The yardstick: plain bytes over one TCP connection between two machines."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.links.machines import Machine

TIMEOUT_S = 120.0
PIECE_BYTES = 1 << 16
ANSWERS = 5


def bytes_per_s(sender: Machine, receiver: Machine, payload_bytes: int, first_bytes: int = 0) -> float:
    """How fast so many bytes came, from the connection to the last of them.

    ``first_bytes`` go before them and do not count: TCP begins slowly where the way is long.
    """
    with connected(sender, receiver) as (out, came):
        sending = threading.Thread(target=out.sendall, args=(bytes(first_bytes + payload_bytes),))
        sending.start()
        _seconds(came, first_bytes)
        seconds = _seconds(came, payload_bytes)
        sending.join()
        return payload_bytes / seconds


@contextmanager
def connected(sender: Machine, receiver: Machine) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of one TCP connection, the sender's first; nothing is waited for longer than `TIMEOUT_S`."""
    with receiver.call(lambda: socket.create_server((receiver.address, 0))) as door, sender.call(socket.socket) as out:
        door.settimeout(TIMEOUT_S)
        out.settimeout(TIMEOUT_S)
        out.connect(door.getsockname())
        came, _ = door.accept()
        with came:
            came.settimeout(TIMEOUT_S)
            yield out, came


def round_trip_s(asker: Machine, answerer: Machine) -> float:
    """The shortest of a few answers over one TCP connection."""
    with connected(asker, answerer) as (out, came):
        return min(_answer_s(out, came) for _ in range(ANSWERS))


def _answer_s(out: socket.socket, came: socket.socket) -> float:
    began = time.perf_counter()
    out.sendall(b"?")
    came.sendall(came.recv(1))
    out.recv(1)
    return time.perf_counter() - began


def _seconds(came: socket.socket, payload_bytes: int) -> float:
    """For so many bytes to come."""
    began = time.perf_counter()
    missing = payload_bytes
    while missing:
        got = len(came.recv(min(PIECE_BYTES, missing)))
        if not got:
            raise ConnectionError(f"the transfer ended {missing} bytes early")
        missing -= got
    return time.perf_counter() - began
