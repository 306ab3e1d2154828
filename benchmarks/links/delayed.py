"""Machines on links of a given rate and round trip: TUN devices, and the process that carries between them.

As benchmarks/links/namespaces.py, but instead of a bridge there is benchmarks/links/delay.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks.links.delay import Carried, Speed
from benchmarks.links.machines import (
    INTERFACE,
    Machine,
    add_namespace,
    choose_congestion_control,
    ip,
    new_stem,
    remove_stale,
)
from benchmarks.links.namespaces import CONGESTION_CONTROL, PIECE_BYTES, PREFIX, QUEUE_S, check_here
from understudy.protocol.errors import SettingsError

DEVICE = Path("/dev/net/tun")
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUN_WITH_VIRTIO_HEADER = 0x0001 | 0x1000 | 0x4000
"""IFF_TUN, IFF_NO_PI, IFF_VNET_HDR."""
UNCUT = 0x01 | 0x02 | 0x04
"""TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6: we take what TCP sends before it is cut, and without checksums."""
UNCUT_DATAGRAMS = UNCUT | 0x20 | 0x40
"""And TUN_F_USO4, TUN_F_USO6, which kernels before 6.2 do not have."""
TCP_SETTINGS = {
    "tcp_rmem": "4096 131072 6291456",
    "tcp_wmem": "4096 16384 4194304",
    "tcp_no_metrics_save": "1",
}
"""Linux's own limits, whatever this machine has; and no connection begins with what an earlier one learned, or who is
measured first would help who comes next."""
END_TIMEOUT_S = 10.0


@contextmanager
def open_delayed_links(
    machines: int,
    rate_mbit: float,
    round_trip_ms: float,
    congestion_control: str = CONGESTION_CONTROL,
    tell: Callable[[Carried], None] = lambda carried: None,
) -> Iterator[list[Machine]]:
    """So many machines on links of this rate in each direction, as far from each other as a round trip says.

    A direction's queue holds one round trip, and `QUEUE_S` at least. ``tell`` is told in the end what was carried.
    Removed again in the end, as `open_links` does. Raises `SettingsError` if this cannot be had here.
    """
    check_here()
    remove_stale(PREFIX)
    delay_s = round_trip_ms / 2000
    speed = Speed(rate_mbit * 1e6 / 8, delay_s, max(QUEUE_S, 2 * delay_s))
    with ExitStack() as stack:
        stem = new_stem(PREFIX)
        names = [add_namespace(stack, f"{stem}{number}") for number in range(1, machines + 1)]
        found = [Machine(name, f"10.77.0.{number}") for number, name in enumerate(names, start=1)]
        handles = [machine.call(partial(_open_device, machine)) for machine in found]
        try:
            for machine in found:
                choose_congestion_control(machine, congestion_control)
                machine.call(_set_tcp)
            process = _start(found, handles, speed)
        finally:
            for handle in handles:
                os.close(handle)
        stack.callback(_end, process, tell)
        yield found


def _open_device(machine: Machine) -> int:
    """Make the machine's device in the namespace of the calling thread; it goes when its handle is closed."""
    try:
        handle = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SettingsError(f"{DEVICE} cannot be opened ({error.strerror}): modprobe tun, as root") from error
    try:
        fcntl.ioctl(handle, TUNSETIFF, struct.pack("16sH14x", INTERFACE.encode(), TUN_WITH_VIRTIO_HEADER))
        try:
            fcntl.ioctl(handle, TUNSETOFFLOAD, UNCUT_DATAGRAMS)
        except OSError:
            fcntl.ioctl(handle, TUNSETOFFLOAD, UNCUT)
        for words in (
            ("address", "add", f"{machine.address}/24", "dev", INTERFACE),
            ("link", "set", "dev", INTERFACE, "gso_max_size", str(PIECE_BYTES)),
            ("link", "set", "dev", INTERFACE, "up"),
            ("link", "set", "dev", "lo", "up"),
        ):
            ip("-n", machine.name, *words)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _set_tcp() -> None:
    """For the network namespace of the calling thread."""
    for name, value in TCP_SETTINGS.items():
        try:
            Path("/proc/sys/net/ipv4", name).write_text(value, encoding="ascii")
        except OSError as error:
            raise SettingsError(f"net.ipv4.{name} cannot be set in a namespace here: {error.strerror}") from error


def _start(machines: Sequence[Machine], handles: Sequence[int], speed: Speed) -> subprocess.Popen[bytes]:
    """It ends when its standard input does: with us, however we end. Its devices go with it."""
    addresses = [list(socket.inet_aton(machine.address)) for machine in machines]
    settings = json.dumps({"handles": list(handles), "addresses": addresses, "speed": asdict(speed)})
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.links.delay", settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=handles,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes], tell: Callable[[Carried], None]) -> None:
    """Raises `RuntimeError` if it had ended before: the links were gone."""
    try:
        said, failure = process.communicate(timeout=END_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise RuntimeError(f"what carries between the links failed: {failure.decode(errors='replace').strip()}")
    tell(Carried(**json.loads(said)))
