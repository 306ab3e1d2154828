"""The benchmark's links in this kernel: as slow as they should be, and gone afterwards."""

from __future__ import annotations

import os
import subprocess

import pytest

from benchmarks.links.bounds import bytes_per_step
from benchmarks.links.delay import Carried
from benchmarks.links.delayed import open_delayed_links
from benchmarks.links.machines import FOLDER
from benchmarks.links.namespaces import BURST_BYTES_MIN, PREFIX, open_links
from benchmarks.links.plain import step_seconds
from benchmarks.links.raw import bytes_per_s, round_trip_s
from understudy.protocol.errors import SettingsError
from understudy.protocol.presets import preset

BUILT_IN = "reno"
"""The one congestion control that every Linux kernel has, and lets everybody use."""


@pytest.fixture(autouse=True)
def _links_here() -> None:
    """They take root, iproute2 and a kernel that shapes. Without them these tests are skipped, but not in CI."""
    try:
        with open_links(1, 10.0, BUILT_IN):
            return
    except SettingsError as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def test_a_link_is_no_faster_than_its_rate() -> None:
    """How much slower it is depends on who else uses this machine; one that is not shaped is 50 times as fast."""
    with open_links(2, 80.0, BUILT_IN) as (sender, receiver):
        found = bytes_per_s(sender, receiver, 1_000_000)
    assert 0 < found < (1_000_000 + 2 * BURST_BYTES_MIN) / 1_000_000 * 10e6
    assert not list(FOLDER.glob(f"{PREFIX}{os.getpid()}-*")), "nothing is left behind"


def test_links_go_with_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), open_links(2, 80.0, BUILT_IN):
        raise KeyboardInterrupt
    assert not list(FOLDER.glob(f"{PREFIX}{os.getpid()}-*"))


def test_what_a_killed_process_left_is_removed_by_the_next() -> None:
    name = f"{PREFIX}999999999-0-1"
    subprocess.run(["ip", "netns", "add", name], check=True)
    with open_links(1, 80.0, BUILT_IN):
        assert not (FOLDER / name).exists()


def test_a_delayed_link_has_its_round_trip_and_its_rate() -> None:
    """Slow enough for any machine: a piece takes 13 ms at 10 Mbit/s, a packet of it 1.2 ms."""
    carried: list[Carried] = []
    with open_delayed_links(3, 10.0, 100.0, BUILT_IN, carried.append) as (first, second, third):
        found_s = round_trip_s(first, third)
        found = bytes_per_s(first, second, 2_500_000, first_bytes=1_250_000)
    assert 0.099 < found_s < 0.110
    assert 0.90 * 1.25e6 < found < 1.25e6
    assert carried[0].refused == 0
    assert carried[0].wire_bytes > 3_750_000
    assert not list(FOLDER.glob(f"{PREFIX}{os.getpid()}-*")), "nothing is left behind"


def test_delayed_links_go_with_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), open_delayed_links(2, 10.0, 50.0, BUILT_IN):
        raise KeyboardInterrupt
    assert not list(FOLDER.glob(f"{PREFIX}{os.getpid()}-*"))


def test_plain_sockets_carry_what_the_stages_of_a_step_send() -> None:
    """Two tensors of each microbatch over every link: no faster than its rate, and each comes home."""
    manifest = preset("tiny")
    with open_links(manifest.stage_count, 80.0, BUILT_IN) as machines:
        (seconds,) = step_seconds(manifest, 1, machines)
    assert seconds > (bytes_per_step(manifest) - 2 * BURST_BYTES_MIN) / 10e6
