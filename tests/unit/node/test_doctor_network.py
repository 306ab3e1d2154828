"""Can this machine take part: port, daemon, seed, clock and route, each with what to do if not."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from understudy.node.dht.hivemind_dht import P2PD
from understudy.node.doctor.network import check_daemon, check_port, check_seed, judge_clock, judge_route

PEER = "QmQxVxhUUihSfFE2PnQWxQ8Nb3gpxuh8RaQVZ4n2MwaG2W"


def test_a_port_that_is_free_in_use_or_left_to_chance() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}"
        finding = check_port((taken,))
        assert finding.verdict == "bad"
        assert finding.text.endswith("in use by another program: stop it, or choose another port with --host-maddr")
    assert check_port((taken,)).verdict == "ok"
    assert check_port((taken,)).text.endswith(" is free")
    assert check_port(("/ip4/0.0.0.0/tcp/0",)).verdict == "note"
    finding = check_port(("/ip4/203.0.113.9/tcp/4001",))
    assert finding.verdict == "bad"
    assert "this machine has no address 203.0.113.9" in finding.text


def test_a_daemon_that_starts() -> None:
    finding = asyncio.run(check_daemon(P2PD, ("/ip4/127.0.0.1/tcp/0",)))
    assert finding.verdict == "ok"
    assert finding.text.startswith("p2pd started in ")


@pytest.mark.parametrize(
    ("binary", "text"), [("nothing", "No such file or directory; reinstall hivemind"), ("broken", "did not start")]
)
def test_a_daemon_that_does_not_start(binary: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "broken").chmod(0o755)
    finding = asyncio.run(check_daemon(tmp_path / binary, ("/ip4/127.0.0.1/tcp/0",)))
    assert finding.verdict == "bad"
    assert text in finding.text


def test_which_address_of_the_seed_answered() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        closed = f"/ip4/127.0.0.1/tcp/{gone.getsockname()[1]}"
    with socket.create_server(("127.0.0.1", 0)) as server:
        opened = f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}"
        finding = asyncio.run(check_seed([f"{closed}/p2p/{PEER}", f"{opened}/p2p/{PEER}"]))
        assert finding.verdict == "ok"
        assert finding.text.startswith(f"{opened} answered in ")
        assert finding.text.endswith(f" ms; {closed}: connection refused")
        finding = asyncio.run(check_seed([f"{closed}/p2p/{PEER}"]))
        assert finding.verdict == "bad"
        assert finding.text.startswith(f"{closed}: connection refused; check that the seed runs")
        assert finding.text.endswith("or take the join string that another node logged")


@pytest.mark.parametrize(
    ("offsets", "verdict", "text"),
    [
        ((0.02,), "ok", "0.02 s ahead of 1 peer"),
        ((-0.3, -0.1, -0.2), "ok", "0.20 s behind of 3 peers"),
        ((0.0, 0.1, 999.0), "ok", "0.10 s ahead of 3 peers"),
        ((1.5,), "note", "1.50 s ahead of 1 peer; beyond 3 s it is refused: let NTP keep the clock"),
        ((-9.0,), "bad", "9.00 s behind of 1 peer, 3 s are allowed: set the clock (for example with NTP)"),
        ((), "note", "no peer told the time: its offset is not known"),
    ],
)
def test_the_clock_against_the_peers(offsets: tuple[float, ...], verdict: str, text: str) -> None:
    finding = judge_clock(offsets)
    assert (finding.verdict, finding.text) == (verdict, text)


@pytest.mark.parametrize(
    ("connections", "verdict", "text"),
    [
        (("/ip4/198.51.100.7/tcp/4000",), "ok", "direct, to /ip4/198.51.100.7/tcp/4000"),
        (("/ip4/127.0.0.1/tcp/4000",), "ok", "on this machine, to /ip4/127.0.0.1/tcp/4000"),
        (("/ip4/198.51.100.7/tcp/1/p2p/R/p2p-circuit", "/ip4/198.51.100.8/tcp/2"), "ok", "direct, to"),
        (("/ip4/198.51.100.7/tcp/1/p2p/R/p2p-circuit",), "note", "through a relay (/ip4/198.51.100.7"),
        ((), "note", "libp2p keeps no connection to the seed: try again"),
    ],
)
def test_direct_or_relayed(connections: tuple[str, ...], verdict: str, text: str) -> None:
    finding = judge_route(connections)
    assert finding.verdict == verdict
    assert finding.text.startswith(text)
