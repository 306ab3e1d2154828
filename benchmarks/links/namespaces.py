"""Network namespaces that stand for machines, joined by links of a given rate.

Each has one interface, `INTERFACE`, on a bridge that lies in a namespace of its own: the network of this machine is
not touched. Both ends of each link are shaped with ``tc tbf``: the end in the namespace is its uplink, the one at the
bridge its downlink. All packets of a link share one queue, as at a home router.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

from understudy.bootstrap.local.run import Place
from understudy.protocol.errors import SettingsError

INTERFACE = "net0"
BRIDGE = "bridge"
PREFIX = "understudy-links-"
FOLDER = Path("/run/netns")
PIECE_BYTES = 16 * 1024
"""TCP hands so much at once to a link. All machines share the cores here, and with 1,500 bytes at a time the packets
cost as much of them as the arithmetic; the shaper counts the headers of every packet in it."""
BURST_S = 0.002
BURST_BYTES_MIN = 20 * 1024
"""What may leave at once after a pause: 2 ms at the rate, and no less than one piece with its headers, which the
shaper would cut into packets otherwise."""
QUEUE_S = 0.05
"""What a full queue holds. The way there and back takes 0.1 ms here, so TCP keeps a link busy with far less; more
would only keep a heartbeat waiting behind tensors."""
CONGESTION_CONTROL = "cubic"
"""What Linux uses unless it is told otherwise, whatever this machine does."""
CONGESTION_FILE = Path("/proc/sys/net/ipv4/tcp_congestion_control")
ALLOWED_CONGESTION_SETTING = "tcp_allowed_congestion_control"
CLONE_NEWNET = 0x40000000
COMMAND_TIMEOUT_S = 10.0

_T = TypeVar("_T")
_serial = count()


@dataclass(frozen=True, slots=True)
class Machine:
    """A namespace and its address."""

    name: str
    address: str

    @property
    def bridge(self) -> str:
        """The namespace of the bridge that its link leads to."""
        return f"{self.name.rpartition('-')[0]}-{BRIDGE}"

    @property
    def port(self) -> str:
        """The end of its link at the bridge."""
        return f"port{self.name.rpartition('-')[2]}"

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


@contextmanager
def open_links(
    machines: int, rate_mbit: float | None, congestion_control: str = CONGESTION_CONTROL
) -> Iterator[list[Machine]]:
    """So many machines on links of this rate in each direction; None: as fast as the kernel copies.

    Removed again in the end, whatever happens. What a killed process left is removed at the next start. Raises
    `SettingsError` if this cannot be had here.
    """
    check_here()
    remove_stale()
    stem = new_stem()
    with ExitStack() as stack:
        bridge = add_namespace(stack, f"{stem}{BRIDGE}")
        ip("-n", bridge, "link", "add", BRIDGE, "type", "bridge")
        ip("-n", bridge, "link", "set", BRIDGE, "up")
        found = []
        for number in range(1, machines + 1):
            machine = Machine(add_namespace(stack, f"{stem}{number}"), f"10.77.0.{number}")
            _join(machine, bridge, rate_mbit)
            machine.call(partial(choose_congestion_control, congestion_control))
            found.append(machine)
        yield found


ISLAND = "island"
"""The bridge of those who are cut off from the others, but not from each other."""


@contextmanager
def parted(machines: Sequence[Machine]) -> Iterator[None]:
    """Cut these machines off from all others, without a word to anybody: what is sent is lost, nothing is refused."""
    bridge = machines[0].bridge
    ip("-n", bridge, "link", "add", ISLAND, "type", "bridge")
    ip("-n", bridge, "link", "set", ISLAND, "up")
    try:
        for machine in machines:
            ip("-n", bridge, "link", "set", machine.port, "master", ISLAND)
        yield
    finally:
        for machine in machines:
            ip("-n", bridge, "link", "set", machine.port, "master", BRIDGE)
        ip("-n", bridge, "link", "delete", ISLAND)


def check_here() -> None:
    """Raises `SettingsError` with what is missing."""
    missing = [program for program in ("ip", "tc") if shutil.which(program) is None]
    if missing:
        raise SettingsError(
            f"{' and '.join(missing)} not found: install iproute2 (Debian, Ubuntu: apt install iproute2)"
        )
    if os.geteuid() != 0:
        raise SettingsError("network namespaces need root: run this command as root, for example in a container")


def shape(rate_mbit: float) -> list[str]:
    """The words of ``tc`` for a link of this rate, in 10^6 bits per second."""
    burst = max(BURST_BYTES_MIN, round(rate_mbit * 1e6 / 8 * BURST_S))
    return ["tbf", "rate", f"{round(rate_mbit * 1e6)}bit", "burst", f"{burst}b", "latency", f"{QUEUE_S * 1000:g}ms"]


def new_stem() -> str:
    """What the names of namespaces begin with that are made together."""
    return f"{PREFIX}{os.getpid()}-{next(_serial)}-"


def is_stale(name: str) -> bool:
    """Whether a namespace is one of ours whose process is gone."""
    process = name.removeprefix(PREFIX).partition("-")[0]
    return name.startswith(PREFIX) and process.isdigit() and not Path("/proc", process).exists()


def _join(machine: Machine, bridge: str, rate_mbit: float | None) -> None:
    """Lay the link between a machine and the bridge."""
    port = machine.port
    ip("link", "add", INTERFACE, "netns", machine.name, "type", "veth", "peer", "name", port, "netns", bridge)
    ip("-n", bridge, "link", "set", port, "master", BRIDGE, "up")
    ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", INTERFACE)
    ip("-n", machine.name, "link", "set", INTERFACE, "up")
    ip("-n", machine.name, "link", "set", "lo", "up")
    if rate_mbit is not None:
        for namespace, end in ((machine.name, INTERFACE), (bridge, port)):
            ip("-n", namespace, "link", "set", "dev", end, "gso_max_size", str(PIECE_BYTES))
            _call("tc", "-n", namespace, "qdisc", "add", "dev", end, "root", *shape(rate_mbit))


def choose_congestion_control(name: str) -> None:
    """For the network namespace of the calling thread. Raises `SettingsError` with what to do."""
    try:
        CONGESTION_FILE.write_text(name, encoding="ascii")
    except OSError as error:
        raise SettingsError(f"TCP cannot use {name} here: {_cure(name, error)}") from error


def _cure(name: str, error: OSError) -> str:
    """What the kernel means by its answer to the name of a congestion control."""
    if error.errno == errno.ENOENT:
        return f"this kernel does not have it (modprobe tcp_{name})"
    if error.errno == errno.EPERM:
        return f"this kernel keeps it from namespaces (add it to net.ipv4.{ALLOWED_CONGESTION_SETTING} with sysctl)"
    return f"{CONGESTION_FILE} cannot be written ({error.strerror}), which takes root outside of a container"


def add_namespace(stack: ExitStack, name: str) -> str:
    """It goes with the stack."""
    stack.callback(_remove, name)
    ip("netns", "add", name)
    return name


def _remove(name: str) -> None:
    """Its links go with it."""
    if (FOLDER / name).exists():
        ip("netns", "delete", name)


def remove_stale() -> None:
    """Remove what killed processes left."""
    for path in FOLDER.glob(f"{PREFIX}*"):
        if is_stale(path.name):
            _remove(path.name)


def ip(*words: str) -> None:
    """Call iproute2's ``ip``. Raises `SettingsError` with what it says."""
    _call("ip", *words)


def _call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S)
    if done.returncode:
        raise SettingsError(f"'{' '.join(words)}' failed: {done.stderr.strip()}")
