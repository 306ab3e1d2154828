"""What a test sets for the whole process ends with the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _nobodys_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that needs a home makes one. Not below /proc can anybody, root included."""
    monkeypatch.setenv("HOME", "/proc/nobody")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Commands run in this process choose their arithmetic threads; more than one wastes a busy machine's time."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)
