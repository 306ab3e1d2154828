"""The tests see neither the shell nor the home of whoever runs them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console

from tests.surroundings import settled
from understudy.node.cli import default_identity
from understudy.protocol.errors import SettingsError


def test_a_shell_that_cannot_draw_and_gives_options_is_not_seen() -> None:
    shell = {
        "PATH": "/bin",
        "TERM": "dumb",
        "COLUMNS": "40",
        "NO_COLOR": "1",
        "UNDERSTUDY_JOIN": "@/join",
        "XDG_DATA_HOME": "/data",
    }
    assert settled(shell) == {"PATH": "/bin", "TERM": "xterm-256color"}


def test_this_run_is_settled() -> None:
    assert dict(os.environ) == settled(os.environ)
    assert not Console(force_terminal=True).is_dumb_terminal


def test_nothing_goes_into_the_home_of_whoever_runs_the_tests() -> None:
    assert not Path.home().exists()
    with pytest.raises(SettingsError, match=r"cannot be made .*: give a key file with --identity"):
        default_identity("node")
