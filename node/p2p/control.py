"""The control protocol of p2pd: the few requests that we need, spoken by hand.

p2pd listens on a unix socket for varint-prefixed protobuf messages; after a stream was opened, the
same connection carries the stream's bytes (go-libp2p-daemon, ``specs/CONTROL.md``; the fields are
in hivemind/proto/p2pd.proto). hivemind has a client for it, but that one leaks the connection of
every failed dial.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multiaddr import Multiaddr

from understudy.node.p2p.identity import peer_id_from_bytes, peer_id_to_bytes
from understudy.node.p2p.zero_copy import open_unix_stream
from understudy.protocol.errors import NetworkError
from understudy.protocol.ids import PeerId

STREAM_BUFFER_BYTES = 64 * 1024
"""A reader stops taking bytes from p2pd at twice this much unread data. More was no faster: 1 MiB
messages between two processes moved at 200 to 260 MB/s with 64 KiB, 256 KiB, 1 MiB and 4 MiB."""
MESSAGE_BYTES_MAX = 64 * 1024

_CONNECT, _STREAM_OPEN, _STREAM_HANDLER, _DISCONNECT = 1, 2, 3, 7  # Request.type
_CONNECT_FIELD, _STREAM_OPEN_FIELD, _STREAM_HANDLER_FIELD, _DISCONNECT_FIELD = 2, 3, 4, 7  # of Request
_ERROR_FIELD = 2  # of Response
_UNIX_CODE = 400  # multiformats table

Fields = dict[int, int | bytes]


class DaemonRefusal(Exception):
    """p2pd answered a request with an error; ``str`` is its Go error text, possibly many lines."""


@dataclass(frozen=True, slots=True)
class IncomingStream:
    """What p2pd says about a stream before its bytes."""

    peer: PeerId
    """Authenticated: the remote proved that it holds the key of this PeerID."""
    protocol: str


def connect_request(peer: PeerId, addresses: Sequence[str], timeout_s: float) -> bytes:
    """Dial a peer at these addresses; at none, where p2pd's own routing finds it."""
    body = _bytes_field(1, peer_id_to_bytes(peer))
    body += b"".join(_bytes_field(2, Multiaddr(address).to_bytes()) for address in addresses)
    return _request(_CONNECT, _CONNECT_FIELD, body + _varint_field(3, max(1, round(timeout_s))))


def disconnect_request(peer: PeerId) -> bytes:
    """End every connection to a peer, with all streams on it."""
    return _request(_DISCONNECT, _DISCONNECT_FIELD, _bytes_field(1, peer_id_to_bytes(peer)))


def open_request(peer: PeerId, protocol: str, timeout_s: float) -> bytes:
    """Open a stream to whatever serves the protocol at the peer."""
    body = _bytes_field(1, peer_id_to_bytes(peer)) + _bytes_field(2, protocol.encode())
    return _request(_STREAM_OPEN, _STREAM_OPEN_FIELD, body + _varint_field(3, max(1, round(timeout_s))))


def serve_request(listen_path: Path, protocol: str) -> bytes:
    """Connect to this unix socket for every stream that peers open with the protocol."""
    path = str(listen_path).encode()
    # Written by hand: py-multiaddr drops the leading slash, and Go then looks for a relative path.
    maddr = _varint(_UNIX_CODE) + _varint(len(path)) + path
    body = _bytes_field(1, maddr) + _bytes_field(2, protocol.encode()) + _varint_field(3, 0)
    return _request(_STREAM_HANDLER, _STREAM_HANDLER_FIELD, body)


async def ask(control_path: Path, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send one request; the connection is the caller's when p2pd says OK.

    The caller sets the deadline. Raises `DaemonRefusal`, or `NetworkError` when p2pd is gone.
    """
    try:
        reader, writer = await open_unix_stream(control_path, STREAM_BUFFER_BYTES)
    except OSError as error:
        raise NetworkError("the libp2p daemon is gone: start the node again") from error
    is_accepted = False
    try:
        writer.write(request)
        response = _parse(await _read_message(reader))
        if _ERROR_FIELD in response:
            raise DaemonRefusal(_bytes(_parse(_bytes(response, _ERROR_FIELD)), 1).decode(errors="replace"))
        is_accepted = True
    except (OSError, EOFError) as error:
        raise NetworkError("the libp2p daemon hung up: start the node again") from error
    finally:
        if not is_accepted:
            writer.transport.abort()
    return reader, writer


async def read_stream_info(reader: asyncio.StreamReader) -> IncomingStream:
    """The first message on a connection that p2pd opened to our listening socket."""
    info = _parse(await _read_message(reader))
    return IncomingStream(peer_id_from_bytes(_bytes(info, 1)), _bytes(info, 3).decode(errors="replace"))


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    size, shift = 0, 0
    while True:
        byte = (await reader.readexactly(1))[0]
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
        if shift > 28:
            raise _malformed()
    if size > MESSAGE_BYTES_MAX:
        raise _malformed()
    return await reader.readexactly(size)


def _malformed() -> NetworkError:
    return NetworkError("the libp2p daemon speaks an unknown control protocol: install hivemind 1.1.12")


def _request(kind: int, field: int, body: bytes) -> bytes:
    message = _varint_field(1, kind) + _bytes_field(field, body)
    return _varint(len(message)) + message


def _varint(number: int) -> bytes:
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def _varint_field(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _bytes_field(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _parse(message: bytes) -> Fields:
    """The last value of each field of a protobuf message."""
    fields: Fields = {}
    offset = 0
    while offset < len(message):
        tag, offset = _read_varint(message, offset)
        value, offset = _read_varint(message, offset)
        if tag & 7 == 0:
            fields[tag >> 3] = value
            continue
        if tag & 7 != 2 or offset + value > len(message):
            raise _malformed()
        fields[tag >> 3] = message[offset : offset + value]
        offset += value
    return fields


def _read_varint(message: bytes, offset: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 64, 7):
        if offset >= len(message):
            break
        byte = message[offset]
        offset += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, offset
    raise _malformed()


def _bytes(fields: Fields, number: int) -> bytes:
    value = fields.get(number)
    if not isinstance(value, bytes):
        raise _malformed()
    return value
