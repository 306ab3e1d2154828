"""Is this machine fit to host a stage? One small check each, answered in words that say what to do."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from understudy.node.files.plain_files import is_stream
from understudy.protocol.manifest import ModelSettings

PYTHON_NEEDED = (3, 11)
PYTHON_UNTRIED = (3, 14)
"""This one and all after it. pyproject.toml says the same."""
MEMORY_NEEDED_BYTES = 500_000_000
"""Python with torch and the libp2p daemon; a whole node of the preset tiny takes about 350 MB."""
DISK_NEEDED_BYTES = 100_000_000
"""Identity, event file, logs."""
COPIES = 5
"""Of a stage's weights: themselves, gradient, two moments of AdamW, and the copy that a neighbour's recovery needs."""
PACKAGES_NAMED = 2
"""hivemind and torch, which pyproject.toml names first: what others ask for when something is wrong."""
LOAD_PER_CORE_HIGH = 1.5

Verdict = Literal["ok", "note", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. ``note``: it works, but; ``bad``: a node will not work until this is done."""

    subject: str
    verdict: Verdict
    text: str


def check_python(version: tuple[int, ...] = sys.version_info[:3], system: str = sys.platform) -> Finding:
    """The interpreter and the system that it runs on."""
    told = f"{'.'.join(map(str, version))} on {system} {platform.machine()}"
    if version[:2] < PYTHON_NEEDED:
        needed = ".".join(map(str, PYTHON_NEEDED))
        return Finding("python", "bad", f"{told}: install Python {needed} and make .venv anew with it (make setup)")
    if system != "linux":
        return Finding("python", "bad", f"{told}: the libp2p daemon runs on Linux only")
    if version[:2] >= PYTHON_UNTRIED:
        untried = ".".join(map(str, PYTHON_UNTRIED))
        return Finding("python", "note", f"{told}: never tried; the tested ones are older than {untried}")
    return Finding("python", "ok", told)


Version = Callable[[str], str]


def check_packages(requirements: Sequence[str] | None = None, version: Version = metadata.version) -> Finding:
    """Are the packages there, in versions that will do? ``requirements`` as in pyproject.toml."""
    wanted = metadata.requires("understudy") or [] if requirements is None else requirements
    found, wrong, untried = [], [], []
    for name, least, below in _bounds(wanted):
        try:
            installed = version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        found.append(f"{name} {installed}")
        if _numbers(installed) < _numbers(least):
            wrong.append(f"{name} {installed} is older than {least}")
        if below and _numbers(installed) >= _numbers(below):
            untried.append(f"{name} {installed} was never tried, only versions before {below}")
    if not wrong and untried:
        return Finding("packages", "note", f"{', '.join(untried)}: make setup installs what is tested")
    if wrong:
        return Finding("packages", "bad", f"{', '.join(wrong)}: install what is needed with make setup")
    more = f" and {len(found) - PACKAGES_NAMED} more" if len(found) > PACKAGES_NAMED else ""
    return Finding("packages", "ok", ", ".join(found[:PACKAGES_NAMED]) + more)


def _bounds(requirements: Sequence[str]) -> list[tuple[str, str, str]]:
    """Name, lower bound and what it must be below ("": anything) of each requirement that is not of an extra."""
    found = []
    for text in requirements:
        name = re.match(r"[A-Za-z0-9_.-]+", text)
        least, below = re.search(r">=\s*([0-9.]+)", text), re.search(r"<\s*([0-9.]+)", text)
        if ";" not in text and name and least:
            found.append((name[0], least[1], below[1] if below else ""))
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+", maxsplit=1)[0])[:3])


def check_cores(cores: int | None = None, load: float | None = None) -> Finding:
    """What this process may use, and whether others use it already."""
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    load = os.getloadavg()[0] if load is None else load
    told = f"{cores}, load {load:.1f}"
    if load > cores * LOAD_PER_CORE_HIGH:
        return Finding("cores", "note", f"{told}: others keep them busy; a slow node may be taken for a dead one")
    return Finding("cores", "ok", told)


def check_memory(model: ModelSettings | None, available_bytes: int | None = None) -> Finding:
    """What is free, against what a stage of the run needs; without a run, what a small one needs."""
    available = _available_memory() if available_bytes is None else available_bytes
    needed = MEMORY_NEEDED_BYTES + (stage_bytes(model) if model else 0)
    told = (
        f"{available / 1e9:.1f} GB free, a stage {'of this run ' if model else ''}needs {needed / 1e9:.1f} GB or more"
    )
    if available < needed:
        return Finding("memory", "bad", f"{told}: end other programs, or join a run with smaller stages")
    return Finding("memory", "ok", told)


def stage_bytes(model: ModelSettings) -> int:
    """The larger of S0 and a block stage, without the activations of the microbatches in flight."""
    return max(model.stage_bytes(0), model.stage_bytes(1)) * COPIES


def _available_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="utf-8"))
    return int(found[1]) * 1024 if found else 0


def check_accelerator(description: str | None) -> Finding:
    """``description``: of the GPU that torch can use; None: there is none, which is no fault."""
    return Finding("accelerator", "ok", description or "none that torch can use: the node computes on the CPU")


FreeBytes = Callable[[Path], int]


def check_disk(files: Mapping[str, Path], free_bytes: FreeBytes = lambda path: shutil.disk_usage(path).free) -> Finding:
    """Can the node write its files (option: path) where they are to be?"""
    told = []
    for option, path in files.items():
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        free = free_bytes(folder)
        if free < DISK_NEEDED_BYTES:
            text = f"{free / 1e6:.0f} MB free in {folder}: make room, or choose another place with {option}"
            return Finding("disk", "bad", text)
        if path.exists() and not path.is_file() and not (option == "--events" and is_stream(path)):
            return Finding("disk", "bad", f"{path} is not a file: choose another place with {option}")
        if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
            return Finding("disk", "bad", f"{path} cannot be written: choose another place with {option}")
        told.append(f"{free / 1e9:.1f} GB free in {folder}")
    return Finding("disk", "ok", "; ".join(dict.fromkeys(told)))
