"""The ways by which bytes can get to a peer, both ends of each.

All of them end at the same two p2pd and the same connection between them:

- *hivemind*: hivemind's own binary stream (``call_binary_stream_handler``), plain bytes. The bare minimum: one
  ``write`` per tensor, read in pieces of up to 1 MiB that are thrown away, one byte back at the end.
- *stream*: the same bytes in the same way over `P2PNode.open_stream`. It differs from hivemind's in who opens it.
- *links*: what the node does. `Network.send` at one end; at the other `Network.receive` checks each frame and
  delivers tensors.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import torch
from torch import Tensor

from understudy.node.compute.tensors import bytes_of
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.links.link import LinkRules, Listener
from understudy.node.links.metering import Counters, MeteredStreams
from understudy.node.links.network import Network
from understudy.protocol.ids import Attempt, PeerId
from understudy.protocol.wire.messages import AnyMessage, Forward, Heartbeat
from understudy.protocol.wire.tensors import TensorHeader

OPEN_TIMEOUT_S = 10.0
READ_BYTES = 1 << 20
DONE = b"\x01"
STREAM_PROTOCOL = "/understudy-benchmark/stream"
HIVEMIND_PROTOCOL = "understudy-benchmark-hivemind"
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Path(Protocol):
    """The sending end of one way."""

    async def send(self, tensor: Tensor, count: int) -> None:
        """Send the tensor so many times; returns when the receiver has them all."""
        ...

    async def close(self) -> None: ...


def activation_of(payload_bytes: int) -> TensorHeader:
    """A bfloat16 activation of this many bytes, a multiple of 512."""
    return TensorHeader("bfloat16", (1, payload_bytes // 512, 256))


def rules_for(payload_bytes: int) -> LinkRules:
    """The rules of a run whose activations are this large."""
    return LinkRules(f"wire-{payload_bytes}", "0" * 64, activation_of(payload_bytes))


def tensor_of(payload_bytes: int) -> Tensor:
    """What is sent: bytes that do not compress."""
    return torch.randn(activation_of(payload_bytes).shape, generator=torch.Generator().manual_seed(0)).bfloat16()


class BarePath:
    """Plain bytes on an open stream."""

    def __init__(self, ends: Ends) -> None:
        self._reader, self._writer = ends

    async def send(self, tensor: Tensor, count: int) -> None:
        payload = bytes_of(tensor)
        self._writer.write((count * len(payload)).to_bytes(8, "little"))
        for _ in range(count):
            self._writer.write(payload)
            await self._writer.drain()
        await self._reader.readexactly(len(DONE))

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def take_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The receiving end of a `BarePath`."""
    try:
        while True:
            missing = int.from_bytes(await reader.readexactly(8), "little")
            while missing:
                missing -= len(await reader.read(min(READ_BYTES, missing)))
            writer.write(DONE)
    except (EOFError, OSError):
        writer.close()


async def open_stream(p2p: P2PNode, peer: PeerId) -> BarePath:
    return BarePath(await p2p.open_stream(peer, STREAM_PROTOCOL, OPEN_TIMEOUT_S))


async def serve_stream(p2p: P2PNode) -> None:
    await p2p.serve_streams(STREAM_PROTOCOL, lambda _, reader, writer: take_in(reader, writer))


async def open_hivemind(p2p: P2PNode, peer: PeerId) -> BarePath:
    """hivemind's binary stream, which the node does not use: node/p2p/streams.py says why."""
    hivemind: Any = p2p._dht.connection
    their_id = type(hivemind.peer_id).from_base58(peer)
    _, reader, writer = await hivemind.call_binary_stream_handler(their_id, HIVEMIND_PROTOCOL)
    return BarePath((reader, writer))


async def serve_hivemind(p2p: P2PNode) -> None:
    hivemind: Any = p2p._dht.connection
    await hivemind.add_binary_stream_handler(HIVEMIND_PROTOCOL, lambda _, reader, writer: take_in(reader, writer))


class LinksPath:
    """The node's links. Opened with the first tensor and kept, as in the node."""

    def __init__(self, network: Network, peer: PeerId) -> None:
        self._network, self._peer = network, peer
        self._is_done = asyncio.Event()

    @classmethod
    async def serve(cls, p2p: P2PNode, peer: PeerId, rules: LinkRules, tasks: asyncio.TaskGroup) -> LinksPath:
        """The sending end, listening for the receiver's word."""
        counters = Counters()
        network = Network(MeteredStreams(p2p, counters), rules, Listener(lambda *_: path._is_done.set(), _fail))
        path = cls(network, peer)
        network.start(tasks)
        await p2p.serve_streams(network.protocol, counters.metered_callback(network.receive))
        return path

    async def send(self, tensor: Tensor, count: int) -> None:
        self._is_done.clear()
        for index in range(count):
            self._network.send(self._peer, Forward(count, index, Attempt(1, 0), 1, 1), tensor)
        await self._is_done.wait()

    async def close(self) -> None:
        self._network.stop()


async def serve_links(p2p: P2PNode, rules: LinkRules, tasks: asyncio.TaskGroup) -> Network:
    """The receiving end of a `LinksPath`; stop it in the end."""

    def deliver(peer: PeerId, message: AnyMessage, _: Tensor | None) -> None:
        if isinstance(message, Forward) and message.index == message.step - 1:
            network.send(peer, Heartbeat(1, 1, "serving", message.step), None)

    counters = Counters()
    network = Network(MeteredStreams(p2p, counters), rules, Listener(deliver))
    network.start(tasks)
    await p2p.serve_streams(network.protocol, counters.metered_callback(network.receive))
    return network


def _fail(peer: PeerId) -> None:
    raise ConnectionError(f"the receiver {peer} is gone")
