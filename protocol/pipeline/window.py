"""How many microbatches are in flight: measured, because no formula knows the links and the cores.

Too few leave stages idle while activations travel. Too many cost memory, and where stages share cores the first
ones race ahead and take the time that the last one needs: five peers on two cores were 1.4 times as fast with four
or five in flight as with eight (docs/experiments.md). Where the way is long, most of them travel: with a round trip
of 0.2 s a line of 100 Mbit/s carries three times as many as there are stages. So S0 tries sizes next to each other,
some steps each, and stays with the smallest that is about as fast as the best.
"""

from __future__ import annotations

import statistics

from understudy.protocol.manifest import RunManifest

TRIAL_STEPS = 3
"""Steps by which a size is judged, by their median."""
SETTLED_STEPS = 200
"""Steps with the size that was found, until its neighbours are tried again."""
TOLERANCE = 1.02
"""So much slower than the best a smaller size may be."""
USUAL_PER_STAGE = 2
LARGE_GAIN = 1.05
"""As `TOLERANCE`, if the best is more than usual: all that is in flight lies in every stage's memory."""
SMALLEST = 2


class Window:
    """The size for the next step. Sizes are tried between steps only, when nothing is in flight."""

    def __init__(self, manifest: RunManifest) -> None:
        self._sizes = [manifest.window] if manifest.step.window else _sizes(manifest.window)
        self.size = max(size for size in self._sizes if size <= max(manifest.stage_count, self._sizes[0]))
        self._usual = USUAL_PER_STAGE * manifest.stage_count
        self._trial: list[float] = []
        self._medians: dict[int, float] = {}
        """Seconds per step of every size that was tried since the last search began."""
        self._steps_left = 0
        """Until the next search; 0 during one."""

    def note(self, seconds: float) -> bool:
        """A step took so long with this size, and nothing disturbed it. True if a search has just ended."""
        if len(self._sizes) == 1:
            return False
        if self._steps_left:
            self._steps_left -= 1
            return False
        self._trial.append(seconds)
        if len(self._trial) < TRIAL_STEPS:
            return False
        self._medians[self.size] = statistics.median(self._trial)
        self._trial = []
        return self._choose()

    def _choose(self) -> bool:
        """Go to a size that was not tried beside the best one, or stay with the best. True in the second case."""
        best = min(size for size in self._medians if self._is_fast_enough(size))
        position = self._sizes.index(best)
        untried = [size for size in self._sizes[max(0, position - 1) : position + 2] if size not in self._medians]
        self.size = untried[0] if untried else best
        if untried:
            return False
        self._medians = {}
        self._steps_left = SETTLED_STEPS
        return True

    def _is_fast_enough(self, size: int) -> bool:
        """No other size that was tried is so much faster that it is worth its place."""
        return all(
            self._medians[size] <= (LARGE_GAIN if other > self._usual else TOLERANCE) * median
            for other, median in self._medians.items()
        )


def _sizes(largest: int) -> list[int]:
    """2, 3, 4, 6, 8, 12, 16, ... and the largest: steps that are felt, few enough to try."""
    sizes = [power * half // 2 for power in (2**exponent for exponent in range(1, 17)) for half in (2, 3)]
    return [size for size in sizes if SMALLEST <= size < largest] + [largest]
