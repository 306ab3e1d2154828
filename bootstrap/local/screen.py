"""``understudy local`` as a person sees it: the plan, the live table, the summary, the exit status."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live

from understudy.bootstrap.founding import MANIFEST_FILE, load_run
from understudy.bootstrap.local.faults import check_faults, demo_fault, parse_faults
from understudy.bootstrap.local.monitor import Board
from understudy.bootstrap.local.run import LocalPlan, LocalSwarm
from understudy.bootstrap.local.view import live_view, progress_line, summary
from understudy.node.export.place import find_place
from understudy.node.process import EXIT_DONE, EXIT_FAILED, StopSwitch
from understudy.protocol.errors import SettingsError
from understudy.protocol.run_toml import RunToml

logger = logging.getLogger(__name__)

LINE_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class LocalArguments:
    """The command line of ``understudy local``."""

    source: str
    is_demo: bool
    """Nothing was asked for: show one peer being killed."""
    steps: int | None
    default_steps: int
    """For a run that does not say how long it is."""
    spares: int
    kills: tuple[str, ...]
    pauses: tuple[str, ...]
    folder: Path | None
    device: str
    threads: int
    export_folder: Path | None
    initial_weights: Path | None


def plan_local(arguments: LocalArguments) -> LocalPlan:
    """Check everything before the first process starts. Raises `SettingsError`."""
    run = load_run(arguments.source, arguments.steps)
    if not run.manifest.step.total_steps:
        run = load_run(arguments.source, arguments.default_steps)
    manifest = run.manifest
    faults = parse_faults(arguments.kills, arguments.pauses)
    if arguments.is_demo:
        faults = [demo_fault(manifest.last_stage, manifest.step.total_steps)]
    check_faults(faults, manifest.last_stage, manifest.step.total_steps)
    if arguments.spares < 0:
        raise SettingsError("--spares must not be negative")
    _check_machine(arguments, run)
    _check_export(arguments.export_folder)
    folder = _make_folder(arguments.folder)
    return LocalPlan(
        source=arguments.source,
        manifest=manifest,
        spares=arguments.spares,
        faults=tuple(faults),
        folder=folder,
        device=arguments.device,
        threads=arguments.threads,
        export_folder=arguments.export_folder,
        initial_weights=arguments.initial_weights,
        files=run.files,
    )


def _check_machine(arguments: LocalArguments, run: RunToml) -> None:
    """Refuse once and now what every node would refuse later. Imports torch only where it is needed."""
    if arguments.device != "cpu" or arguments.threads < 0:
        from understudy.node.config import choose_device, choose_threads

        choose_device(arguments.device)
        choose_threads(arguments.threads)
    manifest = run.manifest
    if manifest.data.source != "python-stdlib":
        from understudy.node.data.access import founders_access
        from understudy.node.data.sources import open_data

        open_data(manifest, founders_access(run.files)).close()
    if arguments.initial_weights is not None:
        from understudy.node.export.initial_weights import check_folder

        check_folder(arguments.initial_weights, manifest.model)


def _check_export(wanted: Path | None) -> None:
    """Refuse now what the exporter would refuse later. Raises `SettingsError`."""
    if wanted is not None:
        try:
            find_place(wanted)
        except SettingsError as error:
            raise SettingsError(f"--export: {error}") from error


def _make_folder(wanted: Path | None) -> Path:
    """A folder for one run. Raises `SettingsError`."""
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="understudy-"))
    try:
        if (wanted / "nodes").exists() or (wanted / MANIFEST_FILE).exists():
            raise SettingsError(f"{wanted} holds an earlier run: choose another --dir or remove it")
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"the folder {wanted} cannot be used: {error.strerror}; choose another --dir") from error
    return wanted


async def run_local(arguments: LocalArguments, switch: StopSwitch) -> int:
    """Run the swarm and tell about it. The exit status is 0 if every step was committed."""
    console = Console()
    plan = plan_local(arguments)
    console.print(
        f"Starting {plan.manifest.stage_count} peers and {plan.spares} spare(s) on this machine; "
        f"events and logs go to {plan.folder}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for fault in plan.faults:
        console.print(f"Will {fault}.", highlight=False)
    with _Screen(console) as screen:
        swarm = LocalSwarm(plan, screen.show)
        switch.hand_over(swarm.stop)
        board = await swarm.run()
    for line in summary(board):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    is_whole = not board.missing_steps
    if plan.export_folder is not None and (plan.export_folder / "config.json").exists():
        console.print(f"The model is in {plan.export_folder}", highlight=False, markup=False, soft_wrap=True)
    return EXIT_DONE if is_whole or switch.is_pressed else EXIT_FAILED


class _Screen:
    """A live table on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=8) if console.is_terminal else None
        self._next_line = 0.0
        self._last_line = ""
        self._is_given_up = False

    def __enter__(self) -> _Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, board: Board) -> None:
        """Show it as it is now. A bug in the picture is told once and costs the picture, not the run."""
        if self._is_given_up:
            return
        try:
            self._draw(board)
        except Exception:
            self._is_given_up = True
            if self._live is not None:
                self._live.update("")
                self._live.stop()
            logger.exception("the swarm cannot be shown any more, for a bug of ours; it goes on. Please report it")

    def _draw(self, board: Board) -> None:
        if self._live is not None:
            self._live.update(live_view(board))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_S
            line = progress_line(board)
            if line != self._last_line:
                self._console.print(line, highlight=False)
            self._last_line = line
            sys.stdout.flush()
