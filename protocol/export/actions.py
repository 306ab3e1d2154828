"""Into and out of an exporter: what is wanted, and what is to be done with the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from understudy.protocol.actions import CancelFetches, Emit, Fetch, Read, Send


@dataclass(frozen=True, slots=True)
class ExportWish:
    """What is wanted, and what an interrupted export of the same run left."""

    is_last: bool = False
    """The weights after the run's last step."""
    step: int | None = None
    """Go on with this step, if it can still be had."""
    there: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    """The digests of the stages that are there already, of that step."""


@dataclass(frozen=True, slots=True)
class BeginExport:
    """Forget what was fetched so far, make room for the weights after ``step``."""

    step: int


@dataclass(frozen=True, slots=True)
class FinishExport:
    """Every stage of ``step`` was fetched: make it whole."""

    step: int


@dataclass(frozen=True, slots=True)
class FailExport:
    """It will not be: ``reason`` says why and what to do."""

    reason: str


ExportAction = Send | Read | Fetch | CancelFetches | Emit | BeginExport | FinishExport | FailExport
