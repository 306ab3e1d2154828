"""Faults that a person orders on the command line: ``--kill 2@15``, ``--pause 2@15:30``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from understudy.protocol.errors import SettingsError

_KILL = re.compile(r"(\d{1,9})@(\d{1,9})")
_PAUSE = re.compile(r"(\d{1,9})@(\d{1,9}):(\d{1,9}(?:\.\d{1,9})?)")


@dataclass(frozen=True, slots=True)
class Fault:
    """Strike the owner of ``stage`` once ``step`` is committed: SIGKILL, or SIGSTOP for ``pause_s``."""

    stage: int
    step: int
    pause_s: float | None = None

    def __str__(self) -> str:
        what = "kill" if self.pause_s is None else f"pause for {self.pause_s:g} s"
        return f"{what} S{self.stage} at step {self.step}"


def parse_faults(kills: Sequence[str], pauses: Sequence[str]) -> list[Fault]:
    """Faults in order of their steps. Raises `SettingsError`."""
    faults = []
    for text in kills:
        found = _KILL.fullmatch(text)
        if found is None:
            raise SettingsError(f"--kill {text!r}: use STAGE@STEP, for example 2@15")
        faults.append(Fault(int(found[1]), int(found[2])))
    for text in pauses:
        found = _PAUSE.fullmatch(text)
        if found is None:
            raise SettingsError(f"--pause {text!r}: use STAGE@STEP:SECONDS, for example 2@15:30")
        faults.append(Fault(int(found[1]), int(found[2]), float(found[3])))
    return sorted(faults, key=lambda fault: fault.step)


DEMO_KILL_STEP = 15


def demo_fault(last_stage: int, total_steps: int) -> Fault:
    """What the demo shows: a stage in the middle is lost, halfway through a short run."""
    return Fault((last_stage + 1) // 2, min(DEMO_KILL_STEP, max(1, total_steps // 2)))


def check_faults(faults: Sequence[Fault], last_stage: int, total_steps: int) -> None:
    """Every fault must be able to happen. Raises `SettingsError`."""
    if faults and total_steps < 2:
        raise SettingsError("a run of one step ends before anybody can be struck: use --steps 2 or more")
    for fault in faults:
        if fault.stage > last_stage:
            raise SettingsError(f"cannot {fault}: the stages are 0 to {last_stage}")
        if not 1 <= fault.step < total_steps:
            raise SettingsError(f"cannot {fault}: choose a step from 1 to {total_steps - 1}, the run has {total_steps}")
