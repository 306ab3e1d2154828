"""Links with a delay, in user space: one process that carries packets between the TUN devices of machines.

netem is missing on some kernels, a TUN device hardly ever. A packet waits for its sender's uplink, travels, waits for
its receiver's downlink, and is written to the receiver's device. Each direction of a link is a clock that says when it
is free again (`Line`): times are those of the model, so a process that wakes late delivers late, but loses no
bandwidth. What would wait longer than the queue is dropped. So everything held is bounded by rate x (queue + delay).

The devices hand out what TCP sends in pieces that the kernel has not cut into packets yet, with a header that says how
it would (``struct virtio_net_hdr``); the receiver's takes them so. TCP therefore behaves as with packets of 1,500
bytes, at a tenth of the work.

This file imports nothing of ours: benchmarks/links/delayed.py starts it as ``python -m benchmarks.links.delay``.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import select
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count

VIRTIO_HEADER = struct.Struct("=BBHHHH")
"""Flags, kind of piece, bytes of all headers, of a packet's payload, where the checksum begins, and where it goes."""
ETHERNET_BYTES = 14
"""What a packet has on the wire beside its IP packet: ``tc`` counts as much."""
UDP_HEADER_BYTES = 8
UDP_PIECE = 5
"""Kind of piece: datagrams of one size. The others are TCP's."""
PIECE_BYTES_MAX = (1 << 16) + VIRTIO_HEADER.size
READS_AT_ONCE = 16
"""Packets taken from one machine before the others have their turn."""
TURN_S = 0.001
"""Packets of so long are read and written together, a little late and a little early: each turn wakes others, and to be
woken costs a virtual machine more than the packet."""
PRIORITY = 1
"""Of this process, before all that has none: it shares the cores with the machines, and a late packet is a longer link.
It mostly sleeps."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Of every link."""

    bytes_per_s: float
    """In each direction."""
    delay_s: float
    """From one machine to another, beside what waiting and sending take."""
    queue_s: float
    """What waits for a direction of a link at most, by how long it waits."""


@dataclass(slots=True)
class Carried:
    """What was done, and how well."""

    pieces: int = 0
    wire_bytes: int = 0
    dropped: int = 0
    """The queue was full."""
    refused: int = 0
    """The kernel did not take them."""
    late_mean_s: float = 0.0
    late_max_s: float = 0.0
    """Behind the model's times."""
    cpu_s: float = 0.0
    seconds: float = 0.0


class Line:
    """One direction of one link."""

    def __init__(self, speed: Speed) -> None:
        self._speed = speed
        self._free_at = 0.0

    def through_at(self, now: float, wire_bytes: int) -> float | None:
        """When the last bit is sent of what comes now; None if it finds the queue full and is dropped."""
        begins = max(now, self._free_at)
        if begins - now > self._speed.queue_s:
            return None
        self._free_at = begins + wire_bytes / self._speed.bytes_per_s
        return self._free_at


