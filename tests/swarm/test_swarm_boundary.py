"""The boundary to hivemind, against the real thing on loopback."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from understudy.node.dht import hivemind_dht as boundary
from understudy.node.dht import p2p_node, reconnect
from understudy.node.dht.config import SwarmConfig, reader_config
from understudy.node.dht.hivemind_dht import dht_time
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.dht.signing import RECORD_VALUE_BYTES_MAX
from understudy.node.p2p.daemon import SOCKET_FOLDER, processors, sweep_stale_sockets
from understudy.node.p2p.identity import Identity
from understudy.protocol.errors import LocalProtocolError, NetworkError, PeerRefusedError, RemoteProtocolError
from understudy.protocol.ids import PeerId

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
TEST_TIMEOUT_S = 60.0

# A peer in a process of its own: argv is the seed's address, the key file and seconds of clock skew.
PEER_PROGRAM = """
import sys, time
real_time, skew_s = time.time, float(sys.argv[3])
time.time = lambda: real_time() + skew_s
import asyncio, pathlib
from understudy.node.p2p.identity import Identity
from understudy.node.dht.config import SwarmConfig
from understudy.node.dht.hivemind_dht import quiet_libraries
from understudy.node.dht.p2p_node import P2PNode
from understudy.protocol.errors import NetworkError

async def echo(peer, reader, writer):
    while chunk := await reader.read(65536):
        writer.write(chunk)

async def main():
    quiet_libraries(is_verbose=False)
    config = SwarmConfig(("/ip4/127.0.0.1/tcp/0",), initial_peers=(sys.argv[1],))
    try:
        async with P2PNode.open(config, Identity.load_or_create(pathlib.Path(sys.argv[2]))) as p2p:
            await p2p.serve_streams("echo", echo)
            print(p2p.peer_id, flush=True)
            await asyncio.Event().wait()
    except NetworkError as error:
        print("refused:", error, flush=True)

asyncio.run(main())
"""


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a test in a loop of its own, with a deadline, and find no child process after it."""

    async def bounded() -> None:
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await main

    uvloop.run(bounded())
    gc.collect()  # what is left unclosed must show in this test, not in a later one
    assert daemons() == []


def daemons() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.name() == "p2pd"]


@asynccontextmanager
async def opened(folder: Path, name: str, *initial_peers: str) -> AsyncIterator[P2PNode]:
    identity = Identity.load_or_create(folder / f"{name}.key")
    async with P2PNode.open(SwarmConfig(LOOPBACK, initial_peers=initial_peers), identity) as p2p:
        yield p2p


@asynccontextmanager
async def pair(folder: Path) -> AsyncIterator[tuple[P2PNode, P2PNode]]:
    async with opened(folder, "a") as a, opened(folder, "b", *a.addresses) as b:
        yield a, b


@asynccontextmanager
async def peer_process(folder: Path, seed: str, skew_s: float = 0.0) -> AsyncIterator[tuple[int, str]]:
    """Process id and first line of output of a peer that echoes."""
    arguments = ("-W", "ignore", "-c", PEER_PROGRAM, seed, str(folder / "process.key"), str(skew_s))
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process.pid, (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.01)


