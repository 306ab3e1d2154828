"""How any swarm looks by its records, drawn as a table or told in a line; a local swarm's table looks the same."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from understudy.protocol.observe.losses import loss_words
from understudy.protocol.observe.swarm_status import StageView, SwarmView
from understudy.protocol.wire.contact import is_private

_STATE_STYLES = {"serving": "green", "recovering": "yellow", "waiting": "dim", "unowned": "dim"}
SPARES_NAMED_MAX = 8


def status_view(view: SwarmView) -> Group:
    """A swarm by its records: stages and their owners, how far it is, who waits, what it waits for."""
    table = stage_table(view.run_id, "last word")
    for stage in view.stages:
        table.add_row(*_stage_cells(stage))
    spares = [f"..{spare.peer[-8:]} ({spare.capacity:g})" for spare in view.spares[:SPARES_NAMED_MAX]]
    more = len(view.spares) - len(spares)
    lines = [
        Text(f"{view.state}: {_progress_of(view)}"),
        Text(f"spares: {', '.join(spares) or 'none'}{f' and {more} more' if more else ''}"),
    ]
    if any(stage.copied for stage in view.stages):
        lines.append(Text(f"copies, steps old: {', '.join(map(_copy_of, view.stages))}"))
    behind = [f"S{stage.stage} ({stage.reachability})" for stage in view.stages if is_private(stage.reachability)]
    if behind:
        lines.append(Text(f"behind routers: {', '.join(behind)}"))
    if view.waits_for:
        lines.append(Text(f"waits for {view.waits_for}", style="bold yellow"))
    return Group(table, *lines)


def _stage_cells(stage: StageView) -> tuple[str | Text, ...]:
    owner = stage.peer[-8:] if stage.peer else ""
    age = "" if stage.record_age_s is None else f"{stage.record_age_s:.0f} s ago"
    return f"S{stage.stage}", owner, str(stage.incarnation or ""), state_text(stage.state), str(stage.step), age


def _copy_of(stage: StageView) -> str:
    """How old the copy of a stage is that it would come back from."""
    return f"S{stage.stage} {max(0, stage.step - stage.copied)}" if stage.copied else f"S{stage.stage} none"


def status_line(view: SwarmView) -> str:
    """The same in one line, without who is who."""
    line = f"{view.state}: {_progress_of(view)}, spares: {len(view.spares)}"
    return f"{line}, waits for {view.waits_for}" if view.waits_for else line


def _progress_of(view: SwarmView) -> str:
    told = [f"step {view.step}" + (f" of {view.total_steps}" if view.total_steps else "")]
    if loss := loss_words(view.loss, view.why_no_loss):
        told.append(loss)
    if view.tokens_per_second:
        told.append(f"{view.tokens_per_second:,.0f} tokens/s")
    if view.tokens:
        told.append(f"{view.tokens:,} tokens")
    return ", ".join(told)


def stage_table(title: str, *more_columns: str) -> Table:
    """An empty table of stages, a row of which begins with stage, owner, incarnation, state and step."""
    table = Table(title=title, title_justify="left", expand=False)
    for column in ("stage", "owner", "incarnation", "state", "step", *more_columns):
        is_text = column in ("stage", "owner", "state")
        table.add_column(
            column, justify="left" if is_text else "right", no_wrap=True, min_width=10 if column == "state" else None
        )
    return table


def state_text(state: str) -> Text:
    """A stage's state in its colour."""
    return Text(state, style=_STATE_STYLES.get(state, "bold red"))
