"""Network namespaces that stand for machines, and the lines between them.

A machine has one interface, `INTERFACE`. Its line leads to a bridge in another namespace, so the network of this
machine is not touched. Who opens a network gives it a name with a prefix of its own and our process id in it: what a
killed process left is known by them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_interface
from itertools import count
from pathlib import Path
from typing import TypeVar

from understudy.bootstrap.local.run import Place
from understudy.protocol.errors import SettingsError

INTERFACE = "net0"
BRIDGE = "bridge"
FOLDER = Path("/run/netns")
CONGESTION_FILE = Path("/proc/sys/net/ipv4/tcp_congestion_control")
CLONE_NEWNET = 0x40000000
COMMAND_TIMEOUT_S = 10.0
PACKAGES = {"ip": "iproute2", "tc": "iproute2", "iptables-restore": "iptables", "ebtables-nft": "iptables"}
"""What a program comes with, where the package has another name (Debian, Ubuntu)."""

_T = TypeVar("_T")
_serial = count()


@dataclass(frozen=True, slots=True)
class Machine:
    """A namespace, its address, and where its line leads to."""

    name: str
    address: str
    hub: str = ""
    """The namespace of the bridge."""

    @property
    def port(self) -> str:
        """The end of its line at the bridge."""
        return f"port{self.address.rpartition('.')[2]}"

    @property
    def place(self) -> Place:
        """Where a child of a local swarm runs."""
        return Place(("ip", "netns", "exec", self.name), f"/ip4/{self.address}/tcp/0")

    def enter(self) -> None:
        """Move the calling thread here; threads and sockets that it makes from now on are here too.

        Raises `OSError` if the namespace is gone.
        """
        # os.setns came with Python 3.12.
        libc = ctypes.CDLL(None, use_errno=True)
        handle = os.open(FOLDER / self.name, os.O_RDONLY)
        try:
            if libc.setns(handle, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {self.name}")
        finally:
            os.close(handle)

    def call(self, make: Callable[[], _T]) -> _T:
        """Call something here, such as what makes a socket, in a thread of its own. Raises what it raises."""
        results: list[_T] = []
        failures: list[BaseException] = []

        def run() -> None:
            try:
                self.enter()
                results.append(make())
            except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that asked
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        return results[0]


def check_programs(*programs: str) -> None:
    """Raises `SettingsError` with what is missing, and how to get it."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        packages = " ".join(sorted({PACKAGES.get(program, program) for program in missing}))
        raise SettingsError(
            f"{' and '.join(missing)} not found: install {packages} (Debian, Ubuntu: apt install {packages})"
        )
    if os.geteuid() != 0:
        raise SettingsError("network namespaces need root: run this command as root, for example in a container")


def new_stem(prefix: str) -> str:
    """What the names of one network begin with."""
    return f"{prefix}{os.getpid()}-{next(_serial)}-"


def is_stale(name: str, prefix: str) -> bool:
    """Whether a namespace is one of ours whose process is gone."""
    process = name.removeprefix(prefix).partition("-")[0]
    return name.startswith(prefix) and process.isdigit() and not Path("/proc", process).exists()


def remove_stale(prefix: str) -> None:
    """Remove what killed processes left."""
    for path in FOLDER.glob(f"{prefix}*"):
        if is_stale(path.name, prefix):
            _remove(path.name)


def add_namespace(stack: ExitStack, name: str) -> str:
    """Make a namespace; the stack removes it again, and its lines go with it."""
    stack.callback(_remove, name)
    ip("netns", "add", name)
    return name


def add_bridge(namespace: str) -> None:
    """Without an address: what a bridge joins are one network, and nobody else's."""
    ip("-n", namespace, "link", "add", BRIDGE, "type", "bridge")
    ip("-n", namespace, "link", "set", BRIDGE, "up")


def join(machine: Machine) -> None:
    """Lay the line between a machine and its hub."""
    port = machine.port
    ip("link", "add", INTERFACE, "netns", machine.name, "type", "veth", "peer", "name", port, "netns", machine.hub)
    ip("-n", machine.hub, "link", "set", port, "master", BRIDGE, "up")
    ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", INTERFACE)
    ip("-n", machine.name, "link", "set", INTERFACE, "up")
    ip("-n", machine.name, "link", "set", "lo", "up")


def choose_congestion_control(machine: Machine, name: str) -> None:
    """For all that a machine sends to its own network. Raises `SettingsError` if this kernel does not let us.

    What it keeps from namespaces as a setting (net.ipv4.tcp_allowed_congestion_control) it lets a route have.
    """
    try:
        machine.call(lambda: CONGESTION_FILE.write_text(name, encoding="ascii"))
    except OSError as error:
        if error.errno != errno.EPERM:
            raise SettingsError(f"TCP cannot use {name} here: {_cure(name, error)}") from error
        network = str(ip_interface(f"{machine.address}/24").network)
        way = ("dev", INTERFACE, "proto", "kernel", "scope", "link", "src", machine.address)
        ip("-n", machine.name, "route", "replace", network, *way, "congctl", name)


def _cure(name: str, error: OSError) -> str:
    """What the kernel means by its answer to the name of a congestion control."""
    if error.errno == errno.ENOENT:
        return f"this kernel does not have it (modprobe tcp_{name})"
    return f"{CONGESTION_FILE} cannot be written ({error.strerror}), which takes root outside of a container"


def ip(*words: str) -> None:
    """Raises `SettingsError` with what the kernel said."""
    command("ip", *words)


def command(*words: str, text: str = "") -> None:
    """Run one that changes a namespace; the text is its input. Raises `SettingsError` with what it said."""
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S)
    if done.returncode:
        raise SettingsError(f"'{' '.join(words)}' failed: {done.stderr.strip()}")


def _remove(name: str) -> None:
    if (FOLDER / name).exists():
        ip("netns", "delete", name)
