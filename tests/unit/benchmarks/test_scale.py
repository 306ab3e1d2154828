"""The benchmark of scale: what its meters count, and a few small swarms."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from benchmarks.keeping import keep
from benchmarks.origin import Origin
from benchmarks.page import fill_in
from benchmarks.scale.__main__ import PAGE, parse_case
from benchmarks.scale.depth import MICROBATCHES, RUN, Depth, DepthResult, depth_table
from benchmarks.scale.measuring import measure
from benchmarks.scale.metering import Meter
from benchmarks.scale.results import Case, Outcome, ScaleResult, read, roles_table, scale_table, swarm_table
from understudy.bootstrap.founding import load_manifest
from understudy.protocol.actions import Read, Send, Store
from understudy.protocol.ids import Attempt, PeerId
from understudy.protocol.wire.frames import encode_frame
from understudy.protocol.wire.messages import Forward, Heartbeat
from understudy.protocol.wire.records import SpareRecord, encode_record

PEER = PeerId("peer")


def test_a_meter_tells_activations_from_words() -> None:
    meter, word, record = Meter(), Heartbeat(1, 1, "serving", 7), SpareRecord(PEER, 1.0)
    for action in (
        Send(PEER, word),
        Send(PEER, Forward(1, 0, Attempt(1, 0), 1, 1), "payload"),
        Store(record, 15.0),
        Read(("stage/1", "spares")),
    ):
        meter.add(action)
    meter.add_found([record, record])
    record_bytes = 2 * len(encode_record(record))
    assert meter == Meter(1, 1, len(encode_frame(word)), 1, 2, 2, record_bytes)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return measure(Case(3, 6), window_s=10.0)


def test_a_small_swarm_costs_what_its_timers_say(outcome: Outcome) -> None:
    spares = outcome.spares
    assert (outcome.owners.peers, spares.peers, outcome.everybody.peers) == (3, 3, 6)
    assert spares.data_messages == 0
    assert 0 < spares.messages < 4, "one of the three confirms its copies of S0: two parts, four times a second"
    assert spares.stores == pytest.approx(1 / 5, rel=0.3)
    assert spares.reads == pytest.approx(2 * 3 + 2, rel=0.3)
    assert outcome.owners.messages > outcome.owners.stores > 0
    assert outcome.everybody.stores == pytest.approx((outcome.owners.stores + spares.stores) / 2)


def test_a_small_swarm_makes_both_losses_good(outcome: Outcome) -> None:
    assert outcome.killed is not None
    assert outcome.vanished is not None
    for known_s, served_s in (outcome.killed, outcome.vanished):
        assert 0 < known_s < served_s < 10
    assert outcome.killed[0] < outcome.vanished[0]


def test_tables_and_file_say_the_same(outcome: Outcome, tmp_path: Path) -> None:
    found = ScaleResult((outcome,), 10.0, Origin("abc", {}, "a machine"))
    keep(found, tmp_path / "scale.json")
    assert read(tmp_path / "scale.json") == found
    assert len(scale_table(found).splitlines()) == len(swarm_table(found).splitlines()) == 3
    assert [row.split(" | ")[2] for row in roles_table(found).splitlines()[2:]] == ["owner", "spare"]


def test_the_page_has_room_for_the_tables() -> None:
    parts = dict.fromkeys(("scale", "scale-roles", "scale-swarm", "scale-live", "scale-origin"), "")
    fill_in(PAGE.read_text(encoding="utf-8"), parts)


@pytest.mark.parametrize("text", ["", "5", "5:", "5:4", "2:9", "a:b", "5:10:2", "-5:10"])
def test_a_case_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="give stages:peers"):
        parse_case(text)


def test_a_case_is_stages_and_peers() -> None:
    assert parse_case("5:1000") == Case(5, 1000)


def test_every_depth_is_a_run_of_its_own(tmp_path: Path) -> None:
    for stages in (3, 64):
        path = tmp_path / "run.toml"
        path.write_text(RUN.format(stages=stages, microbatches=MICROBATCHES))
        manifest = load_manifest(str(path), 5)
        assert (manifest.model.block_stages, manifest.step.microbatches, manifest.step.total_steps) == (stages, 8, 5)


def test_depths_are_compared_by_medians() -> None:
    depth = Depth(4, swarm=[0.5, 0.4, 9.0], unsplit=[0.3, 0.4, 0.4])
    table = depth_table(DepthResult((depth,), Origin.here()))
    assert table.splitlines()[-1] == "| 4 | 500 | 15.6 | 400 | 0.80 |"
