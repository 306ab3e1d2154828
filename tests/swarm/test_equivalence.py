"""With no failure, five peers compute what the unsplit model computes in one process, and an export is that model."""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal

import msgspec
import pytest
import torch
import uvloop

from tests.swarm.processes import Brood
from understudy.bootstrap.founding import found, join_string
from understudy.node.compute.model import UnsplitModel
from understudy.node.compute.optimizer import StageOptimizer
from understudy.node.config import NodeConfig
from understudy.node.data.access import TextAccess
from understudy.node.data.corpus import Batches, open_corpus
from understudy.node.data.data_check import describe_data
from understudy.node.dht.config import SwarmConfig
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.export.exporter import ExportRun
from understudy.node.export.folder import ExportFolder
from understudy.node.export.generation import ExportedModel
from understudy.node.p2p.identity import Identity
from understudy.node.runtime import Node
from understudy.protocol.export.actions import ExportWish
from understudy.protocol.manifest import (
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    RecoverySettings,
    RunManifest,
    StepSettings,
    TimingSettings,
    WireSettings,
)
from understudy.protocol.manifest_reader import check
from understudy.protocol.routing import route
from understudy.protocol.wire.records import ManifestRecord

STEPS = 10
TIMEOUT_S = 100.0
LISTEN = ("/ip4/127.0.0.1/tcp/0",)
TEXT = "".join(f"{number} times {number} is {number * number}, as everybody knows.\n" for number in range(400))

Weights = list[list[torch.Tensor]]
"""Of each stage, its parameters."""


def access_to(folder: Path) -> TextAccess:
    """Where the text lies on the machine of every node."""
    return TextAccess((folder / "text.txt",))


def manifest_of(folder: Path, method: Literal["checkfree", "checkfree+"]) -> RunManifest:
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    manifest = RunManifest(
        name="equal",
        seed=7,
        model=ModelSettings(hidden_size=32, intermediate_size=48, attention_heads=2, context_length=32),
        data=DataSettings(source="text"),
        # The gradient norms of the stages lie on both sides of this: some are clipped, some are not.
        optimizer=OptimizerSettings(warmup_steps=4, clip_norm=0.2, weight_decay=0.1),
        recovery=RecoverySettings(method=method),
        step=StepSettings(microbatches=6, microbatch_size=2, window=4, total_steps=STEPS, microbatch_timeout_s=100.0),
        timing=TimingSettings(suspect_after_s=6.0, dead_after_s=12.0),
        wire=WireSettings(dtype="float32"),
    )
    check(manifest)
    return describe_data(manifest, access_to(folder))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers", "ignore::FutureWarning:transformers")
@pytest.mark.parametrize("method", ["checkfree", "checkfree+"])
def test_five_peers_compute_what_one_computes(
    tmp_path: Path, brood: Brood, monkeypatch: pytest.MonkeyPatch, method: Literal["checkfree", "checkfree+"]
) -> None:
    brood.include_us(monkeypatch)
    manifest = manifest_of(tmp_path, method)
    weights: Weights = []

    async def main() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            weights.extend(await train_in_swarm(manifest, tmp_path, brood))

    uvloop.run(main())
    gc.collect()
    expected_weights, expected_losses, norms = train_unsplit(manifest, access_to(tmp_path))
    assert min(norms) < manifest.optimizer.clip_norm < max(norms)
    losses = committed_losses(tmp_path / "stage-0.jsonl")
    assert len(weights) == 5
    for stage, (found_tensors, expected) in enumerate(zip(weights, expected_weights, strict=True)):
        for tensor, wanted in zip(found_tensors, expected, strict=True):
            torch.testing.assert_close(
                tensor, wanted, rtol=1e-4, atol=1e-6, msg=lambda text, stage=stage: f"S{stage}: {text}"
            )
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    assert len(brood.sockets) >= 6
    assert_export_is_the_model(tmp_path, manifest, weights)


