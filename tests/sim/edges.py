"""What must hold of the copies of S0's weights: parts of one commit, and S0 comes back exactly while a keeper lives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tests.sim.node import SimNode, Violation
from understudy.protocol.ids import DRIVER_STAGE, PeerId

Commit = tuple[int, int]
"""Incarnation of S0, step."""
Keeper = tuple[int, int, PeerId]
"""Stage, incarnation, peer."""


class EdgeJudge:
    """Follows what S0 reports of its copies."""

    def __init__(self) -> None:
        self._kept: dict[Keeper, dict[str, set[Commit]]] = defaultdict(lambda: defaultdict(set))
        self._parts: dict[Commit, set[str]] = defaultdict(set)

    def check_copied(self, fields: Mapping[str, Any], keeper: SimNode | None) -> None:
        """Before a part is copied again, the other part of the same commit is kept as well."""
        part, commit = fields["part"], (fields["incarnation"], fields["step"])
        self._parts[commit].add(part)
        lonely = [
            earlier
            for earlier, parts in self._parts.items()
            if earlier[0] == commit[0] and earlier < commit and parts == {part}
        ]
        if lonely:
            raise Violation(f"S0 copied its {part} as of {commit}, but of {lonely} the {part} alone is kept")
        if keeper is not None:
            self._kept[_name(keeper)][part].add(commit)

    def check_recovered(self, fields: Mapping[str, Any], witnesses: Sequence[SimNode]) -> None:
        """A witness that has both parts of one commit is enough."""
        for witness in witnesses:
            kept = self._kept.get(_name(witness), {})
            if len(kept) > 1 and set.intersection(*kept.values()) and "exactly" not in fields["reason"]:
                raise Violation(f"S0 came back with {fields['reason']!r}, but {witness.peer} keeps {kept}")


def _name(node: SimNode) -> Keeper:
    state = node.core.state
    return (state.stage, state.incarnation, state.me) if state.tenure is not None else (DRIVER_STAGE, 0, state.me)
