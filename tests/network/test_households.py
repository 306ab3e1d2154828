"""The test network itself, with plain sockets: what its routers let through, what they lose, which ports they use."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import pytest

from benchmarks.links.machines import FOLDER, Machine, ip
from tests.network.households import PREFIX, Household, Internet, cut, open_internet

PORT = 4001
SILENCE_S = 0.4
"""For how long nobody answers. On one machine an answer takes a millisecond."""
TIMEOUT_S = 10.0
PUNCH_TIMEOUT_S = 10.0
"""A lost SYN is sent again after 1 s and after 3 s."""
PUNCH_SILENCE_S = 2.5
"""After the second SYN of each side."""


def from_port(port: int) -> socket.socket:
    """A socket of the calling thread's namespace that dials from this port, like others before it."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind(("", port))
    return found


@contextmanager
def door(machine: Machine) -> Iterator[socket.socket]:
    """Somebody who listens on `PORT` of a machine."""
    with machine.call(lambda: socket.create_server(("", PORT))) as listening:
        listening.settimeout(TIMEOUT_S)
        yield listening


def dial(machine: Machine, address: str, timeout_s: float, port: int = 0) -> socket.socket:
    """Connect from a machine to `PORT` of an address; 0: from any port. Raises `OSError`."""
    out = machine.call(partial(from_port, port))
    out.settimeout(timeout_s)
    try:
        out.connect((address, PORT))
    except OSError:
        out.close()
        raise
    return out


def seen_from(machine: Machine, public: Machine, stack: ExitStack, port: int = PORT) -> tuple[str, int]:
    """Where a public machine sees a connection from this port come from. Both ends stay open with the stack."""
    listening = stack.enter_context(door(public))
    stack.enter_context(dial(machine, public.address, TIMEOUT_S, port))
    came, seen = listening.accept()
    stack.enter_context(came)
    return str(seen[0]), int(seen[1])


def assert_silence(machine: Machine, address: str) -> None:
    """Neither an answer nor a refusal."""
    with pytest.raises(TimeoutError):
        dial(machine, address, SILENCE_S)


def assert_reached(machine: Machine, other: Machine) -> None:
    with door(other) as listening, dial(machine, other.address, TIMEOUT_S) as out:
        came, seen = listening.accept()
        with came:
            assert seen[0] == out.getsockname()[0] == machine.address


def punched(pairs: list[tuple[Machine, tuple[str, int]]], timeout_s: float) -> bool:
    """Dial from both sides at once, each to where the other was seen; whether one connection came of it."""
    with ExitStack() as stack:
        dialling = []
        for machine, target in pairs:
            out = stack.enter_context(machine.call(partial(from_port, PORT)))
            out.setblocking(False)
            assert out.connect_ex(target) == errno.EINPROGRESS
            dialling.append(out)
        deadline = time.monotonic() + timeout_s
        waiting = set(dialling)
        while waiting and (left := deadline - time.monotonic()) > 0:
            for done in select.select([], list(waiting), [], left)[1]:
                assert done.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, errno.ETIMEDOUT)
                waiting.remove(done)
        if waiting:
            return False
        dialling[0].sendall(b"through")
        dialling[1].settimeout(TIMEOUT_S)
        return dialling[1].recv(7) == b"through"


def try_to_punch(internet: Internet, first: Household, second: Household, timeout_s: float) -> bool:
    """Both learn from a public machine where they are seen, as from an observer or a relay."""
    observer = internet.public("observer")
    (one,), (other,) = first.machines, second.machines
    with ExitStack() as first_line, ExitStack() as second_line:
        seen_first = seen_from(one, observer, first_line)
        first_line.close()
        seen_second = seen_from(other, observer, second_line)
        second_line.close()
        return punched([(one, seen_second), (other, seen_first)], timeout_s)


def test_a_machine_at_home_reaches_a_public_one_and_is_seen_as_its_router(internet: Internet) -> None:
    public, home = internet.public("public"), internet.household("home")
    with ExitStack() as stack:
        address, _ = seen_from(home.machines[0], public, stack)
    assert address == home.address == "5.5.5.2"
    assert home.machines[0].address == "192.168.1.10"


