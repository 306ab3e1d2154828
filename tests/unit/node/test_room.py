"""A stage that this machine cannot hold is refused by numbers alone, before anything is allocated."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy.node.__main__ import possible_stages
from understudy.node.compute import room
from understudy.node.compute.room import PROCESS_BYTES, UNLIMITED, Room, measure_room
from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import ModelSettings, RecoverySettings, RunManifest
from understudy.protocol.presets import PRESETS, preset

TINY = preset("tiny")
LARGE_BLOCKS = RunManifest(name="x", model=ModelSettings(hidden_size=4096, intermediate_size=1 << 14))
"""A block stage of 1.1 GB, an S0 of 8 MB."""
LARGE_EDGE = RunManifest(
    name="x", model=ModelSettings(vocabulary_size=1 << 20), recovery=RecoverySettings(edge_copy_every=0)
)
"""The other way round: 1.1 GB of S0, which no block stage keeps."""


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_of_281_terabytes_fits_nowhere(stage: int) -> None:
    huge = ModelSettings(vocabulary_size=1 << 36, hidden_size=1 << 16, intermediate_size=1 << 18, layers_per_stage=1024)
    objection = measure_room("cpu").objection(RunManifest(name="x", model=huge), stage)
    assert objection is not None
    assert "GB of memory or more, and this machine has" in objection


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_fit_into_what_they_are_for(name: str) -> None:
    assert [Room(64 * 10**9).objection(preset(name), stage) for stage in (0, 1)] == [None, None]
    assert [Room(24 * 10**9, 24 * 10**9).objection(preset(name), stage) for stage in (0, 1)] == [None, None]


def test_the_smaller_stage_may_still_be_taken() -> None:
    small = Room(2 * 10**9)
    assert small.objection(LARGE_BLOCKS, 0) is None
    assert str(small.objection(LARGE_BLOCKS, 1)).startswith("a block stage of this run needs 5.")
    assert str(small.objection(LARGE_EDGE, 0)).startswith("S0 of this run needs ")
    assert small.objection(LARGE_EDGE, 1) is None


def test_who_keeps_a_copy_of_s0_needs_room_for_it() -> None:
    keeping = RunManifest(name="x", model=LARGE_EDGE.model)
    needed = PROCESS_BYTES + keeping.model.stage_bytes(0)
    assert Room(needed).objection(keeping, 1) is not None
    assert Room(needed + 10**8).objection(keeping, 1) is None


def test_an_accelerator_is_judged_by_its_own_memory() -> None:
    assert str(Room(10**12, 10**9).objection(LARGE_BLOCKS, 1)).endswith("and the accelerator has 1.0 GB")
    assert str(Room(10**9, 10**12).objection(LARGE_BLOCKS, 1)).endswith("and this machine has 1.0 GB")
    assert Room(10**10, 10**10).objection(LARGE_BLOCKS, 1) is None


def test_an_export_needs_room_for_one_stage() -> None:
    assert "a block stage of this run needs 1." in str(Room(10**9).objection_to_export(LARGE_BLOCKS))
    assert Room(2 * 10**9).objection_to_export(LARGE_BLOCKS) is None


def test_the_least_limit_of_all_groups_above_counts(tmp_path: Path) -> None:
    def limited(groups: str, **limits: str) -> int:
        (tmp_path / "cgroup").write_text(groups)
        for name, limit in limits.items():
            path = tmp_path / "fs" / name.replace("__", "/").replace("MAX", "memory.max")
            path = path.with_name(path.name.replace("V1", "memory.limit_in_bytes"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{limit}\n")
        return room._group_bytes(tmp_path / "cgroup", tmp_path / "fs")

    assert limited("0::/\n") == UNLIMITED
    assert limited("0::/\n", MAX="max") == UNLIMITED
    assert limited("0::/\n", MAX="500") == 500
    assert limited("0::/a/b\n", a__b__MAX="max", a__MAX="300") == 300
    assert limited("0::/a/b\n", a__b__MAX="200") == 200
    assert limited("4:cpu:/a\n5:memory,x:/deep\n", memory__deep__V1="70") == 70
    assert room._group_bytes(tmp_path / "none") == UNLIMITED


def test_a_machine_without_a_limit_has_its_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       16384 kB\nMemFree: 1 kB\n")
    assert room._physical_bytes(tmp_path / "meminfo") == 1 << 24
    assert room._physical_bytes(tmp_path / "none") == UNLIMITED
    assert 10**8 < measure_room("cpu").host_bytes < UNLIMITED


def test_what_is_left_is_said_and_nothing_left_is_refused() -> None:
    assert possible_stages(None, None, None) == ()
    assert possible_stages(None, "no text", None) == ("this node can take any stage but S0: no text",)
    assert possible_stages(None, None, "too large") == ("this node can take no stage but S0: too large",)
    assert possible_stages(0, None, "too large") == ("this node can take no stage but S0: too large",)
    for wanted, text, blocks, told in (
        (0, "no text", None, "--stage 0: no text"),
        (2, None, "too large", "--stage 2: too large"),
        (None, "no text", "too large", "no stage of this run: too large; no text"),
    ):
        with pytest.raises(SettingsError, match=told):
            possible_stages(wanted, text, blocks)
