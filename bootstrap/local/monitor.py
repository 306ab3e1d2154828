"""What a watcher of a swarm knows, from its events alone: owners, steps, losses, losses of peers.

Pure: events in, state out. The table and the summary (view.py) are drawn from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from understudy.protocol.ids import DRIVER_STAGE

EventLine = Mapping[str, Any]


@dataclass(slots=True)
class StageRow:
    """One stage as last heard of."""

    peer: str = ""
    incarnation: int = 0
    state: str = "waiting"
    step: int = 0


@dataclass(slots=True)
class Loss:
    """One stage that was lost, and how it came back. Times are unix seconds."""

    stage: int
    struck_at: float
    what: str
    step: int
    dead_at: float | None = None
    claimed_at: float | None = None
    returned_at: float | None = None
    """When the owner itself spoke again, before anybody took its place."""
    recovered: EventLine | None = None
    committed_at: float | None = None

    @property
    def standstill_s(self) -> float | None:
        return None if self.committed_at is None else self.committed_at - self.struck_at

    @property
    def parts(self) -> dict[str, float] | None:
        """Seconds of detect, claim, fetch, blend and rejoin; together the standstill."""
        if self.recovered is None or self.dead_at is None or self.claimed_at is None or self.committed_at is None:
            return None
        return {
            "detect": self.dead_at - self.struck_at,
            "claim": self.claimed_at - self.dead_at,
            "fetch": float(self.recovered["fetch_seconds"]),
            "blend": float(self.recovered["blend_seconds"]),
            "rejoin": self.committed_at - self.recovered["time"],
        }


@dataclass(slots=True)
class Board:
    """The state of a swarm."""

    stage_count: int
    total_steps: int
    rows: dict[int, StageRow] = field(default_factory=dict)
    spares: set[str] = field(default_factory=set)
    waiting_for: list[int] = field(default_factory=list)
    commits: dict[int, EventLine] = field(default_factory=dict)
    """The first step.committed of each step: a step that a new driver decides again is the same step."""
    losses: list[Loss] = field(default_factory=list)
    left: set[str] = field(default_factory=set)
    news: str = ""
    text_failure: str = ""
    """Why nobody drives: the last word of who could not read the run's text."""

    def __post_init__(self) -> None:
        self.rows = {stage: StageRow() for stage in range(self.stage_count)}

    @property
    def step(self) -> int:
        return max(self.commits, default=0)

    @property
    def missing_steps(self) -> list[int]:
        return [step for step in range(1, self.total_steps + 1) if step not in self.commits]

    def owner(self, stage: int) -> str:
        """The peer that served the stage last."""
        return self.rows[stage].peer

    def loss_of_steps(self, steps: range) -> float | None:
        """The mean loss of those of the steps that are committed and have a finite one."""
        losses = [self.commits[step]["loss"] for step in steps if step in self.commits]
        finite = [float(loss) for loss in losses if loss is not None]
        return fmean(finite) if finite else None

    @property
    def lossless_steps(self) -> list[int]:
        """Committed steps whose loss was not finite."""
        return sorted(step for step, commit in self.commits.items() if commit["loss"] is None)

    def struck(self, loss: Loss) -> None:
        """We made this happen ourselves."""
        self.losses.append(loss)
        self.rows[loss.stage].state = loss.what

    def resumed(self, stage: int) -> None:
        """We let it go on: unless somebody missed it meanwhile, it still serves."""
        row = self.rows[stage]
        if row.state == "paused":
            row.state = "serving"

    def note(self, event: EventLine) -> None:
        """Take an event into account; events of one peer come in order."""
        match event["event"]:
            case "peer.serving":
                self.spares.discard(event["peer"])
                self._serving(event)
            case "peer.spare":
                self.spares.add(event["peer"])
            case "peer.left":
                self.left.add(event["peer"])
                self.spares.discard(event["peer"])
            case "step.committed":
                self._committed(event)
            case "peer.dead":
                self._dead(event)
            case "peer.revived":
                self._revived(event)
            case "stage.claimed":
                self._claimed(event)
            case "stage.recovered":
                self._recovered(event)
            case "text.failed":
                self._text_failed(event)
            case "swarm.waiting":
                self.waiting_for = list(event["stages"])
            case "swarm.complete":
                self.waiting_for = []

    def _serving(self, event: EventLine) -> None:
        row = self.rows[event["stage"]]
        if event["incarnation"] >= row.incarnation:
            self.rows[event["stage"]] = StageRow(event["peer"], event["incarnation"], "serving", event["step"])
            self.text_failure = "" if event["stage"] == DRIVER_STAGE else self.text_failure

    def _text_failed(self, event: EventLine) -> None:
        """Who drives gives S0 up with it; of a spare it matters while nobody drives."""
        row = self.rows[DRIVER_STAGE]
        if event.get("stage") == DRIVER_STAGE and event["incarnation"] == row.incarnation:
            row.state = "given up"
        if row.state != "serving":
            self.text_failure = event["reason"]

    def _committed(self, event: EventLine) -> None:
        self.commits.setdefault(event["step"], event)
        for row in self.rows.values():
            if row.state == "serving":
                row.step = max(row.step, event["step"])
        for loss in self.losses:
            ended_at = loss.recovered["time"] if loss.recovered is not None else loss.returned_at
            if ended_at is not None and loss.committed_at is None and event["time"] > ended_at:
                loss.committed_at = event["time"]

    def _open_loss(self, stage: int) -> Loss | None:
        return next((loss for loss in self.losses if loss.stage == stage and loss.recovered is None), None)

    def _dead(self, event: EventLine) -> None:
        row = self.rows[event["stage"]]
        if row.peer == event["peer"] and row.incarnation == event["incarnation"]:
            row.state = "dead"
        loss = self._open_loss(event["stage"])
        if loss is not None and loss.dead_at is None:
            loss.dead_at = event["time"]
            self.news = f"S{event['stage']} is gone"

    def _revived(self, event: EventLine) -> None:
        row = self.rows[event["stage"]]
        if row.peer == event["peer"] and row.incarnation == event["incarnation"]:
            row.state = "serving"
        loss = self._open_loss(event["stage"])
        if loss is not None and loss.returned_at is None:
            loss.returned_at = event["time"]

    def _claimed(self, event: EventLine) -> None:
        self.rows[event["stage"]].state = "recovering"
        loss = self._open_loss(event["stage"])
        if loss is not None:
            loss.claimed_at = event["time"]
            self.news = f"a spare claims S{event['stage']}"

    def _recovered(self, event: EventLine) -> None:
        loss = self._open_loss(event["stage"])
        if loss is not None:
            loss.recovered = event
        self.news = f"S{event['stage']} recovered: {event['method']}, {event['reason']}"
