"""The yardstick: plain bytes over one TCP connection between two machines."""

from __future__ import annotations

import socket
import threading
import time

from benchmarks.links.machines import Machine

TIMEOUT_S = 120.0
PIECE_BYTES = 1 << 16


def bytes_per_s(sender: Machine, receiver: Machine, payload_bytes: int) -> float:
    """How fast so many bytes came, from the connection to the last of them."""
    with receiver.call(lambda: socket.create_server((receiver.address, 0))) as door:
        door.settimeout(TIMEOUT_S)
        with sender.call(socket.socket) as out:
            out.settimeout(TIMEOUT_S)
            out.connect(door.getsockname())
            came, _ = door.accept()
            with came:
                came.settimeout(TIMEOUT_S)
                return payload_bytes / _seconds(out, came, payload_bytes)


def _seconds(out: socket.socket, came: socket.socket, payload_bytes: int) -> float:
    sending = threading.Thread(target=out.sendall, args=(bytes(payload_bytes),))
    began = time.perf_counter()
    sending.start()
    missing = payload_bytes
    while missing:
        got = len(came.recv(min(PIECE_BYTES, missing)))
        if not got:
            raise ConnectionError(f"the transfer ended {missing} bytes early")
        missing -= got
    seconds = time.perf_counter() - began
    sending.join()
    return seconds
