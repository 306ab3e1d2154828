"""How a node looks to whoever sits in front of it: a small picture on a terminal, one line elsewhere."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from understudy.node.ui.history import StatusSample
from understudy.protocol.observe.losses import loss_words
from understudy.protocol.observe.node_status import Neighbour
from understudy.protocol.printable import printable

_HEARING_STYLES = {"answers": "green", "recovering": "yellow", "silent": "bold yellow"}

_REACH = {
    "public": "public: others dial this machine",
    "punchable": "punchable: behind a router that lets neighbours punch through",
    "relayed": "relayed: traffic goes through peers, as the router lets nobody through",
}


def node_panel(sample: StatusSample) -> Table:
    """Who and why, how far and how fast, who is beside us, what was recovered last."""
    panel = Table.grid(padding=(0, 2))
    panel.add_column(style="dim", no_wrap=True)
    panel.add_column(overflow="fold")
    panel.add_row("node", f"..{sample.view.peer[-8:]} of {sample.view.run_id}")
    panel.add_row("stage", _standing(sample))
    panel.add_row("progress", _progress(sample))
    if sample.view.reachability != "unknown":
        panel.add_row("reach", _REACH[sample.view.reachability])
    panel.add_row("traffic", f"{amount(sample.bytes_in)} in, {amount(sample.bytes_out)} out")
    if sample.view.neighbours:
        panel.add_row("neighbours", _neighbours(sample.view.neighbours))
    if sample.view.missing:
        names = ", ".join(f"S{stage}" for stage in sample.view.missing)
        panel.add_row("waits for", Text(f"an owner of {names}", style="bold yellow"))
    for stage, reason in sample.view.unreached:
        panel.add_row("no way to", Text(f"the owner of S{stage}: {printable(reason)}", style="bold yellow"))
    panel.add_row("recovery", sample.last_recovery or "none so far")
    return panel


def _standing(sample: StatusSample) -> Text:
    view = sample.view
    match view.role:
        case "owner":
            return Text(f"S{view.stage}, incarnation {view.incarnation} ({printable(sample.why)})", style="bold")
        case "claimant":
            return Text(f"claims S{view.stage}: {printable(view.doing)}", style="bold yellow")
        case "gone":
            return Text("saying goodbye", style="bold")
        case "spare":
            return Text(f"none, a spare ({printable(view.doing or sample.why)})", style="bold")


def _progress(sample: StatusSample) -> str:
    view = sample.view
    told = [f"step {view.step}" + (f" of {view.total_steps}" if view.total_steps else "")]
    if loss := loss_words(view.loss, view.why_no_loss):
        told.append(loss)
    if sample.microbatches_per_minute is not None and view.role == "owner":
        told.append(f"{sample.microbatches_per_minute:.0f} microbatches/min")
    return ", ".join(told)


def _neighbours(neighbours: tuple[Neighbour, ...]) -> Text:
    text = Text()
    for number, neighbour in enumerate(neighbours):
        text.append("   " if number else "")
        text.append(f"S{neighbour.stage} ")
        text.append(neighbour.hearing, style=_HEARING_STYLES.get(neighbour.hearing, "bold red"))
        if neighbour.hearing == "silent":
            text.append(f" for {neighbour.silence_s:.0f} s")
    return text


def status_line(sample: StatusSample) -> str:
    """The same as key=value, for a log."""
    view = sample.view
    told: dict[str, object] = {"role": view.role}
    if view.stage is not None:
        told |= {"stage": view.stage, "incarnation": view.incarnation}
    told["step"] = view.step
    if view.loss is not None:
        told["loss"] = f"{view.loss:.4g}"
    elif view.why_no_loss:
        told["loss"] = f"not finite: {view.why_no_loss!r}"
    if sample.microbatches_per_minute is not None:
        told["microbatches_per_minute"] = f"{sample.microbatches_per_minute:.0f}"
    told |= {"bytes_in": sample.bytes_in, "bytes_out": sample.bytes_out}
    if view.neighbours:
        told["neighbours"] = ",".join(f"S{one.stage}:{one.hearing}" for one in view.neighbours)
    if view.reachability != "unknown":
        told["reach"] = view.reachability
    if view.unreached:
        told["no_way_to"] = ",".join(f"S{stage}" for stage, _ in view.unreached)
    if view.missing:
        told["missing"] = ",".join(f"S{stage}" for stage in view.missing)
    return " ".join(f"{key}={value}" for key, value in told.items())


def amount(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
