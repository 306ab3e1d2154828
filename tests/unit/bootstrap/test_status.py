"""What ``understudy status`` shows of a swarm, at fixed widths."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import msgspec
import pytest
from rich.console import Console

from understudy.bootstrap import status
from understudy.bootstrap.status import StatusArguments
from understudy.bootstrap.swarm_view import SPARES_NAMED_MAX, status_line, status_view
from understudy.protocol.observe.swarm_status import SpareView, StageView, SwarmView

VIEW = SwarmView(
    run_id="seen-0123456789ab",
    name="seen",
    state="waiting",
    step=120,
    total_steps=400,
    loss=2.71828,
    tokens=491520,
    tokens_per_second=9593.4,
    stages=(
        StageView(0, "serving", "QmSoVeryLongAPeerIdA", 1, 120, 0.4, copied=119),
        StageView(1, "lost", "QmSoVeryLongAPeerIdB", 2, 118, 11.2, reachability="punchable"),
        StageView(2, "unowned"),
    ),
    spares=(SpareView("QmSoVeryLongAPeerIdC", 12.5),),
    holes=(1, 2),
    waits_for="owners of S1, S2 (start 1 more node)",
)


def drawn(view: SwarmView, width: int) -> list[str]:
    screen = io.StringIO()
    Console(width=width, file=screen).print(status_view(view))
    return [line.rstrip() for line in screen.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_the_picture_names_stages_owners_progress_spares_and_what_is_missing(width: int) -> None:
    lines = drawn(VIEW, width)
    assert lines[0] == "seen-0123456789ab"
    assert [line.replace("│", " ").split() for line in lines[4:7]] == [
        ["S0", "APeerIdA", "1", "serving", "120", "0", "s", "ago"],
        ["S1", "APeerIdB", "2", "lost", "118", "11", "s", "ago"],
        ["S2", "unowned", "0"],
    ]
    assert lines[-5:] == [
        "waiting: step 120 of 400, loss 2.718, 9,593 tokens/s, 491,520 tokens",
        "spares: ..APeerIdC (12.5)",
        "copies, steps old: S0 1, S1 none, S2 none",
        "behind routers: S1 (punchable)",
        "waits for owners of S1, S2 (start 1 more node)",
    ]


def test_a_narrow_terminal_cuts_nothing_that_matters() -> None:
    text = " ".join(drawn(VIEW, 50))
    for shown in ("S0", "S1", "S2", "unowned", "120 of 400", "start 1 more node"):
        assert shown in text


def test_many_spares_are_counted() -> None:
    spares = tuple(SpareView(f"QmPeer{number:03}", 1.0) for number in range(SPARES_NAMED_MAX + 2))
    (line,) = [line for line in drawn(msgspec.structs.replace(VIEW, spares=spares), 400) if "spares" in line]
    assert line.endswith(" and 2 more")


def test_what_is_not_known_is_left_out() -> None:
    view = msgspec.structs.replace(
        VIEW, state="silent", total_steps=0, loss=None, tokens=None, tokens_per_second=None, spares=(), waits_for=None
    )
    assert drawn(view, 80)[-4:-2] == ["silent: step 120", "spares: none"]


def test_one_line_says_how_far_it_is_and_what_it_waits_for() -> None:
    progress = "waiting: step 120 of 400, loss 2.718, 9,593 tokens/s, 491,520 tokens, spares: 1"
    assert status_line(VIEW) == f"{progress}, waits for owners of S1, S2 (start 1 more node)"
    assert status_line(msgspec.structs.replace(VIEW, waits_for=None)) == progress


@pytest.fixture
def screens(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[io.StringIO, io.StringIO]]:
    """Give the command consoles of our own: what it writes to stdout, and to stderr."""

    def put(*, is_terminal: bool) -> tuple[io.StringIO, io.StringIO]:
        out, complaints = io.StringIO(), io.StringIO()

        def console(*, stderr: bool = False) -> Console:
            return Console(file=complaints if stderr else out, width=100, force_terminal=is_terminal)

        monkeypatch.setattr(status, "Console", console)
        return out, complaints

    return put


def test_watching_without_a_terminal_says_a_line_per_change(
    screens: Callable[..., tuple[io.StringIO, io.StringIO]],
) -> None:
    out, complaints = screens(is_terminal=False)
    with status._Screen(StatusArguments("", is_watching=True, is_json=False)) as screen:
        screen.show(VIEW)
        screen.show(VIEW)
        screen.complain("cannot read")
        screen.show(msgspec.structs.replace(VIEW, step=121))
    assert out.getvalue().count("\n") == 2
    assert complaints.getvalue() == "cannot read\n"


def test_watching_as_json_is_one_object_a_line(screens: Callable[..., tuple[io.StringIO, io.StringIO]]) -> None:
    out, complaints = screens(is_terminal=True)
    with status._Screen(StatusArguments("", is_watching=True, is_json=True)) as screen:
        screen.show(VIEW)
        screen.show(VIEW)
        screen.complain("cannot read")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert first.pop("time") <= second.pop("time")
    assert first == second == json.loads(msgspec.json.encode(VIEW))
    assert "cannot read" in complaints.getvalue()


def test_watching_on_a_terminal_leaves_the_last_picture_and_the_cursor(
    screens: Callable[..., tuple[io.StringIO, io.StringIO]],
) -> None:
    out, complaints = screens(is_terminal=True)
    with status._Screen(StatusArguments("", is_watching=True, is_json=False)) as screen:
        screen.show(VIEW)
        screen.complain("cannot read")
    text = out.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    assert text.rindex("cannot read") < text.rindex("step 120 of 400")
    assert complaints.getvalue() == ""