def test_public_machines_reach_each_other_and_themselves(internet: Internet) -> None:
    one, other = internet.public("one"), internet.public("other")
    assert_reached(one, other)
    with door(one), dial(one, "127.0.0.1", TIMEOUT_S):
        pass


def test_nobody_outside_reaches_a_household(internet: Internet) -> None:
    """Not even one who has a route to the machines behind the router, nor on the port of a connection that is open."""
    public, other, home = internet.public("public"), internet.public("other"), internet.household("home")
    ip("-n", public.name, "route", "add", "192.168.1.0/24", "via", home.address)
    with ExitStack() as stack:
        stack.enter_context(door(home.machines[0]))
        assert seen_from(home.machines[0], other, stack, PORT + 1)[1] == PORT + 1
        assert_silence(public, home.machines[0].address)
        assert_silence(public, home.address)


def test_a_plain_router_keeps_the_port_for_all_and_a_symmetric_one_does_not(internet: Internet) -> None:
    """Three peers: one port for all of them is no accident."""
    publics = [internet.public(name) for name in ("one", "two", "three")]
    ports = {}
    for name, is_symmetric in (("plain", False), ("symmetric", True)):
        machine = internet.household(name, is_symmetric=is_symmetric).machines[0]
        with ExitStack() as stack:
            ports[name] = [seen_from(machine, public, stack)[1] for public in publics]
    assert ports["plain"] == [PORT] * 3
    assert len(set(ports["symmetric"])) > 1


def test_two_plain_households_meet_by_dialling_at_once(internet: Internet) -> None:
    assert try_to_punch(internet, internet.household("one"), internet.household("other"), PUNCH_TIMEOUT_S)


def test_nobody_meets_a_symmetric_household(internet: Internet) -> None:
    symmetric = internet.household("symmetric", is_symmetric=True)
    assert not try_to_punch(internet, internet.household("plain"), symmetric, PUNCH_SILENCE_S)


def test_two_machines_of_a_household_reach_each_other_directly(internet: Internet) -> None:
    one, other = internet.household("home", machines=2).machines
    assert_reached(one, other)


@pytest.mark.parametrize("what", ["public", "router", "machine"])
def test_who_is_cut_off_is_silent_and_comes_back(internet: Internet, what: str) -> None:
    public, home = internet.public("public"), internet.household("home", machines=2)
    dialler = internet.public("other") if what == "public" else home.machines[0]
    line = {"public": public, "router": home, "machine": home.machines[0]}[what]
    with door(public) as listening, dial(dialler, public.address, TIMEOUT_S) as out, ExitStack() as stack:
        came = stack.enter_context(listening.accept()[0])
        came.settimeout(SILENCE_S)
        with cut(line):
            out.sendall(b"lost, or late")
            with pytest.raises(TimeoutError):
                came.recv(1)
            assert_silence(dialler, public.address)
        came.settimeout(TIMEOUT_S)
        assert came.recv(13) == b"lost, or late"
        dial(dialler, public.address, TIMEOUT_S).close()


def test_a_household_that_is_cut_off_still_meets_at_home(internet: Internet) -> None:
    home = internet.household("home", machines=2)
    with cut(home):
        assert_reached(*home.machines)
    with cut(home.machines[1]), door(home.machines[1]):
        assert_silence(home.machines[0], home.machines[1].address)


@pytest.mark.parametrize("name", ["", "two words", "../up", "Upper", "a" * 17])
def test_a_name_that_is_none_is_refused(internet: Internet, name: str) -> None:
    with pytest.raises(ValueError, match="small letters"):
        internet.public(name)


def test_nothing_is_left_of_a_network(internet: Internet) -> None:
    """Of another one beside it, and after an interrupt."""
    before = namespaces()
    with suppress(KeyboardInterrupt), open_internet() as second:
        second.household("home", machines=2)
        assert namespaces() > before
        raise KeyboardInterrupt
    assert namespaces() == before


def test_what_a_killed_process_left_is_removed_by_the_next(internet: Internet) -> None:
    name = f"{PREFIX}999999999-0-home-10"
    subprocess.run(["ip", "netns", "add", name], check=True)
    with open_internet():
        assert not (FOLDER / name).exists()


def namespaces() -> set[str]:
    return {path.name for path in FOLDER.glob(f"{PREFIX}{os.getpid()}-*")}