async def echo(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(peer.encode())
    while chunk := await reader.read(65536):
        writer.write(chunk)


@contextmanager
def raises_one_line(kind: type[NetworkError], pattern: str) -> Iterator[pytest.ExceptionInfo[NetworkError]]:
    with pytest.raises(kind, match=pattern) as raised:
        yield raised
    assert "\n" not in str(raised.value)


def test_a_reader_reads_all_and_is_known_to_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (a, b):
            expiration = dht_time() + 20
            assert await a.store("key", "", b"value", expiration)
            async with P2PNode.open(reader_config(b.addresses), Identity.generate()) as reader:
                (record,) = await reader.get("key")
                assert (record.owner, record.value, record.expiration) == (a.peer_id, b"value", expiration)
                with pytest.raises(LocalProtocolError, match="by a reader"):
                    await reader.store("key", "", b"mine", expiration)
                assert [len(peer._dht.node.protocol.routing_table.peer_id_to_uid) for peer in (a, b)] == [1, 1]
                assert b.peer_id in {str(peer) for peer in reader._dht.node.protocol.routing_table.peer_id_to_uid}
                assert list(reader._dht.node.protocol.storage.data) == []

    run(main())


def test_a_record_and_its_update_are_seen_by_others_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (a, b), opened(tmp_path, "c", *a.addresses) as c:
            later = dht_time() + 20
            for version in (b"one", b"two", b"three"):
                later += 1
                assert await b.store("key", "", version, later)
                for reader in (a, b, c):
                    records = await reader.get("key")
                    assert [(r.owner, r.subkey, r.value, r.expiration) for r in records] == [
                        (b.peer_id, "", version, later)
                    ]
            assert not await b.store("key", "", b"an earlier expiration is refused", later - 1)
            assert await a.store("key", "", b"of a", later)
            found = await c.get_many(["key", "nothing here"])
            assert {record.owner for record in found["key"]} == {a.peer_id, b.peer_id}
            assert found["nothing here"] == []

    run(main())


def test_a_replica_that_missed_an_update_does_not_answer_from_its_own_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (a, b), opened(tmp_path, "c", *a.addresses):
            assert await b.store("key", "", b"old", dht_time() + 20)
            monkeypatch.setattr(a._dht.node.protocol.storage, "store_subkey", lambda *_: False)
            assert await b.store("key", "", b"new", dht_time() + 30)
            assert [record.value for record in await a.get("key")] == [b"new"]

    run(main())


def test_a_record_is_gone_when_it_expires(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (a, b):
            assert await b.store("key", "", b"short", dht_time() + 0.5)
            assert await a.get("key")
            await until(lambda: _is_empty(a, "key"), timeout_s=2.0)

    run(main())


async def _is_empty(p2p: P2PNode, key: str) -> bool:
    return await p2p.get(key) == []


def test_a_signed_record_that_cannot_be_unpacked_hides_no_other(tmp_path: Path) -> None:
    """Whoever signs may write what it likes, and every peer stores it."""

    async def main() -> None:
        async with pair(tmp_path) as (a, b):
            expiration = dht_time() + 20
            assert await a.store("key", "", b"value", expiration)
            key, subkey = type(a._dht.node.node_id).generate("key"), b._dht.validator.tagged("x")
            protocol = a._dht.node.protocol
            record = boundary.DHTRecord(key.to_bytes(), protocol.serializer.dumps(subkey), b"\xc4\x09cut", expiration)
            signed = b._dht.validator.sign_value(record)
            assert protocol.storage.store_subkey(key, subkey, signed, expiration)
            for reader in (a, b):
                assert [record.value for record in await reader.get("key")] == [b"value"]

    run(main())


@pytest.mark.filterwarnings("ignore:path is deprecated")  # in hivemind's P2P.create
def test_unsigned_and_forged_records_are_neither_stored_nor_returned(tmp_path: Path) -> None:
    """A stranger runs hivemind without our validator, so it stores and returns whatever it likes."""

    async def main() -> None:
        async with pair(tmp_path) as (a, b), stranger(a.addresses) as dht:
            expiration = dht_time() + 60
            tag_of_b = b._dht.validator.tagged("")
            forgeries = (b"unsigned", b"x" + tag_of_b, tag_of_b, b"[owner:ssh-rsa AAAA]", None)
            for seconds, subkey in enumerate(forgeries):
                await dht.store("key", b"forged", expiration + seconds, subkey=subkey)
                assert (await dht.get("key", latest=True)) is not None
                assert await a.get("key") == []
            assert await b.store("key", "", b"genuine", dht_time() + 20)
            for reader in (a, b):
                assert [record.value for record in await reader.get("key")] == [b"genuine"]

    run(main())


@asynccontextmanager
async def stranger(initial_peers: tuple[str, ...]) -> AsyncIterator[Any]:
    p2p = await boundary.P2P.create(initial_peers=list(initial_peers), nat_port_map=False)
    dht = await boundary.DHTNode.create(p2p=p2p, initial_peers=list(initial_peers))
    try:
        yield dht
    finally:
        await dht.shutdown()
        await p2p.shutdown()


def test_what_is_too_large_is_not_published(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, "a") as a:
            with pytest.raises(LocalProtocolError, match="too large"):
                await a.store("key", "", bytes(RECORD_VALUE_BYTES_MAX + 1), dht_time() + 10)
            with pytest.raises(LocalProtocolError, match="too large"):
                await a.store("key", "x" * 65, b"", dht_time() + 10)

    run(main())


def test_a_stream_carries_bytes_and_the_peer_id_of_its_opener(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (a, b), opened(tmp_path, "c", *a.addresses) as c:
            await c.serve_streams("echo", echo)
            with pytest.raises(LocalProtocolError):
                await c.serve_streams("echo", echo)
            reader, writer = await b.open_stream(c.peer_id, "echo", 5.0)
            writer.write(b"x" * 300_000)
            expected = b.peer_id.encode() + b"x" * 300_000
            assert await reader.readexactly(len(expected)) == expected
            writer.close()
            with raises_one_line(PeerRefusedError, "does not serve"):
                await b.open_stream(c.peer_id, "unknown", 5.0)
            with raises_one_line(NetworkError, "no address"):
                await b.open_stream(Identity.generate().peer_id, "echo", 5.0)

    run(main())


def test_a_failing_callback_costs_the_stream_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise KeyError(await reader.read(1))

    async def main() -> None:
        async with pair(tmp_path) as (a, b):
            await b.serve_streams("fail", fail)
            for _ in range(2):
                reader, writer = await a.open_stream(b.peer_id, "fail", 5.0)
                writer.write(b"x")
                assert await reader.read() == b""
                writer.close()

    run(main())
    assert caplog.text.count("the callback of a stream failed") == 2


def test_a_rule_that_we_broke_ourselves_ends_whoever_watches(tmp_path: Path) -> None:
    """A peer's fault is only the stream's: it is read and forgotten."""
    errors: list[Exception] = [NetworkError("cut"), RemoteProtocolError("theirs"), LocalProtocolError("made up")]

    async def fail(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise errors.pop(0)

    async def main() -> None:
        async with pair(tmp_path) as (a, b):
            await b.serve_streams("fail", fail)
            while errors:
                assert not b._daemon._child.trouble.done()
                reader, writer = await a.open_stream(b.peer_id, "fail", 5.0)
                assert await reader.read() == b""
                writer.close()
            with raises_one_line(LocalProtocolError, "made up"):
                async with asyncio.timeout(5.0):
                    await b.watch_daemon()

    run(main())


def test_a_closed_peer_refuses_and_a_stream_to_it_ends(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, "a") as a:
            async with opened(tmp_path, "b", *a.addresses) as b:
                await b.serve_streams("echo", echo)
                reader, writer = await a.open_stream(b.peer_id, "echo", 5.0)
            assert await reader.read() == a.peer_id.encode()
            writer.close()
            for _ in range(2):  # the second time p2pd only says that it backs off
                with raises_one_line(PeerRefusedError, "is gone"):
                    await a.open_stream(b.peer_id, "echo", 5.0)

    run(main())


def test_a_stopped_process_is_silent_and_a_killed_one_refuses(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, "a") as a, peer_process(tmp_path, a.addresses[0]) as (process_id, name):
            peer = PeerId(name)
            reader, writer = await a.open_stream(peer, "echo", 5.0)

            os.kill(process_id, signal.SIGSTOP)
            with raises_one_line(NetworkError, "did not answer") as raised:
                await a.open_stream(peer, "echo", 0.5)
            assert not isinstance(raised.value, PeerRefusedError)

            os.kill(process_id, signal.SIGKILL)
            killed_at = time.monotonic()
            assert await reader.read() == b""
            writer.close()
            with raises_one_line(PeerRefusedError, "is gone"):
                await a.open_stream(peer, "echo", 5.0)
            assert time.monotonic() - killed_at < 2.0

    run(main())
    sweep_stale_sockets(older_than_s=0)


def test_a_clock_that_differs_is_named_with_the_difference(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, "a") as a, peer_process(tmp_path, a.addresses[0], skew_s=40.0) as (_, line):
            found = re.search(r"^refused: this machine's clock differs from the swarm's by ([0-9.]+) s: set the", line)
            assert found is not None, line
            assert float(found[1]) == pytest.approx(40.0, abs=3.0)

    run(main())


def test_an_unreachable_seed_is_named_with_the_reason(tmp_path: Path) -> None:
    async def main() -> None:
        peer = Identity.generate().peer_id
        with socket.create_server(("127.0.0.1", 0)) as server:
            closed = f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}/p2p/{peer}"
        with raises_one_line(NetworkError, f"cannot reach the seed at {closed}: connection refused; check"):
            async with opened(tmp_path, "a", closed):
                pass
        with raises_one_line(NetworkError, r"the name no-such-host\.invalid cannot be resolved"):
            async with opened(tmp_path, "a", f"/dns4/no-such-host.invalid/tcp/1/p2p/{peer}"):
                pass

    run(main())


def test_a_seed_with_another_peer_id_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, "a") as a:
            address = a.addresses[0].replace(a.peer_id, Identity.generate().peer_id)
            with raises_one_line(NetworkError, "not the peer with that PeerID"):
                async with opened(tmp_path, "b", address):
                    pass

    run(main())


def test_one_reachable_seed_is_enough_and_a_late_one_is_waited_for(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        identity = Identity.load_or_create(tmp_path / "late.key")
        address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{identity.peer_id}"
        config = SwarmConfig(LOOPBACK, initial_peers=(address,), join_patience_s=20.0)
        early = Identity.load_or_create(tmp_path / "early.key")
        is_joined = asyncio.Event()

        async def join_early() -> None:
            async with P2PNode.open(config, early) as p2p:
                assert await p2p.store("key", "", b"here", dht_time() + 20)
                is_joined.set()
                await asyncio.Event().wait()

        async with asyncio.TaskGroup() as group:
            joining = group.create_task(join_early())
            async with P2PNode.open(SwarmConfig((f"/ip4/127.0.0.1/tcp/{port}",)), identity) as late:
                await is_joined.wait()
                async with opened(tmp_path, "c", address.replace(str(port), "9"), address) as c:
                    assert [record.owner for record in await c.get("key")] == [early.peer_id]
                assert [record.owner for record in await late.get("key")] == [early.peer_id]
                joining.cancel()

    run(main())


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, "a") as a:
            listening = a.addresses[0].partition("/p2p/")[0]
            identity = Identity.load_or_create(tmp_path / "b.key")
            with raises_one_line(NetworkError, "is in use by another program"):
                async with P2PNode.open(SwarmConfig((listening,)), identity):
                    pass

    run(main())


def test_an_identity_that_is_running_already_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (a, _):
            with raises_one_line(NetworkError, r"b\.key is in use by another running peer"):
                async with opened(tmp_path, "b", *a.addresses):
                    pass

    run(main())


def test_an_identity_may_come_back_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, "a") as a:
            for version in (b"first", b"second"):
                async with opened(tmp_path, "b", *a.addresses) as b:
                    await b.store("key", "", version, dht_time() + (10 if version == b"first" else 20))
            assert [(record.owner, record.value) for record in await a.get("key")] == [(b.peer_id, b"second")]

    run(main())


def test_the_death_of_our_daemon_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Tasks of hivemind's, whose end nobody looked at, were told of in a traceback behind the reason."""

    async def main() -> None:
        async with pair(tmp_path) as (a, b):
            psutil.Process(a._daemon.process_id).kill()
            with raises_one_line(NetworkError, r"libp2p daemon died \(exit status -9\)"):
                async with asyncio.timeout(5.0):
                    await a.watch_daemon()
            with raises_one_line(NetworkError, "libp2p daemon"):
                await a.open_stream(b.peer_id, "echo", 5.0)
            for _ in range(2):
                with suppress(NetworkError):
                    await a.get("key")

    run(main())
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_a_connection_to_our_daemon_that_is_read_no_more_is_reported(tmp_path: Path) -> None:
    """hivemind does not notice, and none of its questions would be answered any more."""

    async def main() -> None:
        async with pair(tmp_path) as (a, _):
            reader = a._dht.connection._client.control._read_task.get_coro().cr_frame.f_locals["reader"]
            reader.set_exception(ValueError("made up"))
            with raises_one_line(NetworkError, r"connection to the libp2p daemon broke \(made up\): start"):
                async with asyncio.timeout(5.0):
                    await a.watch_daemon()

    run(main())


def test_peers_that_forgot_each_other_meet_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a pause of all traffic: both routing tables are empty, nobody calls anybody."""
    monkeypatch.setattr(p2p_node, "MEET_AGAIN_EVERY_S", 0.05)

    async def main() -> None:
        async with pair(tmp_path) as (a, b), asyncio.TaskGroup() as group:
            watching = group.create_task(a.watch_daemon())
            await until(lambda: _has_met(a, b))
            for p2p in (a, b):
                table = p2p._dht.node.protocol.routing_table
                for node in list(table.uid_to_peer_id):
                    del table[node]
            assert await b.store("key", "", b"alone", dht_time() + 20)
            await until(lambda: _sees(a, "key"))
            watching.cancel()

    met: set[PeerId] = set()
    missing = reconnect.Reconnector._missing

    def noting(self: reconnect.Reconnector, now: float) -> list[Any]:
        result = missing(self, now)
        met.update(PeerId(str(peer)) for peer in self._last_met)
        return result

    async def _has_met(p2p: P2PNode, other: P2PNode) -> bool:
        return other.peer_id in met

    async def _sees(p2p: P2PNode, key: str) -> bool:
        return bool(await p2p.get(key))

    monkeypatch.setattr(reconnect.Reconnector, "_missing", noting)
    run(main())


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1, 0.2, 0.3])
def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path, after_s: float) -> None:
    async def main() -> None:
        async with opened(tmp_path, "a") as a:
            identity = Identity.load_or_create(tmp_path / "b.key")
            try:
                async with asyncio.timeout(after_s):
                    async with P2PNode.open(SwarmConfig(LOOPBACK, initial_peers=a.addresses), identity):
                        await asyncio.Event().wait()
            except TimeoutError:
                pass
            await until(lambda: _only_daemon(a), timeout_s=3.0)

    run(main())


def test_a_start_that_is_cancelled_while_hivemind_connects_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every turn of the loop, beginning with hivemind's first question to p2pd."""
    ask = boundary.P2P._ping_daemon

    async def start_and_cancel(turns: int) -> bool:
        has_begun = asyncio.Event()

        async def begin(p2p: boundary.P2P) -> None:
            has_begun.set()
            await ask(p2p)

        async def start() -> None:
            async with opened(tmp_path, "a"):
                pass

        monkeypatch.setattr(boundary.P2P, "_ping_daemon", begin)
        starting = asyncio.create_task(start())
        await has_begun.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        return starting.cancelled()

    async def main() -> None:
        assert all([await start_and_cancel(turns) for turns in range(6)])

    run(main())


async def _only_daemon(p2p: P2PNode) -> bool:
    return [child.pid for child in daemons()] == [p2p._daemon.process_id]


@pytest.mark.parametrize(("chosen", "expected"), [(None, str(processors())), ("7", "7")])
def test_p2pd_is_told_how_many_processors_to_keep_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None, expected: str
) -> None:
    """Unless the person who starts it has said so already."""
    if chosen is None:
        monkeypatch.delenv("GOMAXPROCS", raising=False)
    else:
        monkeypatch.setenv("GOMAXPROCS", chosen)

    async def main() -> None:
        async with opened(tmp_path, "a"):
            (daemon,) = daemons()
            assert daemon.environ()["GOMAXPROCS"] == expected

    run(main())


def test_nothing_is_left_after_close(tmp_path: Path) -> None:
    paths: list[Path] = []

    async def main() -> None:
        async with opened(tmp_path, "a") as a:
            await a.serve_streams("echo", echo)
            paths.extend([a._daemon.control_path, a._streams._listen_path])
            paths.append(Path(str(a._dht.connection._client_listen_maddr).removeprefix("/unix")))
            assert paths[0].is_socket()
            assert paths[1].is_socket()
            assert len(daemons()) == 1

    run(main())
    assert len(paths) == 3
    assert [path for path in paths if path.exists()] == []


def test_only_abandoned_sockets_are_swept() -> None:
    abandoned, alive = (SOCKET_FOLDER / f"hivemind-test-{os.getpid()}-{name}.sock" for name in ("old", "live"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(alive))
        server.listen()
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(abandoned))
        try:
            assert abandoned not in sweep_stale_sockets()  # too young: it may be about to listen
            removed = sweep_stale_sockets(older_than_s=0)
            assert abandoned in removed
            assert alive not in removed
            assert alive.exists()
        finally:
            alive.unlink()
            abandoned.unlink(missing_ok=True)
