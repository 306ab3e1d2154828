"""The ways of recovering that are compared, each as settings of our own recovery code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from understudy.protocol.manifest import RunManifest

Loses = Literal["none", "middle", "all", "pairs"]


def vulnerable(loses: Loses, block_stages: int) -> tuple[int, ...]:
    """The stages that can be lost: none, S2..Sn-1, or S1..Sn."""
    every = tuple(range(1, block_stages + 1))
    return {"none": (), "middle": every[1:-1], "all": every, "pairs": every}[loses]


def lost_with(loses: Loses, block_stages: int, lost: Sequence[int]) -> tuple[int, ...]:
    """Who is lost when these are: of "pairs" each takes the next one with it, the last one the one before."""
    if loses != "pairs":
        return tuple(lost)
    partners = (stage + 1 if stage < block_stages else stage - 1 for stage in lost)
    return tuple(sorted({*lost, *partners}))


@dataclass(frozen=True, slots=True)
class Strategy:
    """What happens to a run whose block stages are lost now and then."""

    name: str
    title: str
    loses: Loses
    """Which block stages it can lose: none (others take its losses for it), S2..Sn-1, or S1..Sn."""
    donors: Literal["both", "below", "none"] = "both"
    """Whose weights a rebuilt stage gets: both nearest survivors', the lower one's, nobody's."""
    method: Literal["checkfree", "checkfree+"] = "checkfree"
    swapped_pairs: Literal["mirror", "average"] = "average"
    norm_exponent: int = 2
    is_norm_clipped: bool = False
    """Weigh by the norm that is left after clipping, as the paper's reference code does."""
    warms_up_again: bool = True
    """A rebuilt stage's fresh optimizer raises its rate slowly, as in our swarm; the paper's does not."""
    improvement: Literal["none", "moments", "probe", "regression", "decay"] = "none"
    """What is tried on top of the paper, see benchmarks/convergence/improvements.py."""
    standby_every: int = 0
    """Iterations from one standby copy to the next; 0: there are none."""
    moments: Literal["none", "second", "both"] = "none"
    """What of the optimizer's state comes with a standby copy."""
    moments_every: int = 1
    """With every how manieth copy."""

    def applied_to(self, manifest: RunManifest) -> RunManifest:
        """The manifest of a run under this strategy."""
        settings: dict[str, Any] = {
            "method": self.method, "swapped_pairs": self.swapped_pairs, "norm_exponent": self.norm_exponent,
        }  # fmt: skip
        return msgspec.structs.replace(manifest, recovery=msgspec.structs.replace(manifest.recovery, **settings))

    def donors_of(self, stage: int, survivors: Sequence[int]) -> tuple[int, ...]:
        """The block stages that offer their weights for a lost one: the nearest survivor on either side."""
        below = [other for other in survivors if 0 < other < stage][-1:]
        above = [other for other in survivors if other > stage][:1]
        return {"both": (*below, *above), "below": tuple(below), "none": ()}[self.donors]

    def offered_norm(self, squared_norm: float | None, clip_norm: float) -> float | None:
        """The squared gradient norm that a donor states."""
        if squared_norm is None or not self.is_norm_clipped:
            return squared_norm
        return min(squared_norm, clip_norm**2)


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("none", "no failures", "none"),
        Strategy("random", "random re-initialisation", "middle", donors="none"),
        Strategy("copy", "copy of the previous stage", "middle", donors="below"),
        Strategy("uniform", "uniform average", "middle", norm_exponent=0),
        Strategy("checkfree", "CheckFree, norm squared", "middle"),
        Strategy("checkfree-1", "CheckFree, norm", "middle", norm_exponent=1),
        Strategy("checkfree-clipped", "CheckFree, squared norm after clipping", "middle", is_norm_clipped=True),
        Strategy(
            "checkfree-1-clipped", "CheckFree, norm after clipping", "middle", norm_exponent=1, is_norm_clipped=True
        ),
        Strategy("checkfree-all", "CheckFree, edges copied", "all"),
        Strategy("checkfree-cold", "CheckFree, no second warm-up", "middle", warms_up_again=False),
        Strategy("checkfree-moments", "CheckFree, Adam's moments blended too", "middle", improvement="moments"),
        Strategy("checkfree-probe", "CheckFree, coefficients by a probe", "middle", improvement="probe"),
        Strategy("checkfree-regression", "CheckFree, then regression", "middle", improvement="regression"),
        Strategy("checkfree-decay", "CheckFree, raised rate decays", "middle", improvement="decay"),
        Strategy("checkfree+mirror", "CheckFree+, pairs mirrored", "all", method="checkfree+", swapped_pairs="mirror"),
        Strategy("checkfree+", "CheckFree+, pairs averaged", "all", method="checkfree+"),
        *(
            Strategy(f"standby-{every}", f"standby copy every {every}, fresh optimizer", "all", standby_every=every)
            for every in (1, 5, 20, 100)
        ),
        *(
            Strategy(
                f"standby-{every}-moments",
                f"standby copy every {every} with both moments",
                "all",
                standby_every=every,
                moments="both",
            )
            for every in (1, 5, 20, 100)
        ),
        Strategy(
            "standby-20-second",
            "standby copy every 20, second moments with every tenth",
            "all",
            standby_every=20,
            moments="second",
            moments_every=10,
        ),
        Strategy(
            "standby-20-tenth",
            "standby copy every 20, both moments with every tenth",
            "all",
            standby_every=20,
            moments="both",
            moments_every=10,
        ),
        Strategy("standby-20-pairs", "standby copy every 20, two adjacent lost", "pairs", standby_every=20),
        Strategy("checkfree-pairs", "CheckFree, two adjacent lost", "pairs"),
    )
}
"""By name. Checkpoints and redundant computation are not here: their losses are those of "none", at other times."""
