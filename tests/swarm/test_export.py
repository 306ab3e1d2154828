"""From a swarm that is losing a stage to a folder, and from the folder to a swarm that goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.nn.functional as F

from tests.swarm.nursery import Nursery
from tests.swarm.processes import Brood
from understudy.node.data.corpus import Batches, open_corpus
from understudy.node.export.folder import ExportRecord, read_record
from understudy.node.export.generation import ExportedModel
from understudy.protocol.manifest import RunManifest
from understudy.protocol.manifest_reader import decode_manifest

START_TIMEOUT_S = 60.0
EXPORT_TIMEOUT_S = 90.0
RUN = """
name = "exported"
seed = {seed}
[model]
hidden_size = 32
intermediate_size = 48
attention_heads = 2
block_stages = 2
context_length = 32
[recovery]
method = "checkfree"
standby_every = 0
[step]
microbatches = 4
microbatch_size = 8
[wire]
dtype = "float32"
[timing]
suspect_after_s = 6.0
dead_after_s = 12.0
"""

Event = dict[str, Any]


def test_an_export_during_a_recovery_and_a_run_that_begins_with_it(nursery: Nursery, brood: Brood) -> None:
    target = nursery.folder / "model"
    lose_a_stage_and_export(nursery, brood, target)
    record = read_record(target / "export.json")
    assert record is not None
    assert_of_one_step(nursery, record)
    assert record.stages["1"].incarnation == 2
    assert not target.with_name("model.partial").exists()

    manifest, events = go_on_from(nursery, brood, target)
    assert manifest.initial.digests == tuple(record.stages[str(stage)].digest for stage in range(3))
    begun = [event for stage in events for event in stage if event["event"] == "stage.initialised"]
    assert [event["method"] for event in begun] == ["initial"] * 3
    assert sorted(event["digests"][0] for event in begun) == sorted(manifest.initial.digests)
    (first,) = [event for event in events[0] if event["event"] == "step.committed" and event["step"] == 1]
    assert first["loss"] == pytest.approx(loss_of(ExportedModel(target), manifest), rel=1e-5)


def lose_a_stage_and_export(nursery: Nursery, brood: Brood, target: Path) -> None:
    """The export begins while S1 has no owner, and ends when a spare has taken it."""
    join = nursery.found(run_toml(nursery.folder, seed=3), steps=1_000_000)
    for stage in range(3):
        nursery.join(f"stage-{stage}", join, stage)
    brood.until(lambda: says(nursery.events("stage-0"), "step.committed"), "the first step", START_TIMEOUT_S)
    os.kill(nursery.process_id("stage-1"), signal.SIGKILL)
    brood.until(lambda: says(nursery.events("stage-0"), "swarm.waiting"), "S1 to be missed", START_TIMEOUT_S)
    nursery.export("export", join, target)
    log_path = nursery.folder / "export.log"
    brood.until(lambda: log_path.exists() and "Asking every" in log_path.read_text(), "the export", START_TIMEOUT_S)
    assert "export" not in nursery.statuses()
    nursery.join("spare", join)
    brood.until(lambda: "export" in nursery.statuses(), "the export to end", EXPORT_TIMEOUT_S)
    assert nursery.statuses()["export"] == 0, nursery.log("export")
    assert says(nursery.events("spare"), "stage.recovered")
    leave(nursery, brood, "stage-0", "stage-2", "spare", "seed")


def go_on_from(nursery: Nursery, brood: Brood, target: Path) -> tuple[RunManifest, list[list[Event]]]:
    """The manifest of a run that was founded with the export, and its nodes' events."""
    more = ("--initial-weights", str(target))
    join = nursery.found(run_toml(nursery.folder, seed=4), steps=2, name="again", more=more)
    names = [f"again-{stage}" for stage in range(3)]
    for stage, name in enumerate(names):
        nursery.join(name, join, stage)
    brood.until(lambda: set(names) <= set(nursery.statuses()), "the end of the second run", START_TIMEOUT_S)
    assert [nursery.statuses()[name] for name in names] == [0, 0, 0]
    leave(nursery, brood, "again")
    manifest = decode_manifest((nursery.folder / "run-again" / "manifest.json").read_bytes().strip())
    return manifest, [nursery.events(name) for name in names]


def run_toml(folder: Path, seed: int) -> str:
    path = folder / f"run-{seed}.toml"
    path.write_text(RUN.format(seed=seed), encoding="utf-8")
    return str(path)


def says(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event["event"] == name]


def leave(nursery: Nursery, brood: Brood, *names: str) -> None:
    for name in names:
        os.kill(nursery.process_id(name), signal.SIGTERM)
    brood.until(lambda: set(names) <= set(nursery.statuses()), f"the end of {names}", START_TIMEOUT_S)
    assert [nursery.statuses()[name] for name in names] == [0] * len(names)


def assert_of_one_step(nursery: Nursery, record: ExportRecord) -> None:
    """What the owners say that they held for this step is what is in the folder."""
    events = [event for path in nursery.folder.glob("*.jsonl") for event in nursery.events(path.stem)]
    held = [event for event in says(events, "weights.held") if event["step"] == record.step]
    by_stage = {str(event["stage"]): (event["peer"], event["incarnation"], event["digest"]) for event in held}
    assert by_stage == {stage: msgspec.structs.astuple(origin) for stage, origin in record.stages.items()}


def loss_of(model: ExportedModel, manifest: RunManifest) -> float:
    """The exported model's own loss on the microbatches of the new run's first step."""
    batches = Batches(open_corpus(manifest.data), manifest)
    losses = []
    for index in range(manifest.step.microbatches):
        tokens, labels = batches.microbatch(1, index)
        losses.append(F.cross_entropy(model.logits(tokens).flatten(0, 1), labels.flatten()))
    return float(torch.stack(losses).mean())
