"""Which tenures may take a stage from its owner, as one node knows.

Once a stage was trained it changes hands by proof alone (proofs.py): to a tenure that we knew to serve, or one whose
votes we have seen. Before that nothing is at stake: whoever is there first is believed, and who comes after it only
when it is gone, or by the first one itself.
"""

from __future__ import annotations

from understudy.protocol.ids import PeerId, Tenure

TENURES_REMEMBERED = 8
"""Of each stage: more than a split makes."""


class Titles:
    """What is remembered of the tenures of a run."""

    def __init__(self) -> None:
        self._served: dict[int, list[Tenure]] = {}
        self._proven: dict[int, list[Tenure]] = {}
        self._trained: set[int] = set()
        self._ahead: dict[int, tuple[Tenure, int, float]] = {}
        """Of each stage, the last owner of before who said that it is ahead of who has it now: its step, and when."""
        self.is_run_trained = False
        """Somebody committed a step of the run."""

    def note_served(self, tenure: Tenure) -> None:
        """We took it for the owner."""
        _remember(self._served, tenure)

    def note_proven(self, tenure: Tenure) -> None:
        """Its votes are enough, or one of them is ours."""
        _remember(self._proven, tenure)

    def note_trained(self, stage: int) -> None:
        """Somebody committed a step of the stage."""
        self._trained.add(stage)
        self.is_run_trained = True

    def note_ahead(self, tenure: Tenure, step: int, now: float) -> None:
        """An owner of before says that it went on, after a split."""
        self._ahead[tenure.stage] = (tenure, step, now)

    def is_credibly_ahead(self, tenure: Tenure, step: int, since: float) -> bool:
        """Whether another one, of another stage, says that it came further than this step, too."""
        said = [word for stage, word in self._ahead.items() if stage != tenure.stage]
        return any(other.peer != tenure.peer and at > step and when >= since for other, at, when in said)

    def is_trained(self, stage: int) -> bool:
        return stage in self._trained

    def is_known(self, stage: int) -> bool:
        """Whether we knew anybody to serve it."""
        return stage in self._served

    def has_served(self, tenure: Tenure) -> bool:
        """Whether we knew it to serve."""
        return tenure in self._served.get(tenure.stage, ())

    def is_owners(self, peer: PeerId) -> bool:
        """Whether we knew it to serve any stage."""
        return any(tenure.peer == peer for tenures in self._served.values() for tenure in tenures)

    def is_proven(self, tenure: Tenure) -> bool:
        """Whether it may have the seat, whoever has it now."""
        return self.has_served(tenure) or tenure in self._proven.get(tenure.stage, ())


def _remember(known: dict[int, list[Tenure]], tenure: Tenure) -> None:
    tenures = known.setdefault(tenure.stage, [])
    if tenure not in tenures:
        tenures.append(tenure)
        del tenures[:-TENURES_REMEMBERED]
