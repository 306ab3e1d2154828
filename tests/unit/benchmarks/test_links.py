"""The benchmark of slow links: its bounds, its tables, and what is said where links cannot be had."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
from pathlib import Path, PosixPath

import msgspec
import pytest

from benchmarks.links import machines, namespaces
from benchmarks.links.__main__ import NARROW, PAGE
from benchmarks.links.bounds import activation_bytes, bytes_per_step, fill_hops, filled_bound_s, plain_bound_s
from benchmarks.links.machines import Machine, choose_congestion_control, is_stale
from benchmarks.links.namespaces import BURST_BYTES_MIN, PREFIX, check_here, open_links, shape
from benchmarks.links.results import SWARM, UNSHAPED, LinkResult, Round, read_all, write
from benchmarks.links.tables import bound_table, parts, step_table
from benchmarks.origin import Origin
from benchmarks.page import fill_in
from understudy.bootstrap.founding import load_manifest
from understudy.bootstrap.local.children import Child
from understudy.bootstrap.local.run import HERE, LocalPlan
from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import ModelSettings, RunManifest, StepSettings

MANIFEST = RunManifest(
    name="few",
    model=ModelSettings(hidden_size=64, block_stages=3, context_length=50),
    step=StepSettings(microbatches=10, microbatch_size=2),
)
TENSOR_BYTES = 2 * 50 * 64 * 2


def simulated_step(block_stages: int, microbatches: int, delay: int = 0) -> int:
    """A step in transfers of one tensor, where computing takes no time, with all microbatches in flight.

    Every stage sends one tensor at a time and receives one at a time; gradients go first, then older microbatches. A
    tensor is there ``delay`` transfers after it was sent.
    """
    stages = block_stages + 1
    hops = 2 * stages
    path = [hop % stages if hop <= stages else (hops - hop) % stages for hop in range(hops + 1)]
    position = [0] * microbatches
    ready = [0] * microbatches
    ticks = 0
    while any(place < hops for place in position):
        sending: set[int] = set()
        receiving: set[int] = set()
        moved = []
        for index in sorted(range(microbatches), key=lambda number: (-position[number], number)):
            if position[index] == hops or ready[index] > ticks:
                continue
            here, there = path[position[index]], path[position[index] + 1]
            if here not in sending and there not in receiving:
                sending.add(here)
                receiving.add(there)
                moved.append(index)
        ticks += 1
        for index in moved:
            position[index] += 1
            ready[index] = ticks + delay
    return max(ready)


def test_every_stage_sends_an_activation_and_a_gradient_of_each_microbatch() -> None:
    assert activation_bytes(MANIFEST) == TENSOR_BYTES
    assert bytes_per_step(MANIFEST) == 2 * 10 * TENSOR_BYTES


def test_the_plain_bound_is_the_slower_of_both() -> None:
    transfer_s = bytes_per_step(MANIFEST) / 1000
    assert plain_bound_s(MANIFEST, 1.0, 1000) == transfer_s
    assert plain_bound_s(MANIFEST, transfer_s + 1, 1000) == transfer_s + 1


@pytest.mark.parametrize("block_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("microbatches", [1, 2, 5, 16, 64])
def test_no_schedule_beats_the_bound_with_fill(block_stages: int, microbatches: int) -> None:
    assert 2 * microbatches + fill_hops(block_stages) <= simulated_step(block_stages, microbatches)


def test_the_fill_comes_on_top_of_the_transfer_and_not_of_the_computing() -> None:
    tensor_s = TENSOR_BYTES / 1000
    assert filled_bound_s(MANIFEST, 0.0, 1000) == pytest.approx((2 * 10 + 2 * 3 - 1) * tensor_s)
    assert filled_bound_s(MANIFEST, 1000.0, 1000) == 1000.0


@pytest.mark.parametrize("block_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("microbatches", [1, 2, 5, 16, 64])
@pytest.mark.parametrize("delay", [1, 3, 20])
def test_no_schedule_beats_the_bound_where_hops_take_time(block_stages: int, microbatches: int, delay: int) -> None:
    manifest = msgspec.structs.replace(
        MANIFEST,
        model=msgspec.structs.replace(MANIFEST.model, block_stages=block_stages),
        step=StepSettings(microbatches=microbatches, microbatch_size=2),
    )
    bound = filled_bound_s(manifest, 0.0, TENSOR_BYTES, delay)
    assert round(bound) <= simulated_step(block_stages, microbatches, delay)


def test_a_hop_takes_its_delay_on_top() -> None:
    few = filled_bound_s(MANIFEST, 0.0, 1000)
    assert filled_bound_s(MANIFEST, 0.0, 1000, 2.0) == pytest.approx(few + 2 * 3 * 2.0)
    assert filled_bound_s(MANIFEST, 0.0, 1e9, 1000.0) == pytest.approx(8000.0), "the way of one microbatch"
    assert filled_bound_s(MANIFEST, 1e9, 1000, 2.0) == 1e9


RESULT = LinkResult(
    MANIFEST,
    rate_mbit=2.0,
    rounds=(
        Round(256_000.0, {UNSHAPED: [0.5, 0.5], SWARM: [1.1, 1.25], "GPipe": [2.35]}),
        Round(256_000.0, {UNSHAPED: [0.5, 0.5], SWARM: [1.25, 2.0], "GPipe": [1.3]}),
    ),
    origin=Origin("abc", {}, "a machine"),
)


def test_the_tables_say_who_was_faster_and_what_was_possible() -> None:
    rows = step_table([RESULT]).splitlines()[2:]
    assert rows[1] == "| few | 2 | understudy | 1.25 |  |"
    assert rows[2] == "| few | 2 | GPipe | 1.83 | 1.40 (2.00, 0.80) |"
    row = bound_table([RESULT]).splitlines()[2]
    assert row == "| few | 2 | 2.0 | 0.3 | 0.50 | 1.00 | 1.00 | 1.25 | 1.25 | **0.80** | 1.00 |"


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    assert write(RESULT, tmp_path).name == "links-few-2.json"
    assert read_all(tmp_path) == [RESULT]


def test_delayed_links_have_a_file_and_a_row_of_their_own(tmp_path: Path) -> None:
    delayed = msgspec.structs.replace(RESULT, round_trip_ms=50.0, congestion_control="reno")
    assert write(delayed, tmp_path).name == "links-few-2-050ms.json"
    assert read_all(tmp_path) == [delayed]
    assert "| few | 2, 50 ms, reno | understudy |" in step_table([delayed])
    assert delayed.filled_bound_s == pytest.approx(RESULT.filled_bound_s + 2 * 3 * 0.025)


def test_the_page_has_room_for_the_tables() -> None:
    fill_in(PAGE.read_text(encoding="utf-8"), dict.fromkeys(parts([]), ""))


@pytest.mark.parametrize("source", [NARROW, "benchmarks/links/narrow-8.toml", "benchmarks/links/thin.toml"])
def test_the_models_have_one_layer_per_stage_and_little_fill(source: str) -> None:
    manifest = load_manifest(source)
    assert manifest.model.layers_per_stage == 1
    assert manifest.model.block_stages >= 3, "a pipeline of torch's has a stage that sends both ways"
    assert fill_hops(manifest.model.block_stages) / (2 * manifest.step.microbatches) < 0.12
    assert manifest.recovery.edge_copy_every == 0


def test_a_shaper_lets_a_whole_piece_through_and_no_more_than_2_ms() -> None:
    assert shape(20) == ["tbf", "rate", "20000000bit", "burst", f"{BURST_BYTES_MIN}b", "latency", "50ms"]
    assert shape(800)[4] == "200000b"


def test_only_what_a_dead_process_left_is_stale() -> None:
    assert is_stale(f"{PREFIX}999999999-0-bridge", PREFIX)
    assert not is_stale(f"{PREFIX}{os.getpid()}-0-bridge", PREFIX)
    assert not is_stale("somebody-elses", PREFIX)
    assert not is_stale(f"{PREFIX}mine", PREFIX)


@pytest.mark.parametrize(("missing", "user", "told"), [("tc", 0, "tc not found"), ("", 1000, "need root")])
def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, missing: str, user: int, told: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None if program == missing else f"/sbin/{program}")
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(SettingsError, match=told):
        check_here()


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOENT, r"TCP cannot use cubic here: .* \(modprobe tcp_cubic\)"),
        (errno.EROFS, r"tcp_congestion_control cannot be written \(Read-only file system\)"),
    ],
)
def test_a_kernel_that_does_not_let_us_use_its_congestion_control_is_named(
    monkeypatch: pytest.MonkeyPatch, number: int, told: str
) -> None:
    class Refusing(PosixPath):
        def write_text(self, *_: object, **__: object) -> int:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(machines, "CONGESTION_FILE", Refusing(machines.CONGESTION_FILE))
    monkeypatch.setattr(namespaces, "check_here", lambda: None)
    monkeypatch.setattr(machines, "command", lambda *_: None)
    monkeypatch.setattr(Machine, "enter", lambda _: None)
    with pytest.raises(SettingsError, match=told), open_links(1, None):
        pass


def test_a_congestion_control_that_is_kept_from_namespaces_is_given_to_the_route(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refusing(PosixPath):
        def write_text(self, *_: object, **__: object) -> int:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    said: list[str] = []
    monkeypatch.setattr(machines, "CONGESTION_FILE", Refusing(machines.CONGESTION_FILE))
    monkeypatch.setattr(machines, "command", lambda *words: said.append(" ".join(words)))
    monkeypatch.setattr(Machine, "enter", lambda _: None)
    choose_congestion_control(Machine("there", "10.77.0.3"), "cubic")
    assert said == [
        "ip -n there route replace 10.77.0.0/24 dev net0 proto kernel scope link src 10.77.0.3 congctl cubic"
    ]


def test_a_command_of_the_kernel_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(words: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 1, "", "Operation not permitted\n")

    monkeypatch.setattr(namespaces, "check_here", lambda: None)
    monkeypatch.setattr(namespaces, "remove_stale", lambda prefix: None)  # what others left here
    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(SettingsError, match=r"'ip netns add .*' failed: Operation not permitted"), open_links(1, 10.0):
        pass


def test_children_of_a_local_swarm_run_in_their_places(tmp_path: Path) -> None:
    machine = Machine("somewhere", "10.0.0.7")
    plan = LocalPlan("tiny", MANIFEST, 0, (), tmp_path, places=(machine.place,))
    assert plan.place(0).listen == "/ip4/10.0.0.7/tcp/0"
    assert plan.place(0).prefix == ("ip", "netns", "exec", "somewhere")
    assert plan.place(1) == HERE


def test_a_child_is_what_its_prefix_becomes(tmp_path: Path) -> None:
    async def main() -> None:
        child = await Child.start("here", "json.tool", ["--help"], tmp_path / "log", ("env", "COLUMNS=40"))
        assert await child.wait(10.0)
        assert child.exit_status == 0

    asyncio.run(main())
    assert "json.tool" in (tmp_path / "log").read_text(encoding="utf-8")
