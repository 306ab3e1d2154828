"""An internet of network namespaces: public machines, and households behind routers that translate addresses.

All public addresses are on one bridge. A router is a namespace with a line to it, and a bridge of its own for the
machines at home. As at most homes it answers nothing that was not asked for from inside: what comes from outside
unasked is dropped, not refused, for a hole cannot be punched through a router that refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks.links.machines import (
    BRIDGE,
    INTERFACE,
    Machine,
    add_bridge,
    add_namespace,
    check_programs,
    choose_congestion_control,
    command,
    ip,
    join,
    new_stem,
    remove_stale,
)

PREFIX = "understudy-net-"
NAME = re.compile(r"[a-z][a-z0-9]{0,15}")
"""What a machine or a household may be called: it becomes a part of the names of namespaces."""
PUBLIC = "5.5.5."
HOME = "192.168."
FIRST_AT_HOME = 10
ADDRESSES_MAX = 254
"""In a network of 256."""
CONGESTION_CONTROL = "reno"
"""The one that every kernel has, and lets namespaces use."""
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
"""Where it is 1, what one machine at home sends to another passes the rules of the router. Not every kernel has it."""

RULES = f"""
*nat
-A POSTROUTING -o {INTERFACE} -j MASQUERADE{{how}}
COMMIT
*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
-A INPUT -i {INTERFACE} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A INPUT -i {INTERFACE} -j DROP
-A FORWARD -i {BRIDGE} -o {INTERFACE} -j ACCEPT
-A FORWARD -i {INTERFACE} -o {BRIDGE} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
COMMIT
"""
"""Of a router, for iptables-restore. ``MASQUERADE`` keeps the port of the sender where it can; with ``--random-fully``
each connection has another one outside, so that nobody can be told where to dial."""


@dataclass(frozen=True, slots=True)
class Household:
    """A router and the machines behind it."""

    router: Machine
    """Its address is what others see of all machines at home."""
    machines: tuple[Machine, ...]
    is_symmetric: bool

    @property
    def address(self) -> str:
        """The public one."""
        return self.router.address


class Internet:
    """The public side, and what is joined to it. All of it goes with the stack."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._stem = new_stem(PREFIX)
        self._public, self._homes = count(1), count(1)
        self._hub = add_namespace(stack, f"{self._stem}hub-{BRIDGE}")
        add_bridge(self._hub)

    def public(self, name: str) -> Machine:
        """A machine that everybody can dial. Raises `SettingsError` if there is one of that name."""
        address = f"{PUBLIC}{_bounded(next(self._public))}"
        return self._machine(Machine(self._namespace(name), address, self._hub))

    def household(self, name: str, *, is_symmetric: bool = False, machines: int = 1) -> Household:
        """A router and so many machines behind it, at 192.168.K.10 and up."""
        router = self.public(name)
        home = f"{HOME}{_bounded(next(self._homes))}."
        router.call(partial(_route, router, f"{home}1", is_symmetric))
        numbers = range(FIRST_AT_HOME, _bounded(FIRST_AT_HOME + machines))
        return Household(router, tuple(self._at_home(router, home, number) for number in numbers), is_symmetric)

    def _at_home(self, router: Machine, home: str, number: int) -> Machine:
        namespace = add_namespace(self._stack, f"{router.name}-{number}")
        machine = self._machine(Machine(namespace, f"{home}{number}", router.name))
        ip("-n", machine.name, "route", "add", "default", "via", f"{home}1")
        return machine

    def _namespace(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r}: a name has up to 16 small letters and digits and begins with a letter")
        return add_namespace(self._stack, f"{self._stem}{name}")

    def _machine(self, machine: Machine) -> Machine:
        join(machine)
        choose_congestion_control(machine, CONGESTION_CONTROL)
        return machine


@contextmanager
def open_internet() -> Iterator[Internet]:
    """One with nobody in it yet.

    Removed again in the end, whatever happens. What a killed process left is removed at the next start. Raises
    `SettingsError` if this cannot be had here.
    """
    check_here()
    remove_stale(PREFIX)
    with ExitStack() as stack:
        yield Internet(stack)


@contextmanager
def cut(line: Machine | Household) -> Iterator[None]:
    """Cut a machine, or a whole household, off from all others, silently.

    What is sent is lost, and nobody is told: ARP goes on, or the kernel would say "no route to host" after a while.
    """
    machine = line.router if isinstance(line, Household) else line
    rules = [
        (chain, "-p", "!", "ARP", side, machine.port, "-j", "DROP")
        for chain, side in (("INPUT", "-i"), ("FORWARD", "-i"), ("FORWARD", "-o"), ("OUTPUT", "-o"))
    ]
    with ExitStack() as heal:
        for rule in rules:
            _bridge_rule(machine.hub, "-A", *rule)
            heal.callback(_bridge_rule, machine.hub, "-D", *rule)
        yield


def check_here() -> None:
    """Raises `SettingsError` with what is missing, and how to get it."""
    check_programs("ip", "iptables", "iptables-restore", "ebtables-nft")


def _route(router: Machine, inside: str, is_symmetric: bool) -> None:
    """Make the namespace of the calling thread a router."""
    add_bridge(router.name)
    ip("-n", router.name, "address", "add", f"{inside}/24", "dev", BRIDGE)
    if BRIDGED.exists():
        BRIDGED.write_text("0", encoding="ascii")
    command("iptables-restore", text=RULES.format(how=" --random-fully" if is_symmetric else ""))
    FORWARDING.write_text("1", encoding="ascii")


def _bridge_rule(hub: str, *words: str) -> None:
    command("ip", "netns", "exec", hub, "ebtables-nft", *words)


def _bounded(number: int) -> int:
    if number > ADDRESSES_MAX:
        raise ValueError(f"a network of the test has at most {ADDRESSES_MAX} addresses")
    return number
