"""The settings of this machine. What the peers of a run agree on is in protocol/manifest.py."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from understudy.node.data.access import NO_ACCESS, TextAccess
from understudy.node.p2p.addresses import JoinString
from understudy.protocol.errors import SettingsError


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node's own settings."""

    join: JoinString
    identity_path: Path
    """The RSA key file that makes our PeerID; created if missing."""
    stage: int | None = None
    """The stage to take if it is free; None: what is needed most."""
    host_maddrs: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    announce_maddrs: tuple[str, ...] = ()
    is_behind_nat: bool = False
    """Look for relays to be reached through."""
    may_relay: bool = True
    """Let others be reached through this peer."""
    device: str = "cpu"
    threads: int = 1
    """Threads of the arithmetic; the node has one compute thread all the same."""
    events_path: Path | None = None
    can_hold_blocks: bool = True
    """This machine has room for a block stage of the run."""
    text: TextAccess = NO_ACCESS
    """What the run may read here if this node drives."""


def choose_device(wanted: str) -> str:
    """The torch device for a ``--device`` setting; "auto" is a GPU if there is one. Raises `SettingsError`."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=torch.device(wanted))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"device {wanted!r} cannot be used ({reason}); try --device cpu") from error
    return wanted


def describe_accelerator() -> str | None:
    """The GPU that torch can use, for a person; None: there is none."""
    if not torch.cuda.is_available():
        return None
    known = torch.cuda.get_device_properties(0)
    return f"{known.name}, {known.total_memory / 1e9:.0f} GB"


def choose_threads(wanted: int) -> int:
    """Arithmetic threads for a ``--threads`` setting; 0 is all cores that this process may use."""
    if wanted < 0:
        raise SettingsError("--threads must not be negative; 0 means all cores")
    return wanted or len(os.sched_getaffinity(0))