def assert_export_is_the_model(folder: Path, manifest: RunManifest, weights: Weights) -> None:
    """To the bit; and transformers computes the pipeline's logits from it, on text that was held out."""
    from transformers import AutoModelForCausalLM

    assert not (folder / "export.partial").exists()
    exported = ExportedModel(folder / "export")
    model = UnsplitModel(manifest.model, manifest.seed)
    for stage, (module, tensors) in enumerate(zip(model.stages, weights, strict=True)):
        for (name, parameter), tensor in zip(module.named_parameters(), tensors, strict=True):
            assert torch.equal(exported.tensors[name], tensor), f"S{stage}: {name}"
            parameter.data.copy_(tensor)
    tokens, _ = Batches(open_corpus(manifest.data, access_to(folder)), manifest).validation(0)
    with torch.inference_mode():
        hidden = model.edge.embed(tokens)
        for block in model.blocks:
            hidden = block(hidden)
        expected = model.edge.logits(hidden)
        theirs = AutoModelForCausalLM.from_pretrained(folder / "export", local_files_only=True)(tokens).logits
    torch.testing.assert_close(theirs, expected, atol=1e-4, rtol=0)


async def train_in_swarm(manifest: RunManifest, folder: Path, brood: Brood) -> Weights:
    """Five nodes, each a peer of its own, in one event loop. The weights of S0 to S4 after the last step."""
    founder = Identity.load_or_create(folder / "stage-0.key")
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        seeds: tuple[str, ...] = ()
        for stage in range(manifest.stage_count):
            p2p = await stack.enter_async_context(opened(folder, stage, seeds))
            seeds = seeds or p2p.addresses
            signed_manifest: ManifestRecord = found(manifest, founder)
            config = NodeConfig(
                join=join_string(manifest, founder, seeds),
                identity_path=folder / f"stage-{stage}.key",
                stage=stage,
                events_path=folder / f"stage-{stage}.jsonl",
                text=access_to(folder),
            )
            nodes.append(Node(p2p, signed_manifest, config, check_every=1))
        export_folder = stack.enter_context(ExportFolder.reserved(folder / "export", manifest.digest()))
        guest = await stack.enter_async_context(opened(folder, manifest.stage_count, seeds))
        export = ExportRun(guest, manifest, export_folder, ExportWish(is_last=True))
        brood.look()
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(node.run()) for node in nodes]
            exporting = tasks.create_task(export.run())
        assert exporting.result() == folder / "export"
        assert [task.result() for task in running] == ["done"] * len(nodes)
        assert [node._counters.microbatches for node in nodes] == [STEPS * manifest.step.microbatches] * len(nodes)
        assert min(min(node._counters.bytes_in, node._counters.bytes_out) for node in nodes) > payload_bytes(manifest)
        return [[parameter.detach().clone() for parameter in node._host.module.parameters()] for node in nodes]


def payload_bytes(manifest: RunManifest) -> int:
    """What the activations of one direction come to over the run, in float32."""
    activation = manifest.step.microbatch_size * manifest.model.context_length * manifest.model.hidden_size * 4
    return STEPS * manifest.step.microbatches * activation


@asynccontextmanager
async def opened(folder: Path, stage: int, seeds: tuple[str, ...]) -> AsyncIterator[P2PNode]:
    identity = Identity.load_or_create(folder / f"stage-{stage}.key")
    identity.is_new = True  # nobody else uses it, so nobody needs to be asked
    async with P2PNode.open(SwarmConfig(LISTEN, initial_peers=seeds), identity) as p2p:
        yield p2p


def train_unsplit(manifest: RunManifest, access: TextAccess) -> tuple[Weights, list[float], list[float]]:
    """Weights and losses of the whole model in one process, and all gradient norms of its stages."""
    model = UnsplitModel(manifest.model, manifest.seed)
    batches = Batches(open_corpus(manifest.data, access), manifest)
    optimizers = [StageOptimizer(stage.parameters(), manifest.optimizer) for stage in model.stages]
    losses, norms = [], []
    for step in range(1, STEPS + 1):
        total = 0.0
        for index in range(manifest.step.microbatches):
            path = route(manifest.recovery.method, manifest.model.block_stages, index)
            loss = model(*batches.microbatch(step, index), route=path)
            loss.backward()
            total += loss.item()
        losses.append(total / manifest.step.microbatches)
        squared = [optimizer.apply(step, manifest.step.microbatches) for optimizer in optimizers]
        norms += [math.sqrt(norm) for norm in squared if norm is not None]
    return [[parameter.detach() for parameter in stage.parameters()] for stage in model.stages], losses, norms


def committed_losses(path: Path) -> list[float]:
    events = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    commits = [event for event in events if event["event"] == "step.committed"]
    assert [event["step"] for event in commits] == list(range(1, STEPS + 1))
    return [event["loss"] for event in commits]
