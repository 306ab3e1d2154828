"""The model of delayed links: rate, delay, queue, and what a piece would have been on the wire."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from benchmarks.links.delay import (
    TURN_S,
    UDP_PIECE,
    VIRTIO_HEADER,
    Line,
    Roads,
    Speed,
    carry,
    destination,
    wire_bytes,
)

SPEED = Speed(bytes_per_s=1000.0, delay_s=0.5, queue_s=2.05)
ADDRESSES = [bytes((10, 77, 0, number)) for number in (1, 2, 3)]


def packet(to: bytes, ip_bytes: int, header: bytes = bytes(VIRTIO_HEADER.size)) -> bytes:
    """To be cut into nothing unless the header says so."""
    ip = bytes([0x45]) + bytes(15) + to
    tcp = bytes(12) + bytes([8 << 4]) + bytes(19)
    return header + (ip + tcp).ljust(ip_bytes, b"x")[:ip_bytes]


def test_a_line_sends_one_after_the_other() -> None:
    line = Line(SPEED)
    assert line.through_at(10.0, 100) == pytest.approx(10.1)
    assert line.through_at(10.0, 100) == pytest.approx(10.2)
    assert line.through_at(11.0, 100) == pytest.approx(11.1)


def test_a_line_drops_what_would_wait_too_long() -> None:
    line = Line(SPEED)
    assert line.through_at(0.0, 2100) == pytest.approx(2.1)
    assert line.through_at(0.0, 1) is None
    assert line.through_at(0.1, 100) == pytest.approx(2.2)


def test_a_packet_waits_for_both_ends_and_travels_between() -> None:
    roads = Roads(ADDRESSES, SPEED)
    sent = packet(ADDRESSES[1], 86)
    roads.take(0.0, 0, sent)
    assert roads.next_at == pytest.approx(0.6), "an Ethernet header and the packet are 100 bytes"
    assert list(roads.due(0.65)) == []
    assert list(roads.due(0.71)) == [(1, sent)]
    assert roads.next_at is None


def test_two_senders_share_a_downlink_and_nothing_else() -> None:
    roads = Roads(ADDRESSES, SPEED)
    for sender in (0, 1):
        roads.take(0.0, sender, packet(ADDRESSES[2], 86))
    assert len(list(roads.due(0.71))) == 1
    assert len(list(roads.due(0.81))) == 1


def test_who_looks_late_loses_no_bandwidth() -> None:
    roads = Roads(ADDRESSES, SPEED)
    for _ in range(10):
        roads.take(0.0, 0, packet(ADDRESSES[1], 86))
    assert len(list(roads.due(1.61))) == 10
    assert roads.carried.late_max_s == pytest.approx(0.91)


def test_a_full_queue_drops_and_counts() -> None:
    roads = Roads(ADDRESSES, SPEED)
    for _ in range(30):
        roads.take(0.0, 0, packet(ADDRESSES[1], 86))
    assert roads.carried.dropped == 9
    assert len(list(roads.due(100.0))) == 21, "one is sent while 20 wait"


def test_a_full_downlink_drops_too() -> None:
    """Both senders use all of their uplinks, none of which has a queue."""
    roads = Roads(ADDRESSES, Speed(1000.0, 0.5, 0.55))
    for turn in range(20):
        for sender in (0, 1):
            roads.take(0.1 * turn, sender, packet(ADDRESSES[2], 86))
    assert roads.carried.dropped == 0
    came = len(list(roads.due(100.0)))
    assert roads.carried.dropped == 40 - came
    assert 20 < came < 30


def test_what_is_for_nobody_here_goes_nowhere() -> None:
    roads = Roads(ADDRESSES, SPEED)
    roads.take(0.0, 0, packet(bytes((224, 0, 0, 251)), 86))
    roads.take(0.0, 0, VIRTIO_HEADER.pack(0, 0, 0, 0, 0, 0) + bytes([0x60]) + bytes(60))
    roads.take(0.0, 0, b"")
    assert roads.next_at is None
    assert destination(packet(ADDRESSES[0], 40)) == ADDRESSES[0]


def test_a_piece_counts_as_the_packets_that_it_would_be() -> None:
    tcp = packet(ADDRESSES[0], 52 + 2000, VIRTIO_HEADER.pack(1, 1, 52, 1000, 20, 16))
    assert wire_bytes(tcp) == 2 * (14 + 52 + 1000)
    udp = packet(ADDRESSES[0], 28 + 2500, VIRTIO_HEADER.pack(1, UDP_PIECE, 28, 1000, 20, 6))
    assert wire_bytes(udp) == 3 * (14 + 28) + 2500
    assert wire_bytes(packet(ADDRESSES[0], 40)) == 54


def test_packets_are_carried_until_told_to_end() -> None:
    ours, theirs = zip(*(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)), strict=True)
    told, end = os.pipe()
    roads = Roads(ADDRESSES[:2], Speed(1e6, 2 * TURN_S, 1.0))
    for device in theirs:
        device.setblocking(False)
    thread = threading.Thread(target=carry, args=([device.fileno() for device in theirs], roads, told))
    thread.start()
    sent = packet(ADDRESSES[1], 60)
    ours[0].send(sent)
    ours[1].settimeout(10.0)
    assert ours[1].recv(100) == sent
    os.close(end)
    thread.join(10.0)
    assert not thread.is_alive()
    assert (roads.carried.pieces, roads.carried.refused) == (1, 0)
    os.close(told)
    for device in (*ours, *theirs):
        device.close()
