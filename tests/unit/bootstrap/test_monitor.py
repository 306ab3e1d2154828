"""What a watcher makes of the events of a swarm, and what a person reads of it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from understudy.bootstrap.local.monitor import Board, Loss
from understudy.bootstrap.local.view import live_view, progress_line, summary

STAGES = 3


def serving(stage: int, peer: str, incarnation: int = 1, step: int = 0) -> dict[str, Any]:
    return event("peer.serving", peer=peer, stage=stage, incarnation=incarnation, step=step)


def event(name: str, time: float = 0.0, **fields: Any) -> dict[str, Any]:
    return {"event": name, "time": time, **fields}


def commit(step: int, time: float = 0.0, loss: float | None = 1.0) -> dict[str, Any]:
    return event("step.committed", time, step=step, loss=loss, tokens=100, seconds=0.5, peer="P0")


@pytest.fixture
def board() -> Board:
    """Every stage is served, a spare waits, step 4 is committed."""
    found = Board(STAGES, 10)
    for stage in range(STAGES):
        found.note(serving(stage, f"P{stage}"))
    found.note(event("peer.spare", peer="S"))
    for step in range(1, 5):
        found.note(commit(step, time=float(step), loss=5.0 - step))
    return found


def lose(board: Board, stage: int = 1, at: float = 10.0) -> None:
    board.struck(Loss(stage, at, "killed", board.step))


def recover(board: Board, stage: int = 1) -> None:
    """Dead at 11, claimed at 13, recovered at 16, the next commit at 20."""
    board.note(event("peer.dead", 11.0, peer=f"P{stage}", stage=stage, incarnation=1))
    board.note(event("stage.claimed", 13.0, peer="S", stage=stage, incarnation=2))
    fields = {"method": "checkfree", "reason": "as planned", "fetch_seconds": 2.0, "blend_seconds": 1.0}
    board.note(event("stage.recovered", 16.0, peer="S", stage=stage, incarnation=2, **fields))
    board.note(serving(stage, "S", 2, step=4))
    board.note(commit(5, time=20.0, loss=1.5))


def test_owners_and_steps_are_as_last_heard(board: Board) -> None:
    assert [board.owner(stage) for stage in range(STAGES)] == ["P0", "P1", "P2"]
    assert [row.step for row in board.rows.values()] == [4, 4, 4]
    assert board.step == 4
    assert board.spares == {"S"}
    assert board.missing_steps == [5, 6, 7, 8, 9, 10]


def test_an_outdated_owner_does_not_come_back(board: Board) -> None:
    board.note(serving(1, "new", incarnation=3))
    board.note(serving(1, "P1", incarnation=2))
    assert (board.rows[1].peer, board.rows[1].incarnation) == ("new", 3)
    board.note(event("peer.dead", peer="P1", stage=1, incarnation=2))
    assert board.rows[1].state == "serving"


def test_a_spare_that_serves_or_leaves_waits_no_more(board: Board) -> None:
    board.note(serving(1, "S", 2))
    assert board.spares == set()
    board.note(event("peer.spare", peer="T"))
    board.note(event("peer.left", peer="T"))
    assert (board.spares, board.left) == (set(), {"T"})


def test_a_step_that_is_decided_again_is_the_same_step(board: Board) -> None:
    board.note(commit(4, loss=99.0))
    assert board.commits[4]["loss"] == 1.0
    assert board.step == 4


def test_a_gap_in_the_steps_is_missing(board: Board) -> None:
    board.note(commit(6))
    assert board.missing_steps == [5, 7, 8, 9, 10]


def test_losses_of_steps_are_averaged_over_those_there_are(board: Board) -> None:
    assert board.loss_of_steps(range(1, 3)) == 3.5
    assert board.loss_of_steps(range(4, 9)) == 1.0
    assert board.loss_of_steps(range(7, 9)) is None


def test_the_parts_of_a_standstill_add_up_to_it(board: Board) -> None:
    lose(board)
    assert board.rows[1].state == "killed"
    recover(board)
    (loss,) = board.losses
    assert loss.standstill_s == 10.0
    assert loss.parts == {"detect": 1.0, "claim": 2.0, "fetch": 2.0, "blend": 1.0, "rejoin": 4.0}
    assert sum(loss.parts.values()) == loss.standstill_s
    assert (board.owner(1), board.rows[1].state) == ("S", "serving")


def test_states_follow_the_events_of_a_recovery(board: Board) -> None:
    lose(board)
    board.note(event("peer.dead", 11.0, peer="P1", stage=1, incarnation=1))
    assert board.rows[1].state == "dead"
    board.note(event("peer.dead", 12.0, peer="P1", stage=1, incarnation=1))
    board.note(event("stage.claimed", 13.0, peer="S", stage=1, incarnation=2))
    assert board.rows[1].state == "recovering"
    assert board.losses[0].dead_at == 11.0  # the first who noticed
    assert board.losses[0].parts is None
    assert board.losses[0].standstill_s is None


def test_a_commit_of_before_the_recovery_does_not_end_the_standstill(board: Board) -> None:
    lose(board)
    board.note(event("peer.dead", 11.0, peer="P1", stage=1, incarnation=1))
    board.note(event("stage.recovered", 16.0, stage=1, method="copy", reason="r", fetch_seconds=0, blend_seconds=0))
    board.note(commit(5, time=9.0))
    assert board.losses[0].committed_at is None


def test_two_losses_of_a_stage_are_told_apart(board: Board) -> None:
    lose(board)
    recover(board)
    board.struck(Loss(1, 30.0, "killed", 5))
    board.note(event("peer.dead", 31.0, peer="S", stage=1, incarnation=2))
    assert (board.losses[0].dead_at, board.losses[1].dead_at) == (11.0, 31.0)
    assert board.losses[1].recovered is None


def test_a_short_pause_that_nobody_noticed_leaves_an_owner(board: Board) -> None:
    board.struck(Loss(1, 10.0, "paused", 4))
    assert board.rows[1].state == "paused"
    board.resumed(1)
    assert board.rows[1].state == "serving"
    assert "S1 was paused after step 4: nobody noticed." in summary(board)


def test_a_pause_that_cost_the_stage_is_not_undone_by_its_end(board: Board) -> None:
    board.struck(Loss(1, 10.0, "paused", 4))
    board.note(event("peer.dead", 11.0, peer="P1", stage=1, incarnation=1))
    board.resumed(1)
    assert board.rows[1].state == "dead"


def test_an_owner_that_was_believed_dead_and_spoke_again_serves(board: Board) -> None:
    board.struck(Loss(1, 10.0, "paused", 4))
    board.note(event("peer.dead", 14.0, peer="P1", stage=1, incarnation=1))
    board.note(event("peer.revived", 15.0, peer="P1", stage=1, incarnation=1))
    assert board.rows[1].state == "serving"
    assert "S1 was paused after step 4; it came back by itself 5.0 s later." in summary(board)


def test_the_summary_says_what_was_lost_and_what_it_cost(board: Board) -> None:
    lose(board)
    recover(board)
    for step in range(6, 11):
        board.note(commit(step, loss=0.5))
    assert summary(board) == [
        "S1 was killed after step 4; recovered by checkfree (as planned).",
        "  The swarm stood still for 10.00 s (detect 1.00, claim 2.00, fetch 2.00, blend 1.00, rejoin 4.00).",
        "  Loss before 1.000, after 1.500.",
        "Loss: 2.300 over the first five steps, 0.500 over the last five.",
        "Every step from 1 to 10 was committed.",
    ]


def test_the_summary_says_what_is_missing(board: Board) -> None:
    lose(board)
    board.note(event("peer.dead", 11.0, peer="P1", stage=1, incarnation=1))
    assert "S1 was killed after step 4: its stage was not recovered." in summary(board)
    assert summary(board)[-1] == "4 of 10 steps were committed; step 5 was not."


def test_the_line_without_a_terminal(board: Board) -> None:
    assert progress_line(Board(STAGES, 10)) == "starting: 0 of 3 stages are served"
    assert progress_line(board) == "step 4/10  loss 1.000  200 tokens/s"
    board.note(event("swarm.waiting", stages=[1, 2]))
    assert progress_line(board).endswith("waiting for an owner of S1, S2")
    board.note(event("swarm.complete"))
    assert progress_line(board) == "step 4/10  loss 1.000  200 tokens/s"


def test_the_table_shows_every_stage(board: Board) -> None:
    lose(board)
    screen = io.StringIO()
    Console(width=100, file=screen).print(live_view(board))
    text = screen.getvalue()
    for shown in ("S0", "S1", "S2", "killed", "step 4/10", "loss 1.000", "spares waiting: 1"):
        assert shown in text


def test_a_loss_that_is_not_finite_is_no_number_and_is_told(board: Board) -> None:
    board.note({**commit(5, loss=None), "why_no_loss": "what S4 sent to S0 was not finite"})
    assert "loss not finite: what S4 sent to S0 was not finite" in progress_line(board)
    assert board.loss_of_steps(range(1, 6)) == 2.5
    assert "The loss of 1 steps was not finite, first in step 5." in summary(board)


def test_a_text_that_nobody_can_read_is_said_until_somebody_drives(board: Board) -> None:
    board.note(event("text.failed", peer="S", step=5, reason="row 7 of a.jsonl"))
    assert board.text_failure == "", "S0 is served: a spare that cannot read the text matters to nobody"
    board.note(event("text.failed", peer="P0", stage=0, incarnation=1, step=5, reason="no line"))
    assert board.rows[0].state == "given up"
    board.note(event("text.failed", peer="S", step=5, reason="row 7 of a.jsonl"))
    words = "S0 waits for somebody who can read the text: row 7 of a.jsonl"
    assert progress_line(board).endswith(words)
    screen = Console(file=io.StringIO(), width=120)
    screen.print(live_view(board))
    assert words in screen.file.getvalue()  # type: ignore[attr-defined]
    board.note(serving(0, "S", 2, step=4))
    assert "text" not in progress_line(board)
