"""What an export looks like while it goes on: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from understudy.protocol.manifest import RunManifest
from understudy.protocol.printable import printable

_LINES = {
    "export.waiting": "Waiting for an owner of {stages}.",
    "export.complete": "Every stage has an owner.",
    "export.aimed": "Asking every owner for its weights after step {step}.",
    "export.resumed": "Going on with step {step}: {there} came before.",
    "export.queued": "The owner of {stages} holds weights for others already; waiting for its turn.",
    "export.silent": "The owner of {stages} has not answered yet.",
    "export.fetched": "S{stage} came from {donor}.",
    "fetch.failed": "S{stage} did not come from {donor}: {reason}.",
}
_AIMED_AGAIN = "{reason}: beginning anew with step {step}."


def line_of(name: str, fields: Mapping[str, Any]) -> str | None:
    """What is worth a line, in a person's words."""
    template = _AIMED_AGAIN if name == "export.aimed" and fields["reason"] else _LINES.get(name)
    lists = {key: ", ".join(f"S{stage}" for stage in fields.get(key, ())) for key in ("stages", "there")}
    return None if template is None else template.format(**{**fields, **lists})


class ExportView:
    """Shows an export on stderr."""

    def __init__(self, manifest: RunManifest, console: Console) -> None:
        self._console = console
        self._sizes = [manifest.model.stage_bytes(stage) for stage in range(manifest.stage_count)]
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._bar = self._progress.add_task("export", total=sum(self._sizes))
        self._came: dict[int, int] = {}

    def __enter__(self) -> ExportView:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def note(self, name: str, fields: Mapping[str, Any]) -> None:
        """Something happened."""
        match name:
            case "bytes":
                self._came[fields["stage"]] = self._came.get(fields["stage"], 0) + fields["count"]
            case "export.aimed":
                self._came.clear()
            case "export.resumed":
                self._came = {stage: self._sizes[stage] for stage in fields["there"]}
            case "fetch.failed":
                self._came.pop(fields["stage"], None)
        self._progress.update(self._bar, completed=sum(self._came.values()))
        line = line_of(name, fields)
        if line is not None:
            self._console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
