"""How a node looks, at fixed widths."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from understudy.node.ui.history import StatusSample
from understudy.node.ui.panel import amount, node_panel, status_line
from understudy.protocol.ids import PeerId
from understudy.protocol.observe.node_status import Neighbour, SelfView

VIEW = SelfView(
    peer=PeerId("QmSoVeryLongAPeerIdA"),
    run_id="seen-0123456789ab",
    role="owner",
    stage=2,
    incarnation=3,
    doing="",
    step=120,
    total_steps=400,
    loss=2.71828,
    neighbours=(Neighbour(1, "answers"), Neighbour(3, "silent", silence_s=2.6), Neighbour(4, "dead")),
    missing=(4,),
)
SAMPLE = StatusSample(
    VIEW, "S2 was lost", 83.6, 39_100_000, 1_234, "S2 here by checkfree from S1 and S3, 1.4 s (12 s ago)"
)


def drawn(sample: StatusSample, width: int = 80) -> list[str]:
    screen = io.StringIO()
    Console(width=width, file=screen).print(node_panel(sample))
    return [line.rstrip() for line in screen.getvalue().splitlines()]


def test_the_picture_of_an_owner() -> None:
    assert drawn(SAMPLE) == [
        "node        ..APeerIdA of seen-0123456789ab",
        "stage       S2, incarnation 3 (S2 was lost)",
        "progress    step 120 of 400, loss 2.718, 84 microbatches/min",
        "traffic     39.1 MB in, 1.2 kB out",
        "neighbours  S1 answers   S3 silent for 3 s   S4 dead",
        "waits for   an owner of S4",
        "recovery    S2 here by checkfree from S1 and S3, 1.4 s (12 s ago)",
    ]


def test_the_way_to_a_node_and_whom_it_does_not_get_to_are_shown() -> None:
    view = replace(VIEW, reachability="relayed", unreached=((3, "5.5.5.7: no answer"),))
    lines = drawn(replace(SAMPLE, view=view), 100)
    assert "reach       relayed: traffic goes through peers, as the router lets nobody through" in lines
    assert "no way to   the owner of S3: 5.5.5.7: no answer" in lines
    assert "reach=relayed no_way_to=S3" in status_line(replace(SAMPLE, view=view))


def test_a_narrow_terminal_breaks_lines_and_cuts_nothing() -> None:
    text = "".join("".join(drawn(SAMPLE, 30)).split())
    for shown in ("S2,incarnation3", "84microbatches/min", "S3silentfor3s", "12sago"):
        assert shown in text


def test_the_picture_of_a_spare_and_of_a_claimant() -> None:
    spare = replace(VIEW, role="spare", stage=None, neighbours=(), missing=(), loss=None, total_steps=0)
    assert drawn(replace(SAMPLE, view=spare, why="nothing needs an owner", last_recovery="")) == [
        "node      ..APeerIdA of seen-0123456789ab",
        "stage     none, a spare (nothing needs an owner)",
        "progress  step 120",
        "traffic   39.1 MB in, 1.2 kB out",
        "recovery  none so far",
    ]
    claimant = replace(VIEW, role="claimant", doing="asking S1 to vouch")
    assert "claims S2: asking S1 to vouch" in drawn(replace(SAMPLE, view=claimant))[1]
    assert "saying goodbye" in drawn(replace(SAMPLE, view=replace(VIEW, role="gone")))[1]


def test_one_line_for_a_log() -> None:
    assert status_line(SAMPLE) == (
        "role=owner stage=2 incarnation=3 step=120 loss=2.718 microbatches_per_minute=84 bytes_in=39100000 "
        "bytes_out=1234 neighbours=S1:answers,S3:silent,S4:dead missing=S4"
    )
    spare = replace(VIEW, role="spare", stage=None, neighbours=(), missing=(), loss=None)
    assert status_line(replace(SAMPLE, view=spare, microbatches_per_minute=None)) == (
        "role=spare step=120 bytes_in=39100000 bytes_out=1234"
    )


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (5e9, "5.0 GB"), (2e12, "2.0 TB")],
)
def test_bytes_are_said_as_people_do(count: float, told: str) -> None:
    assert amount(count) == told
