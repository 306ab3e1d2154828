"""What each wire did to the loss and takes to make, as JSON files and as tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from benchmarks.origin import Origin
from benchmarks.page import Row, render
from understudy.protocol.errors import SettingsError
from understudy.protocol.manifest import WireDtype
from understudy.protocol.wire.frames import tensor_bytes
from understudy.protocol.wire.tensors import TensorHeader

WireName = Literal["float32", "noise", "bfloat16", "int8", "int8-row"]
SEEDS = (0, 1, 2)
NOISE = 0.002
TITLES: dict[WireName, str] = {
    "float32": "float32",
    "noise": f"float32 with {NOISE:.1%} noise",
    "bfloat16": "bfloat16",
    "int8": "int8",
    "int8-row": "int8, one scale per row",
}
"""In the order of the tables."""
WIRES: tuple[WireName, ...] = tuple(TITLES)
TIMED: tuple[WireDtype, ...] = ("bfloat16", "int8")
Run = tuple[WireName, int]
"""A wire and a seed."""
LAST = 20
"""Iterations whose mean is the final training loss: one is as good as its microbatches are easy."""


class Training(msgspec.Struct, frozen=True):
    """One model, trained from beginning to end with one kind of wire between its stages."""

    wire: WireName
    seed: int
    hidden_size: int
    losses: tuple[float, ...]
    """Of each iteration, in nats per token."""
    validation: float
    """After the last, on held-out text, with nothing on a wire."""
    origin: Origin

    @property
    def file_name(self) -> str:
        return f"quantised-{self.wire}-seed-{self.seed}.json"

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

    def both(self, dtype: WireDtype) -> list[float]:
        """Seconds of each repetition, there and back."""
        return [out + back for out, back in zip(self.outward[dtype], self.inward[dtype], strict=True)]


def missing(kept: Sequence[Training], wires: Sequence[str], seeds: Sequence[int], iterations: int) -> list[Run]:
    """What is still to be trained, seed by seed. Raises `SettingsError` for a wire or a length that is not theirs."""
    for unknown in set(wires) - set(WIRES):
        raise SettingsError(f"{unknown!r} is no wire of this comparison: {', '.join(WIRES)}")
    for made in kept:
        if len(made.losses) != iterations:
            raise SettingsError(
                f"{made.file_name} is of {len(made.losses)} iterations, not {iterations}: "
                "keep the results of each length in a --folder of its own"
            )
    done = {(made.wire, made.seed) for made in kept}
    return [(wire, seed) for seed in seeds for wire in WIRES if wire in wires and (wire, seed) not in done]


# --- losses ---

MEASURES: tuple[tuple[str, Callable[[Training], float]], ...] = (
    ("held out", lambda made: made.validation),
    ("training", lambda made: made.final),
)


def loss_table(found: Sequence[Training]) -> str:
    """Bytes and losses by wire, seeds in order."""
    header = ["wire", "bytes per token", "seeds"]
    for name, _ in MEASURES:
        header += [f"{name}, by seed", "mean", "median"]
    return render(header, [_loss_row(made) for made in _by_wire(found).values()])


def _loss_row(made: Sequence[Training]) -> Row:
    row = [
        TITLES[made[0].wire],
        str(bytes_per_token(made[0].wire, made[0].hidden_size)),
        ", ".join(str(one.seed) for one in made),
    ]
    for _, of in MEASURES:
        values = [of(one) for one in made]
        row += [_listed(values, ".3f"), f"{statistics.fmean(values):.3f}", f"{statistics.median(values):.3f}"]
    return row


def difference_table(found: Sequence[Training]) -> str:
    """Each run against float32's of its seed; spread is the sample's standard deviation over the seeds."""
    header = ["wire, against float32"]
    for name, _ in MEASURES:
        header += [f"{name}, by seed", "mean", "spread"]
    kinds = _by_wire(found)
    exact = {made.seed: made for made in kinds.pop("float32", [])}
    paired = {wire: [(one, exact[one.seed]) for one in made if one.seed in exact] for wire, made in kinds.items()}
    return render(header, [_difference_row(wire, pairs) for wire, pairs in paired.items() if pairs])


def _difference_row(wire: WireName, pairs: Sequence[tuple[Training, Training]]) -> Row:
    row = [TITLES[wire]]
    for _, of in MEASURES:
        values = [of(one) - of(exact) for one, exact in pairs]
        spread = f"{statistics.stdev(values):.3f}" if len(values) > 1 else ""
        row += [_listed(values, "+.3f"), f"{statistics.fmean(values):+.3f}", spread]
    return row


def _by_wire(found: Sequence[Training]) -> dict[WireName, list[Training]]:
    kinds = {wire: sorted((one for one in found if one.wire == wire), key=lambda one: one.seed) for wire in WIRES}
    return {wire: made for wire, made in kinds.items() if made}


def _listed(values: Sequence[float], style: str) -> str:
    return ", ".join(format(value, style) for value in values)


def bytes_per_token(wire: WireName, hidden_size: int) -> int:
    """Of one hop in one direction."""
    match wire:
        case "int8-row":
            return hidden_size + 4
        case "noise":
            return bytes_per_token("float32", hidden_size)
        case _:
            return tensor_bytes(TensorHeader(wire, (1, hidden_size)))


# --- times ---


def cost_table(costs: Costs) -> str:
    """Medians by dtype, beside the bytes that they make; ratios are of neighbours in time."""
    header = ["wire", "KiB", "to the wire, us", "from the wire, us", "both, against bfloat16"]
    plain = costs.both("bfloat16")
    rows = []
    for dtype in TIMED:
        outward, inward = (statistics.median(times[dtype]) * 1e6 for times in (costs.outward, costs.inward))
        kibibytes = tensor_bytes(TensorHeader(dtype, costs.shape)) / 1024
        ratio = statistics.median(own / other for own, other in zip(costs.both(dtype), plain, strict=True))
        rows.append([dtype, f"{kibibytes:.0f}", f"{outward:.0f}", f"{inward:.0f}", f"{ratio:.1f}"])
    return render(header, rows)
