"""What was measured: one JSON file per scenario."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.keeping import keep, read_kept
from benchmarks.origin import Origin
from understudy.protocol.manifest import RunManifest

PARTS = ("detect", "claim", "fetch", "blend", "rejoin")


class Recovered(msgspec.Struct, frozen=True):
    """One recovery. Seconds."""

    parts: dict[str, float]
    total_s: float
    """From SIGKILL to the first commit after the recovery."""
    step_s: float
    """The median step before the kill: the interrupted step is computed anew, as part of ``rejoin``."""
    method: str
    donors: int
    payload_bytes: int
    """Fetched, from all donors together."""
    raw_one_s: tuple[float, ...] = ()
    """Raw transfers of one donor's bytes from one sender, before and after."""
    raw_all_s: tuple[float, ...] = ()
    """The same from as many senders as there were donors, side by side."""

    def beside(self, raw_one_s: tuple[float, ...], raw_all_s: tuple[float, ...]) -> Recovered:
        """The same with its yardstick."""
        return msgspec.structs.replace(self, raw_one_s=raw_one_s, raw_all_s=raw_all_s)

    @property
    def expected_fetch_s(self) -> float | None:
        """Bytes over bandwidth: what raw streams took for as many bytes."""
        return sum(self.raw_all_s) / len(self.raw_all_s) if self.raw_all_s else None

    @property
    def fetch_ratio(self) -> float | None:
        """The fetch as a multiple of what raw streams take."""
        expected = self.expected_fetch_s
        return None if expected is None else self.parts["fetch"] / expected

    @property
    def rest_s(self) -> float:
        """All but the fetch and the interrupted step."""
        others = sum(seconds for name, seconds in self.parts.items() if name != "fetch")
        return others - min(self.step_s, self.parts["rejoin"])


class RecoveryResult(msgspec.Struct, frozen=True):
    """All recoveries of one scenario."""

    scenario: str
    manifest: RunManifest
    stage: int
    runs: tuple[Recovered, ...]
    origin: Origin

    def write(self, folder: Path) -> Path:
        """Keep it: whole or not at all."""
        return keep(self, folder / f"recovery-{self.scenario}.json")


def read_results(folder: Path) -> list[RecoveryResult]:
    """All results of a folder."""
    return read_kept(folder, "recovery-*.json", RecoveryResult)
