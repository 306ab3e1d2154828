"""What this machine's own sockets tell: its address towards others, and the port that a connection comes from."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from pathlib import Path

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
"""The TCP connections of this network namespace, as Linux lists them (man 5 proc)."""
ELSEWHERE = ("192.0.2.1", "2001:db8::1")
"""Stand for any host: addresses of documentation, to which the default route leads."""
_DISCARD_PORT = 9


def own_hosts(towards: Iterable[str]) -> tuple[str, ...]:
    """The addresses of this machine that it would speak from to these hosts, and to any other. Sends nothing.

    A host that is a name, or that no route leads to, is left out.
    """
    found = [_own_host(host) for host in (*towards, *ELSEWHERE)]
    return tuple(dict.fromkeys(host for host in found if host))


def _own_host(towards: str) -> str:
    """Connecting a UDP socket only chooses a route and an address."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(towards).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((towards, _DISCARD_PORT))
            return str(probe.getsockname()[0])
    except (OSError, ValueError):
        return ""


def is_this_machine(host: str) -> bool:
    """Whether an IP address is one of this machine's own: it would speak to itself from there."""
    return ipaddress.ip_address(host).is_loopback or _own_host(host) == host


def dials_from(port: int, host: str, remote_port: int) -> bool:
    """Whether a connection from this port to that one of a host is open; also if the system does not tell.

    libp2p dials from its listening port, unless an earlier connection of the same ports is still waiting to be
    forgotten, as after a restart. Only of the listening port a peer can say where our router puts it.
    """
    try:
        rows = [row for table in TABLES for row in table.read_text(encoding="ascii").splitlines()[1:]]
    except OSError:
        return True
    return port in local_ports(rows, host, remote_port)


def local_ports(rows: Iterable[str], host: str, remote_port: int) -> set[int]:
    """The ports here of all connections to that port of the host. ``rows``: of `TABLES`, without their heads."""
    remote = f"{_table_spelling(host)}:{remote_port:04X}"
    found = set()
    for row in rows:
        fields = row.split()
        if len(fields) > 2 and fields[2] == remote:
            found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def _table_spelling(host: str) -> str:
    """Hexadecimal, each word of 32 bits with its lowest byte first."""
    packed = ipaddress.ip_address(host).packed
    return "".join(packed[start : start + 4][::-1].hex() for start in range(0, len(packed), 4)).upper()
