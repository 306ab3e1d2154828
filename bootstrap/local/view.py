"""How a local swarm looks on a terminal: a live table, a line where there is none, the summary."""

from __future__ import annotations

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.text import Text

from understudy.bootstrap.local.monitor import Board, EventLine, Loss
from understudy.bootstrap.swarm_view import stage_table, state_text
from understudy.protocol.observe.losses import loss_words
from understudy.protocol.printable import printable


def live_view(board: Board) -> Group:
    """Stages, owners, state, step; below it the run's progress and the last news."""
    table = stage_table("Understudy")
    for stage, row in board.rows.items():
        table.add_row(f"S{stage}", row.peer[-8:], str(row.incarnation or ""), state_text(row.state), str(row.step))
    return Group(table, *_footer(board))


def _footer(board: Board) -> list[Text | ProgressBar]:
    last = board.commits.get(board.step)
    speed = f"{last['tokens'] / last['seconds']:,.0f} tokens/s" if last and last["seconds"] else "starting"
    loss = _loss_text(last) if last else "loss -"
    line = Text(f"step {board.step}/{board.total_steps}   {loss}   {speed}   spares waiting: {len(board.spares)}")
    footer: list[Text | ProgressBar] = [
        line,
        ProgressBar(total=max(1, board.total_steps), completed=board.step, width=60),
    ]
    if board.text_failure:
        footer.append(
            Text(f"S0 waits for somebody who can read the text: {printable(board.text_failure)}", style="bold yellow")
        )
    elif board.waiting_for and board.commits:
        stages = ", ".join(f"S{stage}" for stage in board.waiting_for)
        footer.append(Text(f"the swarm waits for an owner of {stages}", style="bold yellow"))
    elif board.news:
        footer.append(Text(printable(board.news), style="cyan"))
    return footer


def _loss_text(commit: EventLine) -> str:
    return loss_words(commit["loss"], commit.get("why_no_loss", "")) or "loss not finite"


def progress_line(board: Board) -> str:
    """One line for where there is no terminal."""
    last = board.commits.get(board.step)
    if last is None:
        serving = sum(row.state == "serving" for row in board.rows.values())
        return f"starting: {serving} of {board.stage_count} stages are served"
    speed = last["tokens"] / last["seconds"] if last["seconds"] else 0.0
    line = f"step {board.step}/{board.total_steps}  {_loss_text(last)}  {speed:,.0f} tokens/s"
    if board.text_failure:
        line += f"  S0 waits for somebody who can read the text: {printable(board.text_failure)}"
    elif board.waiting_for:
        line += "  waiting for an owner of " + ", ".join(f"S{stage}" for stage in board.waiting_for)
    return line


def summary(board: Board) -> list[str]:
    """What was lost, how long the swarm stood still, the loss before and after, and whether all is committed."""
    lines = []
    for loss in board.losses:
        lines += _loss_lines(board, loss)
    first, last = board.loss_of_steps(range(1, 6)), board.loss_of_steps(range(board.step - 4, board.step + 1))
    if first is not None and last is not None:
        lines.append(f"Loss: {first:.3f} over the first five steps, {last:.3f} over the last five.")
    if board.lossless_steps:
        lines.append(
            f"The loss of {len(board.lossless_steps)} steps was not finite, first in step {board.lossless_steps[0]}."
        )
    missing = board.missing_steps
    if missing:
        lines.append(f"{len(board.commits)} of {board.total_steps} steps were committed; step {missing[0]} was not.")
    else:
        lines.append(f"Every step from 1 to {board.total_steps} was committed.")
    return lines


def _loss_lines(board: Board, loss: Loss) -> list[str]:
    head = f"S{loss.stage} was {loss.what} after step {loss.step}"
    if loss.recovered is None and loss.returned_at is not None:
        return [f"{head}; it came back by itself {loss.returned_at - loss.struck_at:.1f} s later."]
    if loss.recovered is None:
        what = "nobody noticed" if loss.dead_at is None else "its stage was not recovered"
        return [f"{head}: {what}."]
    if loss.standstill_s is None or loss.parts is None:
        return [f"{head}; recovered by {loss.recovered['method']}."]
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in loss.parts.items())
    before, after = (board.loss_of_steps(range(step, step + 1)) for step in (loss.step, loss.step + 1))
    lines = [
        f"{head}; recovered by {loss.recovered['method']} ({loss.recovered['reason']}).",
        f"  The swarm stood still for {loss.standstill_s:.2f} s ({parts}).",
    ]
    if before is not None and after is not None:
        lines.append(f"  Loss before {before:.3f}, after {after:.3f}.")
    return lines
