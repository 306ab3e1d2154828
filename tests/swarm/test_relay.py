"""A relay of ours carries what it promises, is tried before it says so, and leaves nothing of the try."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from benchmarks.links.machines import Machine
from benchmarks.links.namespaces import open_links
from tests.swarm.processes import Brood
from understudy.node.dht import p2p_node
from understudy.node.dht.config import SwarmConfig
from understudy.node.dht.hivemind_dht import P2PD
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.p2p import daemon as daemon_module
from understudy.node.p2p import relay as relay_module
from understudy.node.p2p import streams as streams_module
from understudy.node.p2p.daemon import Daemon, DaemonSettings
from understudy.node.p2p.identity import Identity
from understudy.node.p2p.relay import check_relay, listening_addresses, start_daemon
from understudy.node.p2p.relay_limits import RelayLimits
from understudy.node.p2p.streams import StreamHost, Way
from understudy.protocol.errors import SettingsError
from understudy.protocol.ids import PeerId

BUILT_IN = "reno"
"""The one congestion control that every Linux kernel has, and lets everybody use."""
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
CARRIED_BYTES = 500_000_000
"""Some minutes of a relayed stage."""
CHUNK_BYTES = 1 << 20
START_TIMEOUT_S = 10.0
TEST_TIMEOUT_S = 120.0
PROTOCOL = "/understudy/test-relay/1"
TIGHT = RelayLimits(data_bytes=64 * 1024)
"""As libp2p's own limits do, it ends a circuit long before a try has passed."""


