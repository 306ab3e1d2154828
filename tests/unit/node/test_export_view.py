"""What a person sees of an export."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from understudy.node.export.view import ExportView, line_of
from understudy.protocol.presets import preset

MANIFEST = preset("tiny")


@pytest.mark.parametrize(
    ("name", "fields", "line"),
    [
        ("export.waiting", {"stages": [1, 3]}, "Waiting for an owner of S1, S3."),
        ("export.complete", {"stages": []}, "Every stage has an owner."),
        ("export.aimed", {"step": 7, "reason": ""}, "Asking every owner for its weights after step 7."),
        ("export.aimed", {"step": 9, "reason": "S1 is late"}, "S1 is late: beginning anew with step 9."),
        ("export.resumed", {"step": 7, "there": [0, 2]}, "Going on with step 7: S0, S2 came before."),
        ("export.queued", {"stages": [1]}, "The owner of S1 holds weights for others already; waiting for its turn."),
        ("export.silent", {"stages": [1]}, "The owner of S1 has not answered yet."),
        ("export.fetched", {"stage": 1, "donor": "Qm"}, "S1 came from Qm."),
        ("fetch.failed", {"stage": 1, "donor": "Qm", "reason": "gone"}, "S1 did not come from Qm: gone."),
        ("bytes", {"stage": 1, "count": 9}, None),
        ("export.finished", {}, None),
    ],
)
def test_what_is_worth_a_line(name: str, fields: dict[str, object], line: str | None) -> None:
    assert line_of(name, fields) == line


def shown(*, is_terminal: bool) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=100)
    with ExportView(MANIFEST, console) as view:
        view.note("export.resumed", {"step": 7, "there": [0]})
        view.note("bytes", {"stage": 1, "count": MANIFEST.model.stage_bytes(1)})
        view.note("bytes", {"stage": 2, "count": 1000})
        view.note("fetch.failed", {"stage": 2, "donor": "Qm", "reason": "gone"})
    return screen.getvalue()


def test_on_a_terminal_a_bar_counts_what_is_there() -> None:
    total = sum(map(MANIFEST.model.stage_bytes, range(5)))
    there = MANIFEST.model.stage_bytes(0) + MANIFEST.model.stage_bytes(1)
    assert f"{there / 1e6:.1f}/{total / 1e6:.1f} MB" in shown(is_terminal=True)


def test_elsewhere_there_are_lines_only() -> None:
    assert shown(is_terminal=False).splitlines() == [
        "Going on with step 7: S0 came before.",
        "S2 did not come from Qm: gone.",
    ]
