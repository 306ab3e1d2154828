"""What a node finds out about its own machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from understudy.node.config import NodeConfig, choose_device, choose_threads
from understudy.node.p2p.addresses import JoinString
from understudy.protocol.errors import SettingsError
from understudy.protocol.ids import PeerId


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_available, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_available=is_available: is_available)
        assert choose_device("auto") == device


def test_a_device_that_works_is_taken_as_it_is() -> None:
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize("wanted", ["banana", "cpu:-1", "", "cuda:99"])
def test_a_device_that_cannot_be_used_is_named_with_the_reason(wanted: str) -> None:
    with pytest.raises(SettingsError) as raised:
        choose_device(wanted)
    assert str(raised.value).startswith(f"device {wanted!r} cannot be used (")
    assert str(raised.value).endswith("try --device cpu")
    assert "\n" not in str(raised.value)


def test_no_threads_means_all_cores_and_fewer_is_a_mistake() -> None:
    assert choose_threads(3) == 3
    assert choose_threads(0) == len(os.sched_getaffinity(0))
    with pytest.raises(SettingsError, match="--threads must not be negative; 0 means all cores"):
        choose_threads(-1)


def test_a_nodes_settings_do_not_change() -> None:
    join = JoinString("run-0", "d" * 64, PeerId("Qm"), ())
    config = NodeConfig(join, Path("node.key"))
    with pytest.raises(AttributeError):
        config.threads = 2  # type: ignore[misc]
