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

    def note_end(self, end: ProgressRecord) -> None:
        """Somebody says that the last step is committed."""

    def driver_left(self) -> None:
        """The driver said goodbye with the last step committed."""
