"""What each dtype of the wire did to the loss and takes to make, as JSON files and as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from benchmarks.origin import Origin
from benchmarks.page import render
from understudy.protocol.manifest import WireDtype
from understudy.protocol.messages import TensorHeader
from understudy.protocol.wire import tensor_bytes

DTYPES: tuple[WireDtype, ...] = ("float32", "bfloat16", "int8")
LAST = 20
"""Iterations whose mean is the final training loss: one is as good as its microbatches are easy."""


class Training(msgspec.Struct, frozen=True):
    """One model, trained from beginning to end with activations and gradients of one dtype."""

    dtype: WireDtype
    seed: int
    hidden_size: int
    losses: tuple[float, ...]
    """Of each iteration, in nats per token."""
    validation: float
    """After the last, on held-out text, with nothing on a wire."""
    origin: Origin

    @property
    def file_name(self) -> str:
        return f"quantised-{self.dtype}-seed-{self.seed}.json"

    @property
    def final(self) -> float:
        return statistics.fmean(self.losses[-LAST:])


class Costs(msgspec.Struct, frozen=True):
    """How long one core takes to make an activation ready for the wire and to take it in, in turn by dtype."""

    shape: tuple[int, ...]
    outward: dict[WireDtype, tuple[float, ...]]
    """Seconds of each repetition from float32 to what travels."""
    inward: dict[WireDtype, tuple[float, ...]]
    origin: Origin


def loss_table(found: Sequence[Training]) -> str:
    """Bytes and losses by dtype, seeds in order; a difference is between two runs of one seed."""
    header = ["wire", "bytes per token", "seeds", "training loss", "held-out loss", "held-out, against float32"]
    kinds = {
        dtype: sorted((made for made in found if made.dtype == dtype), key=lambda made: made.seed) for dtype in DTYPES
    }
    exact = {made.seed: made.validation for made in kinds["float32"]}
    return render(header, [_loss_row(made, exact) for made in kinds.values() if made])


def _loss_row(made: Sequence[Training], exact: dict[int, float]) -> list[str]:
    differences = [one.validation - exact[one.seed] for one in made if one.seed in exact]
    return [
        made[0].dtype,
        str(bytes_per_token(made[0].dtype, made[0].hidden_size)),
        ", ".join(str(one.seed) for one in made),
        ", ".join(f"{one.final:.3f}" for one in made),
        ", ".join(f"{one.validation:.3f}" for one in made),
        ", ".join(f"{difference:+.4f}" for difference in differences),
    ]


def bytes_per_token(dtype: WireDtype, hidden_size: int) -> int:
    """Of one hop in one direction."""
    return tensor_bytes(TensorHeader(dtype, (1, hidden_size)))


def cost_table(costs: Costs) -> str:
    """Medians in microseconds by dtype, beside the bytes that they make."""
    header = ["wire", "KiB", "to the wire, us", "from the wire, us"]
    rows = []
    for dtype in DTYPES[1:]:
        outward, inward = (statistics.median(times[dtype]) * 1e6 for times in (costs.outward, costs.inward))
        kibibytes = tensor_bytes(TensorHeader(dtype, costs.shape)) / 1024
        rows.append([dtype, f"{kibibytes:.0f}", f"{outward:.0f}", f"{inward:.0f}"])
    return render(header, rows)
