"""What must hold of standby copies: parts of S0 of one commit, and a stage comes back from its copy while one lives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tests.sim.node import SimNode, Snapshot, Violation
from understudy.protocol.ids import DRIVER_STAGE
from understudy.protocol.manifest import RunManifest
from understudy.protocol.standby.holders import DRIVER_PARTS

Commit = tuple[int, int]
"""Incarnation of S0, step."""
WHOLE = "embedding and head as of step"


class StandbyJudge:
    """Follows what owners report of their copies."""

    def __init__(self) -> None:
        self._kept: dict[SimNode, dict[str, set[Commit]]] = defaultdict(lambda: defaultdict(set))
        self._parts: dict[Commit, set[str]] = defaultdict(set)

    def check_copied(self, fields: Mapping[str, Any], holder: SimNode) -> None:
        """Before a part of S0 is copied again, the other part of the same commit is kept as well."""
        part, commit = fields["part"], (fields["incarnation"], fields["copied_step"])
        if part not in DRIVER_PARTS:
            return
        self._parts[commit].add(part)
        lonely = [
            earlier
            for earlier, parts in self._parts.items()
            if earlier[0] == commit[0] and earlier < commit and parts == {part}
        ]
        if lonely:
            raise Violation(f"S0 copied its {part} as of {commit}, but of {lonely} the {part} alone is kept")
        self._kept[holder][part].add(commit)

    def check_recovered(self, fields: Mapping[str, Any], witnesses: Sequence[SimNode]) -> None:
        """A witness that has both parts of one commit is enough."""
        for witness in witnesses:
            kept = self._kept.get(witness, {})
            if len(kept) > 1 and set.intersection(*kept.values()) and not fields["reason"].startswith(WHOLE):
                raise Violation(f"S0 came back with {fields['reason']!r}, but {witness.peer} keeps {kept}")


def check_parts(fields: Mapping[str, Any], copies: Sequence[Snapshot]) -> None:
    """S0 is rebuilt from copies of S0, and if it says so from copies of one commit."""
    if fields["stage"] != DRIVER_STAGE or any(copy.stage != DRIVER_STAGE for copy in copies):
        raise Violation(f"these are no copies of S0: {fields}, {copies}")
    weights = {copy.weights for copy in copies}
    if not copies or (fields["reason"].startswith(WHOLE) and (len(copies) != 2 or len(weights) != 1)):
        raise Violation(f"S0 was rebuilt from {copies}, but says {fields['reason']}")


def check_copy(fields: Mapping[str, Any], copies: Sequence[Snapshot], manifest: RunManifest) -> None:
    """A block stage comes back from one copy of itself, as of a step that was, and not too long ago."""
    if [copy.stage for copy in copies] != [fields["stage"]]:
        raise Violation(f"S{fields['stage']} came back from {copies}, which are not a copy of it")
    age = fields["step"] - copies[0].step
    if not 0 <= age <= manifest.recovery.standby_age_max:
        raise Violation(f"S{fields['stage']} came back at {fields['step']} from a copy as of {copies[0].step}")


def check_used(fields: Mapping[str, Any], node: SimNode, manifest: RunManifest) -> None:
    """Who holds a copy that is young enough takes no other weights."""
    for copy in node.kept.values():
        is_young = 0 <= fields["step"] - copy.step <= manifest.recovery.standby_age_max
        if copy.stage == fields["stage"] != DRIVER_STAGE and is_young and fields["step"] > 0:
            raise Violation(f"{node.peer} has {copy} and took {fields['method']}: {fields['reason']}")