class Roads:
    """Uplinks, the way between, and downlinks. Time is an argument, and never goes back."""

    def __init__(self, addresses: Sequence[bytes], speed: Speed) -> None:
        self._speed = speed
        self._numbers = {address: number for number, address in enumerate(addresses)}
        self._uplinks = [Line(speed) for _ in addresses]
        self._downlinks = [Line(speed) for _ in addresses]
        self._waiting: list[tuple[float, int, bool, int, bytes]] = []
        """By time and serial: whether it has passed the downlink, the receiver, and the packet."""
        self._serial = count()
        self.carried = Carried()

    def take(self, now: float, sender: int, packet: bytes) -> None:
        """A packet left a machine. Of those that are for no other machine nothing is heard again."""
        receiver = self._numbers.get(destination(packet))
        if receiver is None:
            return
        sent_at = self._uplinks[sender].through_at(now, wire_bytes(packet))
        if sent_at is None:
            self.carried.dropped += 1
        else:
            self._put(sent_at + self._speed.delay_s, False, receiver, packet)

    @property
    def next_at(self) -> float | None:
        """When `due` has something to do."""
        return self._waiting[0][0] if self._waiting else None

    def due(self, now: float) -> Iterator[tuple[int, bytes]]:
        """Receivers and their packets, in the order of arrival."""
        while self._waiting and self._waiting[0][0] <= now:
            at, _, is_through, receiver, packet = heapq.heappop(self._waiting)
            if is_through:
                self._note(now - at, packet)
                yield receiver, packet
                continue
            arrives_at = self._downlinks[receiver].through_at(at, wire_bytes(packet))
            if arrives_at is None:
                self.carried.dropped += 1
            else:
                self._put(arrives_at, True, receiver, packet)

    def _put(self, at: float, is_through: bool, receiver: int, packet: bytes) -> None:
        heapq.heappush(self._waiting, (at, next(self._serial), is_through, receiver, packet))

    def _note(self, late_s: float, packet: bytes) -> None:
        carried = self.carried
        carried.pieces += 1
        carried.wire_bytes += wire_bytes(packet)
        carried.late_max_s = max(carried.late_max_s, late_s)
        carried.late_mean_s += (late_s - carried.late_mean_s) / carried.pieces


def destination(packet: bytes) -> bytes:
    """The IPv4 address that a packet goes to; no bytes for anything else, such as IPv6."""
    start = VIRTIO_HEADER.size
    return packet[start + 16 : start + 20] if len(packet) >= start + 20 and packet[start] >> 4 == 4 else b""


def wire_bytes(packet: bytes) -> int:
    """What the kernel would have put on an Ethernet: a piece becomes packets, each with all headers."""
    start = VIRTIO_HEADER.size
    _, kind, _, payload_bytes, transport, _ = VIRTIO_HEADER.unpack_from(packet)
    ip_bytes = len(packet) - start
    if not payload_bytes:
        return ip_bytes + ETHERNET_BYTES
    is_udp = kind == UDP_PIECE
    headers = transport + (UDP_HEADER_BYTES if is_udp else (packet[start + transport + 12] >> 4) * 4)
    packets = max(1, -(-(ip_bytes - headers) // payload_bytes))
    return ip_bytes + (packets - 1) * headers + packets * ETHERNET_BYTES


def carry(handles: Sequence[int], roads: Roads, end: int) -> None:
    """Carry packets between devices, until the handle ``end`` says that it is over."""
    numbers = {handle: number for number, handle in enumerate(handles)}
    while True:
        next_at = roads.next_at
        timeout_s = None if next_at is None else max(0.0, next_at - TURN_S - time.monotonic())
        ready, _, _ = select.select([*handles, end], [], [], timeout_s)
        if end in ready:
            return
        time.sleep(TURN_S)
        for handle in handles:
            _read(handle, numbers[handle], roads)
        for receiver, packet in roads.due(time.monotonic() + TURN_S):
            try:
                os.write(handles[receiver], packet)
            except OSError:
                roads.carried.refused += 1


def _read(handle: int, sender: int, roads: Roads) -> None:
    with contextlib.suppress(BlockingIOError):
        for _ in range(READS_AT_ONCE):
            roads.take(time.monotonic(), sender, os.read(handle, PIECE_BYTES_MAX))


def main(words: Sequence[str]) -> None:
    """Handles, addresses and speed as JSON; works until standard input ends, and says what it did."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    settings = json.loads(words[0])
    roads = Roads([bytes(address) for address in settings["addresses"]], Speed(**settings["speed"]))
    began = time.monotonic()
    carry(settings["handles"], roads, sys.stdin.fileno())
    roads.carried.cpu_s, roads.carried.seconds = time.process_time(), time.monotonic() - began
    sys.stdout.write(json.dumps(asdict(roads.carried)))


if __name__ == "__main__":
    main(sys.argv[1:])
