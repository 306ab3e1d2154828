"""What hivemind offers: a chain of ``hivemind.moe`` RemoteExperts, one process per block stage.

The caller holds embedding and head and sends every activation to each expert in turn; microbatches run side by side
in threads. Hivemind's experts compute the forward pass anew in the backward pass, and update after every backward
pass; here they update once per step, as the others do.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from hivemind.dht import DHT
from hivemind.moe.client.expert import RemoteExpert, create_remote_experts
from hivemind.moe.expert_uid import ExpertInfo
from hivemind.moe.server.module_backend import ModuleBackend
from hivemind.moe.server.server import Server
from hivemind.p2p import PeerID
from hivemind.proto.runtime_pb2 import CompressionType
from hivemind.utils.tensor_descr import BatchTensorDescriptor
from torch import Tensor, nn

from benchmarks.throughput.results import WARM_UP
from understudy.node.compute.model import build_block_stage, build_edge_stage
from understudy.node.compute.optimizer import StageOptimizer
from understudy.node.compute.precision import arithmetic
from understudy.node.data.sources import open_data
from understudy.protocol.manifest import RunManifest

START_TIMEOUT_S = 120.0
CALLS_AT_ONCE = 4
"""Processes of each expert that take calls: what hivemind recommends."""


class Expert(nn.Module):
    """A block stage that computes in the run's arithmetic."""

    def __init__(self, manifest: RunManifest, stage: int) -> None:
        super().__init__()
        self.manifest = manifest
        self.block = build_block_stage(manifest.model, stage, manifest.seed)

    def forward(self, hidden: Tensor) -> Tensor:
        with arithmetic(self.manifest, torch.device("cpu")):
            output: Tensor = self.block(hidden)
        return output


class OncePerStep:
    """Stands where hivemind expects an optimizer: told of every backward pass, it updates after a step's last."""

    def __init__(self, optimizer: StageOptimizer, microbatches: int) -> None:
        self._optimizer, self._microbatches = optimizer, microbatches
        self._passes = 0

    def step(self) -> None:
        self._passes += 1
        if self._passes % self._microbatches == 0:
            self._optimizer.apply(self._passes // self._microbatches, self._microbatches)

    def zero_grad(self) -> None:
        """The sums are dropped by `StageOptimizer.apply`."""


def step_seconds(manifest: RunManifest, steps: int) -> list[float]:
    """Seconds of each step, by the caller's clock."""
    context = get_context("spawn")
    dht = DHT(start=True)
    pipes, hosts = [], []
    try:
        addresses = [str(address) for address in dht.get_visible_maddrs()]
        for stage in range(1, manifest.model.block_stages + 1):
            ours, theirs = context.StageIO()
            host = context.Process(target=_host, args=(manifest, stage, addresses, theirs))
            host.start()
            hosts.append(host)
            pipes.append(ours)
        infos = [_hear(pipe, stage) for stage, pipe in enumerate(pipes, start=1)]
        experts: Any = create_remote_experts(infos, dht)
        return _train(manifest, experts, steps)
    finally:
        for pipe in pipes:
            pipe.send("stop")
        for host in hosts:
            host.join(timeout=30)
            host.kill()
        dht.shutdown()


def _hear(pipe: Connection, stage: int) -> ExpertInfo:
    if not pipe.poll(START_TIMEOUT_S):
        raise RuntimeError(f"the expert of stage {stage} did not start within {START_TIMEOUT_S:g} s")
    return ExpertInfo(f"stage.{stage}", PeerID.from_base58(pipe.recv()))


def _host(manifest: RunManifest, stage: int, addresses: list[str], pipe: Connection) -> None:
    torch.set_num_threads(1)
    dht = DHT(initial_peers=addresses, start=True)
    module = Expert(manifest, stage)
    optimizer: Any = OncePerStep(StageOptimizer(module.parameters(), manifest.optimizer), manifest.step.microbatches)
    rows = manifest.step.microbatch_size
    shape = (rows, manifest.model.context_length, manifest.model.hidden_size)
    schema = BatchTensorDescriptor.from_tensor(torch.empty(shape), compression=CompressionType.FLOAT16)
    backend = ModuleBackend(
        f"stage.{stage}", module, optimizer=optimizer, args_schema=(schema,), outputs_schema=schema, max_batch_size=rows
    )
    server = Server(dht, {backend.name: backend}, num_connection_handlers=CALLS_AT_ONCE, device=torch.device("cpu"))
    server.run_in_background(await_ready=True)
    pipe.send(dht.peer_id.to_base58())
    pipe.recv()
    server.shutdown()
    dht.shutdown()


def _train(manifest: RunManifest, experts: list[RemoteExpert], steps: int) -> list[float]:
    torch.set_num_threads(1)
    edge = build_edge_stage(manifest.model, manifest.seed)
    optimizer = StageOptimizer(edge.parameters(), manifest.optimizer)
    data = open_data(manifest)
    microbatches = manifest.step.microbatches

    def train(step: int, index: int) -> Tensor:
        tokens, labels = data.microbatch(step, index)
        hidden = edge.embed(tokens)
        for expert in experts:
            hidden = expert(hidden)
        with arithmetic(manifest, torch.device("cpu")):
            loss = edge.loss(hidden, labels)
        torch.autograd.backward([loss])
        return loss.detach()

    seconds = []
    with ThreadPoolExecutor(microbatches) as threads:
        for step in range(1, WARM_UP + steps + 1):
            began = time.perf_counter()
            list(threads.map(train, [step] * microbatches, range(microbatches)))
            optimizer.apply(step, microbatches)
            seconds.append(time.perf_counter() - began)
    data.close()
    return seconds[WARM_UP:]
