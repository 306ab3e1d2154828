"""What a change of the view means for our own stage or claim: declared here, decided by protocol/recovery."""

from __future__ import annotations

from typing import Protocol

from understudy.protocol.wire.records import ProgressRecord, SpareRecord, StageRecord


class Consequences(Protocol):
    """Told of what membership found out. The life of the node (`recovery.lifecycle.Lifecycle`) implements it."""

    def lose(self, reason: str) -> None:
        """Our tenure or claim is over: somebody else holds the stage."""

    def recall(self, record: StageRecord) -> None:
        """A record of ours that this process did not write: of a tenure from before it began."""

    # --- other stages ---

    def owner_changed(self, stage: int) -> None:
        """A new owner serves another stage."""

    def owner_revived(self, stage: int) -> None:
        """The owner of another stage was taken for dead, and speaks again."""

    def seat_changed(self, stage: int) -> None:
        """Somebody's tenure of the stage began, ended or moved on. Comes after each of the two above as well."""

    # --- what was read ---

    def note_spares(self, records: list[SpareRecord]) -> None:
        """These are all that wait."""

    def note_read(self, key: str) -> None:
        """All that is stored under the key is known now."""

    def look_for_work(self) -> None:
        """We have no stage, and know more than before: is there one for us?"""

    # --- the end of the run ---

    @property
    def is_alone(self) -> bool:
        """We drive, but no stage is there to be driven."""

    def take_over_end(self, end: ProgressRecord) -> None:
        """A driver decided the last step; perhaps it was the one before us."""

    def is_beaten_to(self, end: ProgressRecord) -> bool:
        """Another driver decided the last step, and no word that may still be on its way will bring us there."""

    def end_run(self, *, is_doubtful: bool = False) -> None:
        """The last step is committed and the driver is gone. ``is_doubtful``: somebody claimed S0 since."""
