"""What happened to this node that a person wants to see beside its state: why, how fast, the last recovery.

Pure: events, views and the time in, words out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from understudy.protocol.observe.node_status import SelfView

if TYPE_CHECKING:
    from understudy.node.links.metering import Counters

RATE_OVER_S = 60.0
"""Microbatches per minute are counted over this long."""


@dataclass(frozen=True, slots=True)
class StatusSample:
    """One look at the node."""

    view: SelfView
    why: str
    microbatches_per_minute: float | None
    """None until there is something to compare with."""
    bytes_in: int
    bytes_out: int
    last_recovery: str
    """Empty if there was none."""


class History:
    """Remembers between two looks."""

    def __init__(self) -> None:
        self._why = "looking around"
        self._recovery = ""
        self._recovered_at = 0.0
        self._lost: dict[int, tuple[float, int]] = {}
        """Neighbour stages that were declared dead: when, and under which incarnation."""
        self._counts: deque[tuple[float, int]] = deque()

    def note(self, name: str, fields: Mapping[str, Any], now: float) -> None:
        """An event that this node wrote."""
        match name:
            case "peer.serving":
                self._why = fields["why"]
            case "peer.spare":
                self._why = "nothing needs an owner"
            case "peer.retired" | "claim.withdrawn":
                self._why = fields["reason"]
            case "stage.claimed":
                self._why = fields["why"]
            case "stage.recovered":
                self._recover(f"S{fields['stage']} here {_origin(fields)}, {fields['seconds']:.1f} s", now)
            case "peer.dead":
                self._lost[fields["stage"]] = (now, fields["incarnation"])

    def sample(self, view: SelfView, counters: Counters, now: float) -> StatusSample:
        """Look at the node, and remember what the next look is compared with."""
        self._note_replacements(view, now)
        ago = f" ({duration(now - self._recovered_at)} ago)" if self._recovery else ""
        return StatusSample(
            view=view,
            why=self._why,
            microbatches_per_minute=self._rate(counters.microbatches, now),
            bytes_in=counters.bytes_in,
            bytes_out=counters.bytes_out,
            last_recovery=self._recovery + ago,
        )

    def _note_replacements(self, view: SelfView, now: float) -> None:
        """A stage that was dead answers: its owner came back, or another took it."""
        for neighbour in view.neighbours:
            lost_at, incarnation = self._lost.get(neighbour.stage, (now, -1))
            if incarnation < 0 or neighbour.hearing not in ("answers", "silent"):
                continue
            del self._lost[neighbour.stage]
            owner = f"..{neighbour.peer[-8:]}" if neighbour.peer else "its owner"
            what = f"{owner} took it over" if neighbour.incarnation > incarnation else "its owner came back"
            self._recover(f"S{neighbour.stage} was lost, {what} after {duration(now - lost_at)}", now)

    def _recover(self, what: str, now: float) -> None:
        self._recovery, self._recovered_at = what, now

    def _rate(self, count: int, now: float) -> float | None:
        self._counts.append((now, count))
        while len(self._counts) > 2 and self._counts[1][0] <= now - RATE_OVER_S:
            self._counts.popleft()
        began, before = self._counts[0]
        return (count - before) / (now - began) * 60 if now > began else None


def duration(seconds: float) -> str:
    """As people say it: 4 s, 12 min, 3 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


def _origin(recovered: Mapping[str, Any]) -> str:
    """What a stage was rebuilt from, in words."""
    if recovered["method"] == "standby":
        return f"from {recovered['reason']}"
    sources = " and ".join(f"S{stage}" for stage in recovered["donors"])
    return f"by {recovered['method']}" + (f" from {sources}" if sources else "")