@pytest.fixture(autouse=True)
def _ours(brood: Brood, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process of this test is left, nor a socket: they have a folder of their own, with a short name."""
    brood.include_us(monkeypatch)
    with tempfile.TemporaryDirectory(prefix="relay-", dir="/tmp") as name:
        for module in (daemon_module, streams_module):
            monkeypatch.setattr(module, "SOCKET_FOLDER", Path(name))
        yield
        assert list(Path(name).iterdir()) == []
    assert brood.processes() == []


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """Three on one network. They take root and iproute2; without them a test is skipped, but not in CI."""
    with ExitStack() as stack:
        try:
            found = stack.enter_context(open_links(3, None, BUILT_IN))
        except SettingsError as error:
            if os.environ.get("CI", "").lower() in ("1", "true"):
                pytest.fail(str(error))
            pytest.skip(str(error))
        yield found


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await main

    uvloop.run(bounded())


def script(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(("#!/bin/sh", *lines, "")), encoding="utf-8")
    path.chmod(0o755)
    return path


def p2pd_at(machine: Machine, folder: Path) -> Path:
    """p2pd as a program that runs on this machine."""
    return script(folder / machine.name, f'exec ip netns exec {machine.name} {P2PD} "$@"')


def noted_p2pd(folder: Path, tight_starts: int) -> tuple[Path, Path]:
    """p2pd whose limits do not hold when it is started to relay, so many times; and the file that notes each start."""
    notes = folder / "starts"
    program = script(
        folder / "noted-p2pd",
        f'echo "$@" >>{notes}',
        f'[ $(grep -c relayService=1 {notes}) -gt {tight_starts} ] || set -- "$@" -relayDataLimit={TIGHT.data_bytes}',
        f'exec {P2PD} "$@"',
    )
    return program, notes


def relay_starts(notes: Path) -> list[bool]:
    """Of each start of the daemon that is to relay whether it should; the throw-away daemons are no DHT servers."""
    starts = [line for line in notes.read_text(encoding="utf-8").splitlines() if "-dhtServer" in line]
    return ["-relayService=1" in line for line in starts]


def settings(binary: Path = P2PD, host: str = LOOPBACK, limits: RelayLimits | None = RelayLimits()) -> DaemonSettings:  # noqa: B008
    return DaemonSettings(
        binary, None, (host,), uses_nat_port_map=False, uses_auto_nat=False, is_dht_server=True, relay_limits=limits
    )


@asynccontextmanager
async def running(wanted: DaemonSettings) -> AsyncIterator[Daemon]:
    found = await Daemon.start(wanted, START_TIMEOUT_S)
    try:
        yield found
    finally:
        await found.stop()


@asynccontextmanager
async def streams_of(daemon: Daemon) -> AsyncIterator[StreamHost]:
    host = StreamHost(daemon)
    try:
        yield host
    finally:
        await host.close()


async def carried(machines: list[Machine], folder: Path, limits: RelayLimits) -> int:
    """So many of `CARRIED_BYTES` come from the third machine to the second through a relay on the first."""
    programs = [p2pd_at(machine, folder) for machine in machines]
    hosts = [machine.place.listen for machine in machines]
    received = 0
    is_over = asyncio.Event()

    async def count(_: PeerId, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        nonlocal received
        with suppress(OSError):
            while chunk := await reader.read(1 << 16):
                received += len(chunk)
        is_over.set()

    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(running(settings(programs[0], hosts[0], limits)))
        address = f"{listening_addresses(relay.process_id)[0]}/p2p/{relay.peer_id}"
        assert address.startswith(f"/ip4/{machines[0].address}/tcp/")
        plain = replace(settings(programs[1], hosts[1], None), is_dht_server=False)
        reserving = replace(plain, relay_maddrs=(address,), is_private=True)
        private = await stack.enter_async_context(running(reserving))
        dialling = await stack.enter_async_context(running(replace(plain, binary=programs[2], host_maddrs=(hosts[2],))))
        server = await stack.enter_async_context(streams_of(private))
        client = await stack.enter_async_context(streams_of(dialling))
        await server.serve(PROTOCOL, count)
        await relay_module.reach(client, private.peer_id, f"{address}/p2p-circuit/p2p/{private.peer_id}")
        _, writer = await client.open(Way(private.peer_id), PROTOCOL, START_TIMEOUT_S)
        with suppress(OSError):
            for at in range(0, CARRIED_BYTES, CHUNK_BYTES):
                writer.write(bytes(min(CHUNK_BYTES, CARRIED_BYTES - at)))
                await writer.drain()
            writer.close()
            await writer.wait_closed()
        await is_over.wait()
    return received


def test_a_relay_carries_far_more_than_libp2p_would_let_it(machines: list[Machine], tmp_path: Path) -> None:
    async def main() -> None:
        assert await carried(machines, tmp_path, RelayLimits()) == CARRIED_BYTES

    run(main())


def test_a_circuit_is_cut_at_the_limit(machines: list[Machine], tmp_path: Path) -> None:
    """So the test above goes through the relay, and would see a limit."""

    async def main() -> None:
        assert await carried(machines, tmp_path, TIGHT) < CARRIED_BYTES

    run(main())


def test_a_node_with_an_address_relays_unless_it_is_told_not_to(
    machines: list[Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It announces an address that nobody here can dial, and is tried at the one where it listens."""
    monkeypatch.setattr(p2p_node, "P2PD", p2pd_at(machines[0], tmp_path))
    config = SwarmConfig(announce_maddrs=("/ip4/5.5.5.5/tcp/4001",))
    identity = Identity.load_or_create(tmp_path / "node.key")

    async def relays(config: SwarmConfig) -> bool:
        async with P2PNode.open(config, identity) as p2p:
            return p2p.relays

    async def main() -> None:
        assert await relays(config)
        assert not await relays(replace(config, may_relay=False))

    run(main())


def test_a_relay_whose_limits_did_not_hold_is_found() -> None:
    async def main() -> None:
        async with running(settings(limits=TIGHT)) as relay:
            assert await check_relay(P2PD, relay) is not None
        async with running(settings()) as relay:
            assert await check_relay(P2PD, relay) is None

    run(main())


def test_a_relay_whose_limits_did_not_hold_is_started_again(tmp_path: Path) -> None:
    program, notes = noted_p2pd(tmp_path, tight_starts=1)

    async def main() -> None:
        daemon, relays = await start_daemon(settings(program), START_TIMEOUT_S)
        await daemon.stop()
        assert relays

    run(main())
    assert relay_starts(notes) == [True, True]


def test_a_node_goes_on_without_relaying_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program, notes = noted_p2pd(tmp_path, tight_starts=100)

    async def main() -> None:
        daemon, relays = await start_daemon(settings(program), START_TIMEOUT_S)
        await daemon.stop()
        assert not relays

    with caplog.at_level(logging.WARNING):
        run(main())
    assert relay_starts(notes) == [True, True, False]
    assert [record.message for record in caplog.records if "does not relay" in record.message]


def test_a_relay_that_dies_while_it_is_tried_is_no_use(brood: Brood) -> None:
    async def main() -> None:
        async with running(settings()) as relay, asyncio.TaskGroup() as group:
            objection = group.create_task(check_relay(P2PD, relay))
            await daemons(brood, 3)
            psutil.Process(relay.process_id).kill()
            assert await objection is not None

    run(main())


def test_a_try_that_is_broken_off_leaves_nothing(brood: Brood) -> None:
    """What is left is looked at after the test."""

    async def main() -> None:
        starting = asyncio.create_task(start_daemon(settings(), START_TIMEOUT_S))
        await daemons(brood, 3)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    run(main())


async def daemons(brood: Brood, number: int) -> None:
    """Wait until so many run."""
    while True:
        if len(brood.processes()) >= number:
            return
        await asyncio.sleep(0.01)
