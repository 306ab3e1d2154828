"""A run that begins with an export: what is refused at its founding, what is served, and how a stage comes by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from tests.seals import NamedSeal
from understudy.bootstrap.begin import Founding, begin
from understudy.bootstrap.founding import keep_founding, load_manifest
from understudy.node.compute.model import UnsplitModel
from understudy.node.compute.weights import snapshot
from understudy.node.export.folder import ExportFolder, Origin
from understudy.node.export.initial_weights import InitialWeights
from understudy.node.p2p.addresses import JoinString
from understudy.protocol.actions import Emit, Fetch, Run
from understudy.protocol.core import Core
from understudy.protocol.errors import SettingsError
from understudy.protocol.events import Fetched, FetchFailed, JobDone, RecordsRead, Started, TimerFired
from understudy.protocol.ids import PeerId
from understudy.protocol.jobs import InitialiseJob
from understudy.protocol.manifest import InitialSettings, ModelSettings, RunManifest
from understudy.protocol.manifest_reader import manifest_from_table
from understudy.protocol.recovery.claimant import SETTLE_S
from understudy.protocol.recovery.gathering import INITIAL_RETRY_S
from understudy.protocol.wire.messages import FetchRequest
from understudy.protocol.wire.records import stage_key

MODEL = ModelSettings(hidden_size=8, intermediate_size=12, attention_heads=2, block_stages=2, layers_per_stage=2)
FOUNDER = PeerId("founder")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("exports") / "out", UnsplitModel(MODEL, seed=9))


def export(target: Path, model: UnsplitModel) -> Path:
    manifest = RunManifest(name="earlier", model=MODEL)
    with ExportFolder.reserved(target, manifest.digest()) as folder:
        folder.begin(7, 0)
        for stage, module in enumerate(model.stages):
            weights = snapshot(module)
            folder.add(manifest, 7, stage, (weights, Origin("peer", 1, weights.digest)))
        return folder.finish(manifest, 7)


def changed(**settings: Any) -> ModelSettings:
    return msgspec.structs.replace(MODEL, **settings)


# --- at the founding ---


def test_the_manifest_names_what_is_served(exported: Path) -> None:
    initial = InitialWeights(exported, MODEL)
    manifest = initial.entered(RunManifest(name="later", model=MODEL), FOUNDER)
    assert (manifest.initial.peer, manifest.initial.step) == (FOUNDER, 7)
    assert manifest.initial.run_id.startswith("earlier-")
    for stage, module in enumerate(UnsplitModel(MODEL, seed=9).stages):
        digest = manifest.initial.digests[stage]
        assert digest == snapshot(module).digest
        found = initial.find(digest)
        assert found is not None
        assert all(torch.equal(ours, own) for ours, own in zip(found.tensors, module.parameters(), strict=True))
        assert initial.may_fetch(PeerId("anybody"), FetchRequest(stage, 1, digest, 0))
    assert initial.find("0" * 64) is None
    assert not initial.may_fetch(PeerId("anybody"), FetchRequest(0, 1, "0" * 64, 0))
    assert manifest.digest() != RunManifest(name="later", model=MODEL).digest()


def test_the_weights_may_be_cut_into_other_stages(exported: Path) -> None:
    initial = InitialWeights(exported, changed(block_stages=4, layers_per_stage=1, context_length=64))
    assert len(initial.digests) == 5
    first_layer = [p for name, p in UnsplitModel(MODEL, 9).blocks[0].named_parameters() if "layers.0." in name]
    found = initial.find(initial.digests[1])
    assert found is not None
    assert all(torch.equal(ours, own) for ours, own in zip(found.tensors, first_layer, strict=True))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"hidden_size": 16}, "its model.hidden_size is 8, the run's is 16"),
        ({"block_stages": 3}, "its layers is 4, the run's is 6"),
        ({"rope_theta": 5.0}, "its model.rope_theta is 10000.0, the run's is 5.0"),
        ({"vocabulary_size": 300}, "its model.vocabulary_size is 256, the run's is 300"),
    ],
)
def test_weights_of_another_model_are_refused(settings: dict[str, Any], complaint: str, exported: Path) -> None:
    with pytest.raises(SettingsError, match=complaint):
        InitialWeights(exported, changed(**settings))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = UnsplitModel(MODEL, seed=9)
    with torch.no_grad():
        next(model.stages[1].parameters())[0, 0] = torch.nan
    with pytest.raises(SettingsError, match="NaN or Inf"):
        InitialWeights(export(tmp_path / "out", model), MODEL)


def test_a_manifest_that_grows_too_long_is_refused(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.node.export.initial_weights.MANIFEST_BYTES_MAX", 800)
    with pytest.raises(SettingsError, match="use fewer model"):
        InitialWeights(exported, MODEL).entered(RunManifest(name="later", model=MODEL), FOUNDER)


def test_a_run_toml_cannot_name_weights_that_nobody_has() -> None:
    for initial in ({"digests": ["0" * 64]}, {"peer": "somebody"}, {"digests": ["0" * 64] * 5}):
        with pytest.raises(SettingsError, match="--initial-weights"):
            manifest_from_table({"name": "x", "initial": initial}, "run.toml")


def run_toml(folder: Path) -> str:
    path = folder / "run.toml"
    sizes = "hidden_size = 8\nintermediate_size = 12\nattention_heads = 2\nblock_stages = 2\nlayers_per_stage = 2\n"
    path.write_text(f'name = "later"\n[model]\n{sizes}')
    return str(path)


def test_a_seed_that_starts_again_serves_the_same_weights_or_says_that_it_does_not(
    exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wish = Founding(run_toml(tmp_path), None, tmp_path / "run", exported)
    manifest, initial = begin(wish)
    assert initial is not None
    manifest = initial.entered(manifest, FOUNDER)
    address = f"/ip4/127.0.0.1/tcp/1/p2p/{FOUNDER}"
    keep_founding(tmp_path / "run", manifest, JoinString(manifest.run_id(), manifest.digest(), FOUNDER, (address,)))

    again, initial = begin(wish)
    assert again == manifest
    assert initial is not None
    assert initial.entered(again, FOUNDER) == manifest
    assert begin(Founding(wish.source, None, wish.folder)) == (manifest, None)
    assert "weights that this seed does not serve" in caplog.text
    other = export(tmp_path / "other", UnsplitModel(MODEL, seed=10))
    with pytest.raises(SettingsError, match="not founded with these"):
        begin(Founding(wish.source, None, wish.folder, other))


def test_an_ordinary_run_begins_with_its_seed(tmp_path: Path) -> None:
    manifest, initial = begin(Founding("tiny"))
    assert initial is None
    assert manifest.initial == InitialSettings()
    assert load_manifest("tiny").initial == InitialSettings()


# --- in a node ---


class Newcomer:
    """A node that takes the never-owned S1 of a run that begins with weights of its own."""

    def __init__(self) -> None:
        self.digests = tuple(f"{stage:064x}" for stage in range(3))
        initial = InitialSettings(digests=self.digests, peer=FOUNDER)
        self.manifest = RunManifest(name="later", model=MODEL, initial=initial)
        self.core = Core(NamedSeal(PeerId("me")), self.manifest, check_every=1)
        self.now = 100.0
        self.actions: list[Any] = []
        self.do(Started(1))
        for stage in range(3):
            self.do(RecordsRead(stage_key(stage), ()))
        self.now += SETTLE_S
        self.do(TimerFired())
        self.do(RecordsRead(stage_key(1), ()))

    def do(self, event: Any) -> None:
        self.actions += self.core.handle(event, self.now)

    def of(self, kind: Any) -> list[Any]:
        return [action for action in self.actions if isinstance(action, kind)]

    def built_from(self) -> InitialiseJob:
        (job,) = [run.job for run in self.of(Run)]
        assert isinstance(job, InitialiseJob)
        self.do(JobDone(job))
        assert self.core.state.is_serving
        return job

    def origin(self) -> Emit:
        (emit,) = [emit for emit in self.of(Emit) if emit.name == "stage.initialised"]
        return emit


def test_a_stage_that_was_never_owned_begins_with_the_initial_weights() -> None:
    node = Newcomer()
    (fetch,) = node.of(Fetch)
    assert fetch == Fetch((1, 1), FOUNDER, "initial", node.digests[1], MODEL.stage_bytes(1))
    node.do(Fetched(fetch.claim, FOUNDER, fetch.digest, "weights"))
    assert node.built_from().parts == (("initial", "weights"),)
    assert node.origin().fields["method"] == "initial"
    assert node.origin().fields["donors"] == []
    assert node.origin().fields["digests"] == [node.digests[1]]


def test_a_founder_that_does_not_deliver_is_waited_for() -> None:
    """Beginning with other weights, each stage for itself, would ruin the model without a word."""
    node = Newcomer()
    for tries in range(1, 10):
        assert len(node.of(Fetch)) == tries
        node.now += INITIAL_RETRY_S
        node.do(TimerFired())
        assert len(node.of(Fetch)) == tries, "one that is under way is not asked for again"
        node.do(FetchFailed((1, 1), FOUNDER, node.digests[1], "gone"))
        node.do(TimerFired())
        assert len(node.of(Fetch)) == tries
        node.now += INITIAL_RETRY_S
        node.do(TimerFired())
    assert node.of(Run) == []
    failures = [emit.fields["reason"] for emit in node.of(Emit) if emit.name == "fetch.failed"]
    assert len(failures) == 9
    assert "waiting for the founder's seed" in failures[0]
    node.do(Fetched((1, 1), FOUNDER, node.digests[1], "weights"))
    assert node.built_from().parts == (("initial", "weights"),)


def test_initial_weights_that_are_unusable_lead_to_the_seed() -> None:
    node = Newcomer()
    node.do(Fetched((1, 1), FOUNDER, node.digests[1], "weights"))
    (run,) = node.of(Run)
    node.do(JobDone(run.job, "NaN"))
    (_, again) = node.of(Run)
    while again.job.parts:
        node.do(JobDone(again.job, "NaN"))
        *_, again = node.of(Run)
    node.do(JobDone(again.job))
    assert node.core.state.is_serving
    assert node.origin().fields["method"] == "seed"
